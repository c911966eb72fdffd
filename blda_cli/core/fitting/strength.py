"""The strength of a correction, from unlabelled pixels alone: 0 in domain, moderate out of domain.

The constants were chosen on the networks of ``tests/benchmarks/wide.py``, whole fields and whole networks left out; its
tables show their effect.
"""

import math
import pkgutil
from dataclasses import dataclass

import torch
from torch import Tensor

from blda_cli.core.choices import Favour
from blda_cli.core.fitting.evidence import Evidence
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.sample import PixelSample
from blda_cli.core.shifts import MINIMUM_PIXELS, additive_fit

IN_DOMAIN, OUT_OF_DOMAIN = 0.03, 0.05
"""Crowding up to which nothing is corrected, and from which the full moderate strength holds."""

ADAPTED_IN_DOMAIN, ADAPTED_OUT_OF_DOMAIN = 0.05, 0.2
"""The same where the batch norms are adapted to the images, which leaves less to correct."""

_ADAPTED = 0.7
"""Share of the strength that applies where the batch norms are adapted."""

FEWEST_IMAGES = 4
"""With fewer images the crowding is unreliable: that of single frames in domain exceeds that of all of them."""

_PROBE = 0.4

_ENOUGH_CLASSES = 10
_FAVOURED = {Favour.MIOU: 1.0, Favour.ACCURACY: 1.3, Favour.PIXELS: 0.7}

_CONFIDENCE = 0.99
"""One-sided level of the interval that a fall in confidence must exceed."""

_FULL_FALL = 0.4
"""Fall of the mean confidence, in units of ``1 − reference_confidence``, from which the full strength holds."""

_OTHER_LEVELS = 0.5
"""Relative difference of the channels' levels from the reference's from which the full strength holds."""


@dataclass(frozen=True)
class ReferenceComparison:
    """Images to be corrected against images of the training domain, both without labels.

    Attributes:
        confidence: mean over the pixels of the highest softmax probability.
        reference_confidence: the same of the reference.
        fall: by how much the confidence is certainly lower (99 %, one-sided, images drawn anew), in units of
            ``1 − reference_confidence``; 0 where it is not, and where either has fewer than :data:`FEWEST_IMAGES`.
        levels: root mean square of the difference of the channels' levels over that of the reference's levels, classes
            that both predict often enough; 1 where fewer than three are.
        images: fewest images of the two.
    """

    confidence: float
    reference_confidence: float
    fall: float
    levels: float
    images: int

    def distance(self, norms_shifted: bool) -> float:
        """0 where confidence or levels equal the reference's, 1 where both clearly differ.

        Args:
            norms_shifted: the images' batch norm statistics differ from the network's, the reference's do not: this
                counts as much as a fall in confidence.
        """
        fall = 1.0 if norms_shifted else min(self.fall / _FULL_FALL, 1.0)
        return fall * min(self.levels / _OTHER_LEVELS, 1.0)


@dataclass(frozen=True)
class DomainGap:
    """How far out of domain images are, estimated from a network's logits on them without labels.

    Attributes:
        contested: share of the pixels that the *opposite* of the negative form, ``f + 0.4 b``, would relabel: pixels
            that under-predicted classes hold by a narrow margin. In domain few pixels lie near such a border.
        chance: the share that would be relabelled if the levels ``b`` were dealt to the classes at random: each pixel's
            two best classes get any two of the levels.
        disagreement: see :class:`blda_cli.core.shifts.AdditiveFit`.
        classes: those predicted often enough for cells of their own.
        norms_shifted: see :class:`Evidence`.
        norms_adapted: see :class:`Evidence`.
        reference: the comparison with images of the training domain, where there are some.
    """

    contested: float
    chance: float
    disagreement: float
    classes: int
    norms_shifted: bool = False
    norms_adapted: bool = False
    reference: ReferenceComparison | None = None

    @property
    def aim(self) -> float:
        """Contested share over chance: whether the levels point at borders where pixels crowd; 1 is chance."""
        return self.contested / self.chance if self.chance > 0 else 0.0

    @property
    def crowding(self) -> float:
        """``contested · aim²``, the measure without a reference; independent of the logits' unit."""
        return self.contested * self.aim**2

    @property
    def distance(self) -> float:
        """0 in domain, 1 out of it.

        With a reference, what differs from it decides, and levels that point at no crowded borders (an aim below 1)
        count for less. Without one, the logarithm of the crowding between :data:`IN_DOMAIN` and :data:`OUT_OF_DOMAIN`
        does, and between :data:`ADAPTED_IN_DOMAIN` and :data:`ADAPTED_OUT_OF_DOMAIN` where the batch norms are adapted.
        Where the statistics of the images differ from the network's and it kept its own, confidence and crowding are
        not needed: a network may be confident and wrong.
        """
        shifted = self.norms_shifted and not self.norms_adapted
        if self.reference is not None:
            return self.reference.distance(shifted) * min(self.aim, 1.0)
        if shifted:
            return 1.0
        low, high = (ADAPTED_IN_DOMAIN, ADAPTED_OUT_OF_DOMAIN) if self.norms_adapted else (IN_DOMAIN, OUT_OF_DOMAIN)
        if self.crowding <= low:
            return 0.0
        return min(math.log(self.crowding / low) / math.log(high / low), 1.0)

    @property
    def support(self) -> float:
        """1 with ten classes and more, 0 with two: few cells do not separate a channel's level from its class."""
        return min(max(self.classes - 2, 0) / (_ENOUGH_CLASSES - 2), 1.0)


def domain_gap(
    sample: PixelSample,
    norms_shifted: bool = False,
    reference: PixelSample | None = None,
    norms_adapted: bool = False,
) -> DomainGap:
    """Measure how far out of domain the images are.

    Args:
        sample: random pixels of the images to be corrected, not none.
        norms_shifted: see :class:`Evidence`; false where the norm distance is unknown.
        reference: random pixels of images of the training domain, through the same network; not none.
        norms_adapted: see :class:`Evidence`.

    Returns:
        The gap; contested 0 where fewer than three classes are predicted often enough.
    """
    means, pixels = predicted_means(sample)
    fitted = additive_fit(means, pixels)
    probe = sample.logits + _PROBE * fitted.levels.float()
    relabelled = probe.argmax(dim=1) != sample.logits.argmax(dim=1)
    weights = sample.weights() / sample.weights().sum()
    kept = pixels >= MINIMUM_PIXELS
    return DomainGap(
        contested=float(weights[relabelled].sum()),
        chance=_chance(sample, weights, _PROBE * fitted.levels[kept]),
        disagreement=fitted.disagreement,
        classes=int(kept.sum()),
        norms_shifted=norms_shifted,
        norms_adapted=norms_adapted,
        reference=None if reference is None else compared(sample, reference),
    )


def _chance(sample: PixelSample, weights: Tensor, levels: Tensor) -> float:
    """Share of the pixels whose margin is less than the difference of two of the levels, drawn at random."""
    if len(levels) < 2:
        return 0.0
    differences = (levels[:, None] - levels)[~torch.eye(len(levels), dtype=torch.bool)].sort().values
    best, second = sample.logits.double().topk(2, dim=1).values.unbind(dim=1)
    larger = len(differences) - torch.searchsorted(differences, best - second, right=True)
    return float(weights @ (larger.double() / len(differences)))


def _students_t(level: float, degrees: int) -> float:
    """Quantile of Student's t distribution."""
    from scipy.special import stdtrit  # half a second, which only this needs

    return float(stdtrit(degrees, level))


def compared(sample: PixelSample, reference: PixelSample) -> ReferenceComparison:
    """Compare random pixels of two sets of images, through the same network; neither is empty."""
    (mean, error, images), (before, spread, others) = _confidence(sample), _confidence(reference)
    fewest = min(images, others)
    fall = 0.0
    if fewest >= FEWEST_IMAGES:
        # As many degrees of freedom as the smaller set gives: its own error is known the least.
        certain = before - mean - _students_t(_CONFIDENCE, fewest - 1) * math.hypot(error, spread)
        fall = max(certain, 0.0) / max(1 - before, 1e-6)
    (means, pixels), (usual, counted) = predicted_means(sample), predicted_means(reference)
    both = (pixels >= MINIMUM_PIXELS) & (counted >= MINIMUM_PIXELS)
    levels = 1.0
    if int(both.sum()) >= 3:
        now, then = (additive_fit(one, count).levels[both] for one, count in ((means, pixels), (usual, counted)))
        now, then = now - now.mean(), then - then.mean()
        levels = float((now - then).square().mean().sqrt() / then.square().mean().sqrt().clamp(min=1e-12))
    return ReferenceComparison(mean, before, fall, levels, fewest)


def _confidence(sample: PixelSample) -> tuple[float, float, int]:
    """Mean confidence of the pixels, the standard error of its mean over the images, and their number."""
    weights = sample.weights()
    confidence = sample.logits.double().softmax(dim=1).amax(dim=1)
    images, image = torch.unique(sample.images, return_inverse=True)
    count = len(images)
    totals, sums = (
        torch.zeros(count, dtype=torch.float64).index_add_(0, image, values)
        for values in (weights, weights * confidence)
    )
    error = float((sums / totals).std() / math.sqrt(count)) if count > 1 else math.inf
    return float(sums.sum() / totals.sum()), error, count


def predicted_means(sample: PixelSample) -> tuple[Tensor, Tensor]:
    """``μ[c, l]`` under the network's own labels, float64 ``[C, C]``, and the pixels of each label, float64 ``[C]``."""
    count = len(sample.seen)
    # Within a predicted class every sampled pixel represents equally many: no weights are needed.
    sums = torch.zeros(count, count, dtype=torch.float64).index_add_(0, sample.predicted, sample.logits.double())
    kept = torch.bincount(sample.predicted, minlength=count)
    return sums / kept[:, None], sample.seen.double()


def label_free_strength(settings: AlignmentSettings, evidence: Evidence) -> float:
    """Choose the strength for ``tau="auto"``.

    BLDA's forms and logit adjustment help at a moderate strength out of domain and harm in domain, so theirs is a
    moderate one times :attr:`DomainGap.distance`. The other methods set their own strength: 1.

    Raises:
        ValueError: the statistics, or those of the reference, hold no sampled pixels.
    """
    moderate_strength = settings.entry.moderate
    if moderate_strength is None:
        return 1.0
    sample = evidence.statistics.sample
    reference = None if evidence.reference is None else evidence.reference.sample
    if not len(sample):
        raise ValueError("the statistics hold no sampled pixels to find a strength from: give --tau a number")
    if reference is not None and not len(reference):
        raise ValueError(
            "the reference holds no sampled pixels to compare with: collect it anew, or give --tau a number"
        )
    gap = domain_gap(sample, evidence.norms_shifted, reference, evidence.norms_adapted)
    moderate: float = pkgutil.resolve_name(moderate_strength)(settings, gap)
    left = _ADAPTED if evidence.norms_adapted else 1.0
    return round(moderate * left * _FAVOURED[settings.favour] * gap.distance, 3)
