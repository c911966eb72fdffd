"""The report's data model: built in one place, rendered as text, HTML, JSON and CSV."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.fitting.strength import DomainGap
from blda_cli.core.neighbours import Blocks
from blda_cli.data.classes import ClassSet
from blda_cli.store.provenance import Provenance

MANY_CLASSES = 40
"""With more classes, they are described by how often they are predicted relative to how often they should be."""


LEAST_SHARE = 0.00005
"""Share of the pixels, written as 0.00%, below which no ratio is formed: it would be one of a few pixels."""


class Verdict(StrEnum):
    """Verdict on a class."""

    OVER = "over"
    """Over-predicted: the interval lies above zero."""
    UNDER = "under"
    """Under-predicted: the interval lies below zero."""
    UNCLEAR = "unclear"
    """The interval holds zero."""
    NEVER = "never"
    """(Almost) never predicted: without labels, an absent class and a missed one look alike."""
    UNKNOWN = "n/a"
    """Too few pixels to tell."""


@dataclass(frozen=True)
class Estimate:
    """How over- or under-predicted a class is, without its labels.

    Attributes:
        bias: the estimate of ``Bias(l)``; NaN where there are too few pixels.
        low: lower end of its 90 % interval; NaN where there is none.
        high: upper end.
        frequency: how often it is predicted over how often it should be; NaN where that is not known.
        never: whether it is (almost) never predicted, and no labels tell whether it is there.
    """

    bias: float
    low: float
    high: float
    frequency: float = math.nan
    never: bool = False

    @property
    def verdict(self) -> Verdict:
        """The verdict; without an interval the sign decides."""
        if self.bias != self.bias:
            return Verdict.UNKNOWN
        if self.never:
            return Verdict.NEVER
        low = self.low if self.low == self.low else self.bias
        high = self.high if self.high == self.high else self.bias
        if low > 0:
            return Verdict.OVER
        return Verdict.UNDER if high < 0 else Verdict.UNCLEAR

    @property
    def shown(self) -> "Estimate":
        """As tables and charts show it: of a class that is never predicted the numbers hold only if it is there."""
        return Estimate(math.nan, math.nan, math.nan) if self.never else self

    @property
    def opposed(self) -> bool:
        """Whether its frequency, by pixels, is on the other side of fair than its bias, in which every class weighs
        alike."""
        return (self.frequency - 1) * self.bias < 0


@dataclass(frozen=True)
class Scores:
    """Predictions measured against labels, pooled over pixels. NaN is a class without labelled pixels.

    Attributes:
        bias: per class, ``Bias(l)`` (Li et al., ICML 2025, eq. 2).
        iou: per class, intersection over union.
        accuracy: per class, share of its pixels predicted as it.
        mean_iou: over the classes present.
        mean_accuracy: over the classes present.
        pixel_accuracy: share of the labelled pixels that are right.
        frequency_weighted_iou: mean of the IoU, each class weighted by its share of the labelled pixels.
        iou_spread: population standard deviation of the IoU over the classes present.
        accuracy_spread: that of the accuracy.
        total_bias: ``Σ |Bias(l)|`` over the classes present.
        confusion: ``counts[label][prediction]`` of pixels.
    """

    bias: list[float]
    iou: list[float]
    accuracy: list[float]
    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    frequency_weighted_iou: float
    iou_spread: float
    accuracy_spread: float
    total_bias: float
    confusion: list[list[int]]


@dataclass(frozen=True)
class Predictions:
    """Predictions of a segmenter, before or after a correction.

    Attributes:
        share: per class, the share of all pixels predicted as it.
        scores: against labels; None where there are none.
    """

    share: list[float]
    scores: Scores | None = None


@dataclass(frozen=True)
class Run:
    """One folder of corrected predictions.

    Attributes:
        name: unique among the runs.
        folder: where it lies.
        method: the correction in a few words.
        settings: all settings of the correction.
        changed: share of an image's pixels that changed, the mean over the images.
        after: the corrected predictions.
        made: statistics used, command and versions.
        own_before: shares of the predictions that it corrected, where these are of another model than the report's
            ``before``, e.g. of averaged views.
    """

    name: str
    folder: str
    method: str
    settings: Mapping[str, Any]
    changed: float
    after: Predictions
    made: Mapping[str, Any]
    own_before: list[float] | None = None


@dataclass(frozen=True)
class Candidate:
    """A correction tried on the sampled pixels of the statistics alone.

    Attributes:
        method: the correction in a few words.
        changed: share of the pixels it changes.
        share: per class, the share of the pixels predicted as it.
        scores: against the labels of the sampled pixels; None where the statistics have none.
    """

    method: str
    changed: float
    share: list[float]
    scores: Scores | None


@dataclass(frozen=True)
class Domain:
    """Unlabelled measurements of each class in one domain, shown beside another's; NaN: too few pixels.

    Attributes:
        share: per class, the share of the pixels predicted as it.
        confidence: per class, the mean softmax probability of the pixels predicted as it.
        level: per class, the level of its channel at pixels of other classes, in logits.
    """

    share: list[float]
    confidence: list[float]
    level: list[float]


@dataclass(frozen=True)
class Reference:
    """Images of the training domain beside those that the report is of.

    Attributes:
        file: the statistics of the reference.
        images: how many images they are of.
        target: the images that the report is of.
        usual: the reference.
    """

    file: str
    images: int
    target: Domain
    usual: Domain


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        classes: the classes.
        images: how many images the statistics are of.
        pixels: how many pixels.
        source: the basis of the estimate: the ``sample`` of pixels, or the cells of a label source.
        estimates: one per class.
        mean_shifts: ``[C][C]``, label and channel: from a cell's mean to that of its anchor, in logits.
        shift_source: the cells that these are of.
        before: the network's own predictions.
        runs: corrected ones.
        candidates: corrections compared on the sampled pixels, where that was asked for.
        rank_correlation: Spearman's, of the estimate with the true bias; NaN where there are no labels.
        made: how: the report's own command, the statistics and the labels.
        provenance: of the statistics.
        remarks: sentences about the input.
        steps: shares of the predicted classes, by step: as the network came, with its norms mixed, after each
            correction; empty where the norms are as they came.
        norms_changed: share of the pixels whose class the mixed norms changed, on the images that their weight was
            chosen on; None where the norms are as they came.
        first_scores: scores of the first two steps on the images that the norms' weight was chosen on; empty without
            labels.
        gap: whether these images are in domain; None where no pixels were sampled.
        reference: the same classes on images of the training domain; None where there are none.
        blocks: the blocks of images that the estimates' intervals are drawn from; None where there are none.
        norms_adapted: whether ``before`` is with adapted norm statistics, and not as trained.
    """

    classes: ClassSet
    images: int
    pixels: int
    source: str
    estimates: list[Estimate]
    mean_shifts: list[list[float]]
    shift_source: str
    before: Predictions
    runs: list[Run]
    candidates: list[Candidate]
    rank_correlation: float
    made: Mapping[str, Any]
    provenance: Provenance
    remarks: list[str] = field(default_factory=list)
    gap: DomainGap | None = None
    steps: Mapping[str, Sequence[float]] = field(default_factory=dict)
    norms_changed: float | None = None
    first_scores: Mapping[str, "Scores"] = field(default_factory=dict)
    reference: Reference | None = None
    blocks: Blocks | None = None
    norms_adapted: bool = False

    @property
    def many_classes(self) -> bool:
        """Whether there are too many classes for the bias, a mean over them, to be telling: the least of 150 classes is
        −0.7."""
        return len(self.classes) > MANY_CLASSES

    def order(self) -> list[int]:
        """The classes as tables show them: as they are or, where they are many, by how far their frequency is off."""
        indices = list(range(len(self.classes)))
        return sorted(indices, key=self.oddity, reverse=True) if self.many_classes else indices

    def oddity(self, index: int) -> float:
        """How biased a class is: how far its frequency is off where classes are many, else how large its bias is; −1
        where neither is known."""
        estimate = self.estimates[index].shown
        value = estimate.frequency if self.many_classes else estimate.bias
        if math.isnan(value):
            return -1.0
        return abs(math.log(max(value, 1e-6))) if self.many_classes else abs(value)

    def named(self, verdict: Verdict | str) -> list[str]:
        """The classes of a verdict, the most biased first; where classes are many, those with a frequency against the
        verdict come last."""
        found = [index for index, estimate in enumerate(self.estimates) if estimate.verdict == verdict]
        found.sort(key=self.oddity, reverse=True)
        if self.many_classes:
            found.sort(key=lambda index: self.estimates[index].opposed)
        return [self.classes.names[index] for index in found]


def scores_of(confusion: ConfusionMatrix) -> Scores:
    """Compute all scores from a confusion matrix."""
    present = confusion.present
    bias, accuracy = confusion.bias(), confusion.accuracy()
    return Scores(
        bias=bias.tolist(),
        iou=confusion.iou().tolist(),
        accuracy=accuracy.tolist(),
        mean_iou=confusion.mean_iou(),
        mean_accuracy=confusion.mean_accuracy(),
        pixel_accuracy=confusion.pixel_accuracy(),
        frequency_weighted_iou=confusion.frequency_weighted_iou(),
        iou_spread=_spread(confusion.iou()[present]),
        accuracy_spread=_spread(accuracy[present]),
        total_bias=float(bias[present].abs().sum()) if bool(present.any()) else torch.nan,
        confusion=confusion.counts.tolist(),
    )


def _spread(values: Tensor) -> float:
    return float(values.std(correction=0)) if len(values) else torch.nan


def shares(counts: Sequence[int]) -> list[float]:
    """Counts as shares of their sum."""
    total = max(sum(counts), 1)
    return [count / total for count in counts]
