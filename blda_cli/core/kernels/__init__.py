"""The loops over pixels, each a pure function, and the one place that decides which implementation runs.

Every implementation takes the same arguments and passes the same tests; ``torch_kernels`` runs anywhere.
"""

from torch import Tensor

from blda_cli.core.kernels import torch_kernels

SOFT_UNIT = torch_kernels.SOFT_UNIT


def count_cells(logits: Tensor, labels: Tensor, bins: int, limit: float) -> Tensor:
    """Histogram every channel under the pixel's label.

    Args:
        logits: ``[N, C, P]`` floating point, every value in ``[-limit, limit)``.
        labels: ``[N, P]`` integers; pixels outside ``[0, C)`` are left out.
        bins: B, a power of two.
        limit: half the axis, a power of two.

    Returns:
        int64 ``[C, C, B]``: label, channel, bin ``floor(z B / (2 limit)) + B / 2``.
    """
    return torch_kernels.count_cells(logits, labels, bins, limit)


def count_cells_soft(logits: Tensor, probabilities: Tensor, bins: int, limit: float) -> Tensor:
    """Histogram every channel under every label, weighted by the label's probability.

    Args:
        logits: ``[N, C, P]`` floating point, every value in ``[-limit, limit)``.
        probabilities: ``[N, C, P]`` in ``[0, 1]``, rounded to multiples of :data:`SOFT_UNIT` so that sums are exact.
        bins: B, a power of two.
        limit: half the axis, a power of two.

    Returns:
        float64 ``[C, C, B]``: label, channel, bin.
    """
    return torch_kernels.count_cells_soft(logits, probabilities, bins, limit)


def align_quantile(logits: Tensor, factors: Tensor, own: Tensor, limit: float) -> Tensor:
    """Class ids by the quantile form: per hypothesis a table of exponentials of the shifts.

    Args:
        logits: ``[N, C, P]`` floating point.
        factors: float32 ``[C, B, C]``: channel, bin, hypothesis: ``exp(τ Δ[c, l](bin centre))``, up to one factor
            per hypothesis.
        own: float32 ``[C, B]``: ``log factors[c, :, c]``, the shift of each hypothesis' own channel.
        limit: half the axis; a logit outside takes the outermost bin's shift.

    Returns:
        int64 ``[N, P]``: ``argmax_c f_c + own[c](f_c) − log Σ_l exp(f_l) factors[l](f_l)[c]``.
    """
    return torch_kernels.align_quantile(logits, factors, own, limit)


def align_location(logits: Tensor, shifts: Tensor) -> Tensor:
    """Class ids by the location form: constant shifts, one matrix product.

    Args:
        logits: ``[N, C, P]`` floating point.
        shifts: float32 ``[C, C]``: ``τ L[c, l]``, hypothesis and channel.

    Returns:
        int64 ``[N, P]``: ``argmax_c f_c + shifts[c, c] − log Σ_l exp(f_l + shifts[c, l])``.
    """
    return torch_kernels.align_location(logits, shifts)


def align_offset(logits: Tensor, offsets: Tensor) -> Tensor:
    """Class ids after one offset per class.

    Args:
        logits: ``[N, C, P]`` floating point.
        offsets: float32 ``[C]``.

    Returns:
        int64 ``[N, P]``: ``argmax_c f_c + offsets[c]``.
    """
    return torch_kernels.align_offset(logits, offsets)
