"""How often each of a few whole numbers occurs."""

import torch
from torch import Tensor


def count_values(values: Tensor, number: int) -> Tensor:
    """Count numbers; unlike ``torch.bincount``, without waiting for a CUDA device.

    Args:
        values: integers of any shape, all in ``[0, number)``.
        number: how many there are, at most 2²⁶.

    Returns:
        int64 ``[number]``.
    """
    if not _bincount_waits(values):
        return torch.bincount(values.flatten(), minlength=number)
    # Exact: in float64 the products and quotients by which a bin is found are whole numbers.
    return torch.histc(values.double(), number, 0, number).long()


def _bincount_waits(values: Tensor) -> bool:
    # histc is refused where deterministic algorithms are asked for, although counts are exact in any order.
    return values.is_cuda and not torch.are_deterministic_algorithms_enabled()
