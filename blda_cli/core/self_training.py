"""Class-balanced selection of pseudo-labels (CBST; Zou et al., ECCV 2018)."""

import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX

MANTISSA_BITS = 10
"""Mantissa bits in a bin's number: a bin spans a thousandth (2⁻¹⁰) of the ``k`` it holds."""

MINED_CLASSES = 5
RARE_SHARE = 1e-3

_SMALLEST, _LARGEST = 2.0**-24, 2.0**7
_DROPPED_BITS = 23 - MANTISSA_BITS


class ConfidenceHistogram:
    """Histogram of confidence per predicted class: ``counts[class, bin]`` of ``k = −log`` of their score.

    Sorting all pixels of a data set would take too long, and confidences crowd near 1, where bins of equal width are
    too coarse. The bins are the upper bits of ``k`` as a float: 1024 between two powers of two, so a ranked ``k`` is
    found to within a thousandth of itself. Below 2⁻²⁴, the resolution of float32 at a confidence of 1, and above 2⁷
    there is one bin each.

    Attributes:
        counts: float64 ``[C, B]``; summable over batches and processes.
    """

    def __init__(self, num_classes: int, device: torch.device | None = None) -> None:
        self.counts = torch.zeros(num_classes, _bin(_LARGEST) - _FIRST, dtype=torch.float64, device=device)

    def update(self, scores: Tensor, weights: Tensor | None = None) -> None:
        """Count every pixel under the class of its highest score.

        Args:
            scores: logs of probabilities, or of their products with priors, ``[N, C, *spatial]``, at most 0.
            weights: pixels that each represents, ``[N, *spatial]``; by default one.
        """
        highest, predicted = scores.float().max(dim=1)
        bins = (-highest).clamp(0, _LARGEST).view(torch.int32) >> _DROPPED_BITS
        index = predicted * self.counts.shape[1] + (bins - _FIRST).clamp(0, self.counts.shape[1] - 1)
        flat = None if weights is None else weights.double().flatten()
        counts = torch.bincount(index.flatten(), flat, self.counts.numel())
        self.counts += counts.view_as(self.counts).to(self.counts.device)

    def pixels(self) -> Tensor:
        """Pixels predicted as each class, float64 ``[C]``."""
        return self.counts.sum(dim=1)

    def class_thresholds(self, portion: float) -> Tensor:
        """``k_c``: of the confidence ranked at ``round(p N_c)`` among the ``N_c`` pixels predicted ``c``.

        Zou et al., ECCV 2018, algorithm 2.

        Args:
            portion: p in (0, 1].

        Returns:
            float64 ``[C]``, the upper edge of the ranked bin, so that its pixels are above the threshold
            ``exp(−k_c)``; 0 (a threshold of 1, which no pixel exceeds) for classes that are never predicted.
        """
        return _ranked(self.counts, portion)

    def threshold(self, portion: float) -> Tensor:
        """``k``, one for all classes: of the confidence ranked at ``round(p N)`` among all pixels (ST).

        Returns:
            float64 ``[C]``, all alike.
        """
        return _ranked(self.counts.sum(dim=0, keepdim=True), portion).expand(self.counts.shape[0])


def select_labels(scores: Tensor, thresholds: Tensor) -> Tensor:
    """``argmax_c p_c / exp(−k_c)`` where that ratio exceeds 1, else ignored (Zou et al., ECCV 2018, eq. 6).

    Args:
        scores: logs of probabilities, or of their products with priors, ``[N, C, *spatial]``.
        thresholds: ``k_c``, ``[C]``.

    Returns:
        int64 ``[N, *spatial]``.
    """
    shape = -1, *[1] * (scores.dim() - 2)
    ratio, labels = (scores + thresholds.to(scores).view(shape)).max(dim=1)
    return labels.masked_fill(ratio <= 0, IGNORE_INDEX)


def keep_confident(scores: Tensor, thresholds: Tensor) -> Tensor:
    """The class of the highest score where that is above the class's threshold, else ignored.

    Unlike :func:`select_labels` it never names a class that is not the most probable.

    Args:
        scores: logs of probabilities, ``[N, C, *spatial]``.
        thresholds: ``k_c``, ``[C]``: minus the log of the least confidence of class ``c``.

    Returns:
        int64 ``[N, *spatial]``.
    """
    highest, labels = scores.max(dim=1)
    return labels.masked_fill(-highest >= thresholds.to(scores)[labels], IGNORE_INDEX)


def mining_order(shares: Tensor) -> tuple[list[int], list[int]]:
    """The five least predicted classes, whose source images are preferred (Zou et al., ECCV 2018, §5.1).

    Args:
        shares: of each class in the predictions on the target, ``[C]``.

    Returns:
        Those with a share under 0.1 %, which come first, and the others; the least predicted first.
    """
    mined = shares.argsort(stable=True)[:MINED_CLASSES].tolist()
    return [one for one in mined if shares[one] < RARE_SHARE], [one for one in mined if shares[one] >= RARE_SHARE]


def _bin(value: float) -> int:
    return int(torch.tensor(value).view(torch.int32)) >> _DROPPED_BITS


_FIRST = _bin(_SMALLEST) - 1
"""The first bin holds all that is smaller."""


def _ranked(counts: Tensor, portion: float) -> Tensor:
    """The upper edge of the bin that holds rank ``round(p N)`` of each row, from the smallest ``k``."""
    pixels = counts.sum(dim=1, keepdim=True)
    ranks = (portion * pixels).round().clamp(min=1)
    # Half a pixel of slack, as weighted counts do not sum to whole ranks.
    bins = (counts.cumsum(dim=1) < ranks.minimum(pixels) - 0.5).sum(dim=1)
    edges = ((bins + _FIRST + 1).int() << _DROPPED_BITS).view(torch.float32).double()
    return torch.where(pixels.squeeze(1) > 0, edges, 0.0)
