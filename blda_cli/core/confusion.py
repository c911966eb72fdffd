"""Confusion matrices, and IoU, accuracy and class bias computed from them."""

import torch
from torch import Tensor

from blda_cli.core.counting import count_values


class ConfusionMatrix:
    """``counts[label, prediction]`` of pixels, pooled over images.

    Scores of a class that has no labelled pixel are NaN, never 0, and means leave them out.

    Attributes:
        counts: int64 ``[C, C]`` on the CPU.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    @classmethod
    def from_counts(cls, counts: Tensor) -> "ConfusionMatrix":
        """Wrap counts ``[C, C]``, as a file holds them."""
        matrix = cls(counts.shape[0])
        matrix.counts = counts.to(torch.int64)
        return matrix

    def update(self, labels: Tensor, predictions: Tensor) -> None:
        """Count pixels.

        Args:
            labels: ``[N, *spatial]`` integers; pixels outside ``[0, C)`` are not counted.
            predictions: ``[N, *spatial]`` integers in ``[0, C)`` wherever there is a label.
        """
        num_classes = self.counts.shape[0]
        labels, predictions = labels.flatten().long(), predictions.flatten().long()
        kept = (labels >= 0) & (labels < num_classes)
        # One number more takes those without a label: to leave them out waits for the device.
        index = torch.where(kept, labels * num_classes + predictions, num_classes**2)
        counts = count_values(index, num_classes**2 + 1)[:-1]
        self.counts += counts.view(num_classes, num_classes).cpu()

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """The matrix of both data sets."""
        return ConfusionMatrix.from_counts(self.counts + other.counts)

    @property
    def present(self) -> Tensor:
        """Classes with a labelled pixel, bool ``[C]``."""
        return self.counts.sum(dim=1) > 0

    def rates(self) -> Tensor:
        """``P(prediction = l | label = c)``, float64 ``[C, C]``; NaN rows for absent classes."""
        return self.counts.double() / self.counts.sum(dim=1, keepdim=True)

    def accuracy(self) -> Tensor:
        """Per class, the share of its pixels predicted as it; float64 ``[C]``."""
        return self.rates().diagonal().clone()

    def iou(self) -> Tensor:
        """Per class, intersection over union; float64 ``[C]``."""
        counts = self.counts.double()
        hits = counts.diagonal()
        iou = hits / (counts.sum(dim=0) + counts.sum(dim=1) - hits)
        return torch.where(self.present, iou, torch.nan)

    def bias(self) -> Tensor:
        """``Bias(l) = (1/C) Σ_c P(argmax f(x) = l | y = c) − 1/C`` over the present classes; float64 ``[C]``.

        Li et al., ICML 2025, eq. 2. Positive: over-predicted; negative: under-predicted.
        """
        present = self.present
        bias = self.rates()[present].mean(dim=0) - 1 / max(int(present.sum()), 1)
        return torch.where(present, bias, torch.nan)

    def predicted_share(self) -> Tensor:
        """Share of the labelled pixels predicted as each class, float64 ``[C]``."""
        return self.counts.sum(dim=0).double() / self.counts.sum()

    def mean_iou(self) -> float:
        """Mean IoU over the present classes."""
        return float(self.iou()[self.present].mean())

    def mean_accuracy(self) -> float:
        """Mean accuracy over the present classes."""
        return float(self.accuracy()[self.present].mean())

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are predicted right, "aAcc" of the toolboxes; NaN without one."""
        return float(self.counts.diagonal().sum() / self.counts.sum())

    def frequency_weighted_iou(self) -> float:
        """IoU of the classes present, each weighted by its share of the labelled pixels; NaN without one."""
        pixels = self.counts.sum(dim=1).double()
        return float((self.iou().nan_to_num() * pixels).sum() / pixels.sum())

    def iou_spread(self) -> float:
        """Population standard deviation of the present classes' IoU."""
        iou = self.iou()[self.present]
        return float((iou - iou.mean()).square().mean().sqrt())
