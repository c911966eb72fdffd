"""Summable statistics of one pass over images, from which all later commands work."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from operator import index
from typing import Any, TypeVar

import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.bias import sampled_bias
from blda_cli.core.checks import check_batch
from blda_cli.core.choices import LabelSource, LogitSpace
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.histogram import DEFAULT_BINS, LogitHistogram, largest_of
from blda_cli.core.kernels import argmax
from blda_cli.core.logit_space import to_space
from blda_cli.core.sample import PixelSample, image_digest, join
from blda_cli.core.spatial_priors import PositionCounts

_MOST_PENDING = 16
"""Most batches whose samples wait to be joined, so that memory does not grow with the number of images."""

_Names = TypeVar("_Names", bound=StrEnum)


class LogitStatistics:
    """Logit histograms per label source, a confusion matrix where there are labels, and a sample of pixels.

    Attributes:
        space: the logits that the cells hold.
        cells: one histogram per label source.
        confusion: argmax against ground truth; None where there is none.
        positions: where in the images the ground truth's classes lie; None where there is none.
        images: images counted.
        pixels: pixels counted.

    Example:
        >>> import torch
        >>> from blda_cli import LogitStatistics
        >>> left, right = LogitStatistics(num_classes=3), LogitStatistics(num_classes=3)
        >>> left.update(torch.zeros(1, 3, 4, 4), keys=["left"])
        >>> right.update(torch.zeros(2, 3, 4, 4), keys=["right 0", "right 1"])
        >>> both = left + right
        >>> both.images, both.pixels
        (3, 48)
        >>> both.compute()["predicted_share"]
        tensor([1., 0., 0.], dtype=torch.float64)
    """

    def __init__(
        self,
        num_classes: int,
        sources: Iterable[LabelSource | str] | str = (LabelSource.PSEUDO,),
        *,
        space: LogitSpace | str = LogitSpace.RAW,
        bins: int = DEFAULT_BINS,
        device: torch.device | str | None = None,
    ) -> None:
        """Start counting.

        Args:
            num_classes: C.
            sources: the labels that pixels are counted under: ``pseudo``, ``soft``, ``ground_truth``; the last brings
                a confusion matrix.
            space: the logits that are counted: ``raw``, ``centred``, ``log-softmax``.
            bins: bins per cell, a power of two.
            device: where it is counted, that of the logits; the CPU by default.

        Raises:
            TypeError: ``num_classes`` is no integer.
            ValueError: there is no such source or space, or the numbers cannot be used.
        """
        if index(num_classes) < 1:
            raise ValueError(f"num_classes should be positive, not {num_classes}")
        self.space = _member(LogitSpace, space, "space")
        named = [sources] if isinstance(sources, str) else sources
        members = [_member(LabelSource, source, "sources") for source in named]
        self.cells = {source: LogitHistogram(num_classes, bins, device) for source in members}
        labelled = LabelSource.GROUND_TRUTH in self.cells
        self.confusion = ConfusionMatrix(num_classes) if labelled else None
        self.positions = PositionCounts(num_classes) if labelled else None
        self.images = self.pixels = 0
        self._sampled = PixelSample.empty(num_classes)
        self._pending: tuple[PixelSample, ...] = ()

    @classmethod
    def from_parts(
        cls,
        *,
        space: LogitSpace,
        cells: dict[LabelSource, LogitHistogram],
        confusion: ConfusionMatrix | None,
        positions: PositionCounts | None,
        sample: PixelSample,
        images: int,
        pixels: int,
    ) -> "LogitStatistics":
        """Construct from counted parts, e.g. those read from a file."""
        statistics = cls(len(sample.seen), (), space=space)
        statistics.cells, statistics.confusion, statistics.positions = cells, confusion, positions
        statistics._sampled, statistics.images, statistics.pixels = sample, images, pixels
        return statistics

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self._sampled.seen)

    @property
    def device(self) -> torch.device:
        """Where it is counted."""
        return next(cells.counts.device for cells in self.cells.values())

    @property
    def sample(self) -> PixelSample:
        """Random pixels of all batches with all their logits."""
        self._join_pending()
        return self._sampled

    def update(
        self,
        logits: Tensor,
        labels: Tensor | None = None,
        keys: Sequence[str] | None = None,
        *,
        valid: Tensor | None = None,
        largest: float | None = None,
    ) -> None:
        """Count a batch.

        Args:
            logits: ``[N, C, *spatial]`` floating point, finite.
            labels: ``[N, *spatial]`` integers, needed where ground truth is counted; those outside ``[0, C)`` mean
                that a pixel has none.
            keys: N names, one per image, unique over all updates; by default the images' numbers. They choose which
                pixels are sampled, and a correction is fitted to these: it equals the command's with the command's
                keys, the images' paths within their folder without suffix, and nearly so with any others. Statistics
                that are to be added up need different names.
            valid: bool ``[N, *spatial]``, the pixels to count; None: all.
            largest: the largest absolute logit, as float32, where that is known; else it is computed.

        Raises:
            TypeError: logits, labels or keys are not of the right type.
            ValueError: a logit is not finite, the values are probabilities, a shape or device does not fit, keys are
                repeated, or labels are missing.
        """
        check_batch(logits, labels, keys, self.num_classes, device=self.device, first=self.images == 0)
        if labels is None and LabelSource.GROUND_TRUTH in self.cells:
            raise ValueError("ground truth is counted: labels are needed")
        shape = logits.shape[:1] + logits.shape[2:]
        if valid is not None and valid.shape != shape:
            raise ValueError(f"valid should be of shape {list(shape)}, not {list(valid.shape)}")
        logits = logits.detach()
        if keys is None:
            keys = [str(self.images + index) for index in range(len(logits))]
        elif again := self._counted(keys):
            raise ValueError(f"an image of the key {again!r} is counted already: keys should be different")
        if labels is not None and self.positions is not None and labels.dim() == 3:
            left_out = None if valid is None else ~valid.to(labels.device)
            self.positions.update(labels if left_out is None else labels.masked_fill(left_out, IGNORE_INDEX))
        if valid is None:
            self._count(logits, labels, keys, largest)
        else:
            for index, (key, there) in enumerate(zip(keys, valid.to(logits.device), strict=True)):
                of_labels = None if labels is None else labels[index, there][None]
                # Their own largest logit, so that what lies beside them makes no difference.
                self._count(logits[index, :, there][None], of_labels, [key], None, there)
        self.images += len(keys)

    def _count(
        self,
        logits: Tensor,
        labels: Tensor | None,
        keys: Sequence[str],
        largest: float | None,
        mask: Tensor | None = None,
    ) -> None:
        """Count the pixels of images; of one image's ``[1, C, K]`` where a mask ``[H, W]`` says which they are."""
        if mask is not None and not logits.numel():
            return
        predicted = argmax(logits)
        # Raw logits go as they are: the kernels convert them block by block.
        raw = self.space is LogitSpace.RAW
        values = logits if raw else to_space(logits.float(), self.space)
        if largest is None or not raw:
            largest = largest_of(values)
        for source, histogram in self.cells.items():
            match source:
                case LabelSource.GROUND_TRUTH:
                    assert labels is not None
                    assert self.confusion is not None
                    histogram.update(values, labels, largest)
                    self.confusion.update(labels, predicted)
                case LabelSource.PSEUDO:
                    histogram.update(values, predicted, largest)
                case LabelSource.SOFT:
                    histogram.update_soft(values, largest)
        self._pending += (self._sampled.draw(logits, predicted, labels, keys, mask),)
        # Joining costs the same for few pixels as for many, and after some images only few may still enter.
        if len(self._pending) == _MOST_PENDING or sum(map(len, self._pending)) > len(self._sampled) // 2:
            self._join_pending()
        self.pixels += predicted.numel()

    def compute(self) -> dict[str, Tensor]:
        """Results per class, float64 ``[C]``.

        Returns:
            ``predicted_share`` of all pixels; ``bias``, estimated without labels (:func:`sampled_bias`; positive is
            over-predicted, NaN where there are too few pixels), and the ends ``bias_low`` and ``bias_high`` of its
            90 % interval. With ground truth also ``true_bias``, ``iou`` and ``accuracy``; NaN for absent classes.
        """
        estimate = sampled_bias(self.sample)
        found = {
            "predicted_share": self.predicted_share(),
            "bias": estimate.bias,
            "bias_low": estimate.low,
            "bias_high": estimate.high,
        }
        if self.confusion is not None:
            found["true_bias"] = self.confusion.bias()
            found |= {"iou": self.confusion.iou(), "accuracy": self.confusion.accuracy()}
        return found

    def cpu(self) -> "LogitStatistics":
        """The same statistics with every histogram on the CPU, where the samples are."""
        return LogitStatistics.from_parts(
            space=self.space,
            cells={source: histogram.cpu() for source, histogram in self.cells.items()},
            confusion=self.confusion,
            positions=self.positions,
            sample=self.sample,
            images=self.images,
            pixels=self.pixels,
        )

    def _counted(self, keys: Sequence[str]) -> str | None:
        """The first of some keys of which pixels are in the sample."""
        sampled = torch.cat([part.images for part in (self._sampled, *self._pending)])
        return next((key for key in keys if bool((sampled == image_digest(key)).any())), None)

    def _join_pending(self) -> None:
        if self._pending:
            self._sampled = join([self._sampled, *self._pending])
            self._pending = ()

    def reset(self) -> None:
        """Forget everything counted."""
        bins = next(cells.bins for cells in self.cells.values())
        self.__init__(self.num_classes, self.cells, space=self.space, bins=bins, device=self.device)  # type: ignore[misc]

    def merge_state(self, other: "LogitStatistics") -> None:
        """Add statistics of other images to these, in place.

        Raises:
            ValueError: the two do not count the same sources in the same way.
        """
        self.load_state_dict((self + other).state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as tensors, numbers and text."""
        sample = self.sample
        return {
            "space": str(self.space),
            "images": self.images,
            "pixels": self.pixels,
            "cells": {str(source): (cells.counts, cells.limit) for source, cells in self.cells.items()},
            "confusion": None if self.confusion is None else self.confusion.counts,
            "positions": None if self.positions is None else self.positions.counts,
            "sample": {one.name: getattr(sample, one.name) for one in fields(sample)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state_dict`, replacing the present state."""
        confusion, positions = state["confusion"], state["positions"]
        restored = LogitStatistics.from_parts(
            space=LogitSpace(state["space"]),
            cells={
                LabelSource(source): LogitHistogram.from_counts(counts, limit)
                for source, (counts, limit) in state["cells"].items()
            },
            confusion=None if confusion is None else ConfusionMatrix.from_counts(confusion),
            positions=None if positions is None else PositionCounts.from_counts(positions),
            sample=PixelSample(**state["sample"]),
            images=state["images"],
            pixels=state["pixels"],
        )
        self.__dict__.update(restored.__dict__)

    def __repr__(self) -> str:
        """Classes, sources and number of images."""
        sources = ", ".join(self.cells)
        return f"LogitStatistics({self.num_classes} classes, {self.images} images, {self.pixels:,} pixels, {sources})"

    def __radd__(self, other: int) -> "LogitStatistics":
        """``sum`` starts at 0."""
        return self if other == 0 else NotImplemented

    def __add__(self, other: "LogitStatistics") -> "LogitStatistics":
        """The statistics of both data sets.

        Warns where both sampled pixels of images of the same name, which are sampled alike or are counted twice.

        Raises:
            ValueError: the two do not count the same sources in the same way.
        """
        if not isinstance(other, LogitStatistics):
            return NotImplemented
        if self.num_classes != other.num_classes:
            raise ValueError(f"statistics of {self.num_classes} and {other.num_classes} classes do not add up")
        if self.cells.keys() != other.cells.keys() or self.space != other.space:
            raise ValueError("statistics of different label sources or logit spaces do not add up")
        if bool(torch.isin(other.sample.images.unique(), self.sample.images).any()):
            warnings.warn(
                "both statistics count images of the same key: give update a different key for every image",
                stacklevel=2,
            )
        return LogitStatistics.from_parts(
            space=self.space,
            cells={source: cells + other.cells[source] for source, cells in self.cells.items()},
            confusion=self.confusion + other.confusion if self.confusion and other.confusion else None,
            sample=self.sample + other.sample,
            positions=self.positions + other.positions if self.positions and other.positions else None,
            images=self.images + other.images,
            pixels=self.pixels + other.pixels,
        )

    def predicted_share(self) -> Tensor:
        """Share of all pixels predicted as each class, float64 ``[C]``."""
        return self.sample.seen.double() / self.sample.seen.sum()


def _member(names: type[_Names], name: str, argument: str) -> _Names:
    """The member of that name."""
    if name not in list(names):
        raise ValueError(f"{argument} should be of {', '.join(names)}, not {name!r}")
    return names(name)
