"""Tables and output types shared by all kernel implementations."""

import torch
from torch import Tensor

SOFT_UNIT = 2.0**-16
"""Soft counts are multiples of this, so that their sums are exact and independent of order."""

# Rows of a table start at multiples of this many float32, where loads are fastest.
_ALIGNMENT = 4


def id_type(num_classes: int) -> torch.dtype:
    """The smallest type that holds every class id."""
    return torch.uint8 if num_classes <= 256 else torch.int16


def empty_ids(logits: Tensor) -> Tensor:
    """Room for one class id per pixel of ``[N, C, P]``."""
    images, num_classes, pixels = logits.shape
    return torch.empty(images, pixels, dtype=id_type(num_classes), device=logits.device)


def quantile_factors(shifts: Tensor) -> Tensor:
    """The table of :func:`blda_cli.core.kernels.align_quantile`: exponentials of the shifts, hypotheses innermost.

    Args:
        shifts: float32 ``[C, C, B]``: hypothesis, channel, bin.

    Returns:
        float32 ``[C, B, S]``: channel, bin, hypothesis; each hypothesis up to one factor, which cancels and keeps the
        others in range. S is C rounded up; the rest is 1.
    """
    num_classes, _, bins = shifts.shape
    width = -(-num_classes // _ALIGNMENT) * _ALIGNMENT
    factors = shifts.new_ones(num_classes, bins, width)
    for hypothesis, shift in enumerate(shifts):  # one by one: with many classes the table is large
        factors[:, :, hypothesis] = (shift - shift.mean()).exp_()
    return factors


def location_factors(shifts: Tensor) -> Tensor:
    """``exp(L[c, l] − L[c, c])``, float32 ``[C, C]``, from ``L``."""
    return (shifts - shifts.diagonal().unsqueeze(1)).exp_()
