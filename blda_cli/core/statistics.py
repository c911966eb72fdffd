"""What one pass over images leaves behind: everything later commands need, and all of it adds up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blda_cli.core.choices import LabelSource, LogitSpace
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.histogram import DEFAULT_BINS, LogitHistogram
from blda_cli.core.kernels import argmax
from blda_cli.core.logit_space import to_space
from blda_cli.core.sample import PixelSample, join
from blda_cli.core.spatial_priors import PositionCounts

_MOST_PENDING = 16
"""Batches that may wait: their number must not grow with the images."""


@dataclass
class LogitStatistics:
    """Logit histograms per label source, a confusion matrix where there are labels, and a sample of pixels.

    Attributes:
        space: the logits that the cells hold.
        cells: one histogram per label source.
        confusion: argmax against ground truth; None where there is none.
        positions: where in the images the ground truth's classes lie; None where there is none.
        sampled: random pixels with all their logits, of the batches but the pending ones; see :attr:`sample`.
        images: images counted.
        pixels: pixels counted.
        pending: what was drawn from the last batches.
    """

    space: LogitSpace
    cells: dict[LabelSource, LogitHistogram]
    confusion: ConfusionMatrix | None
    sampled: PixelSample
    positions: PositionCounts | None = None
    images: int = 0
    pixels: int = 0
    pending: tuple[PixelSample, ...] = ()

    @classmethod
    def empty(
        cls,
        num_classes: int,
        sources: Iterable[LabelSource],
        *,
        space: LogitSpace = LogitSpace.RAW,
        bins: int = DEFAULT_BINS,
        device: torch.device | None = None,
    ) -> "LogitStatistics":
        """Start counting ``sources``, with a confusion matrix if ground truth is one of them."""
        cells = {source: LogitHistogram(num_classes, bins, device) for source in sources}
        statistics = cls(space, cells, None, PixelSample.empty(num_classes))
        if LabelSource.GROUND_TRUTH in cells:
            statistics.confusion, statistics.positions = ConfusionMatrix(num_classes), PositionCounts(num_classes)
        return statistics

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.sampled.seen)

    @property
    def sample(self) -> PixelSample:
        """Random pixels of all batches with all their logits."""
        self._join_pending()
        return self.sampled

    def update(self, logits: Tensor, labels: Tensor | None, keys: Sequence[str]) -> None:
        """Count a batch.

        Args:
            logits: ``[N, C, *spatial]`` floating point, finite.
            labels: ``[N, *spatial]`` integers, needed where ground truth is counted; those outside ``[0, C)`` mean
                that a pixel has none.
            keys: N names, one per image, unique over all updates.

        Raises:
            ValueError: a logit is not finite.
        """
        predicted = argmax(logits)
        # Raw logits go as they are: the kernels convert them block by block.
        values = logits if self.space is LogitSpace.RAW else to_space(logits.float(), self.space)
        for source, histogram in self.cells.items():
            match source:
                case LabelSource.GROUND_TRUTH:
                    assert labels is not None
                    assert self.confusion is not None
                    histogram.update(values, labels)
                    self.confusion.update(labels, predicted)
                    if self.positions is not None and labels.dim() == 3:
                        self.positions.update(labels)
                case LabelSource.PSEUDO:
                    histogram.update(values, predicted)
                case LabelSource.SOFT:
                    histogram.update_soft(values)
        self.pending += (self.sampled.draw(logits, predicted, labels, keys),)
        # Joining costs the same for few pixels as for many, and after some images only few may still enter.
        if len(self.pending) == _MOST_PENDING or sum(map(len, self.pending)) > len(self.sampled) // 2:
            self._join_pending()
        self.images += len(keys)
        self.pixels += predicted.numel()

    def _join_pending(self) -> None:
        if self.pending:
            self.sampled = join([self.sampled, *self.pending])
            self.pending = ()

    def __add__(self, other: "LogitStatistics") -> "LogitStatistics":
        """The statistics of both data sets.

        Raises:
            ValueError: the two do not count the same sources in the same way.
        """
        if self.cells.keys() != other.cells.keys() or self.space != other.space:
            raise ValueError("statistics of different label sources or logit spaces do not add up")
        return LogitStatistics(
            space=self.space,
            cells={source: cells + other.cells[source] for source, cells in self.cells.items()},
            confusion=self.confusion + other.confusion if self.confusion and other.confusion else None,
            sampled=self.sample + other.sample,
            positions=self.positions + other.positions if self.positions and other.positions else None,
            images=self.images + other.images,
            pixels=self.pixels + other.pixels,
        )

    def predicted_share(self) -> Tensor:
        """Share of all pixels predicted as each class, float64 ``[C]``."""
        return self.sample.seen.double() / self.sample.seen.sum()
