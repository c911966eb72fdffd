"""Kernels: loops over pixels as pure functions, and the choice of the implementation that runs.

All implementations of a kernel take the same arguments and pass the same tests. ``torch_kernels`` has every kernel
and runs anywhere; ``numba_kernels`` (CPU) and ``triton_kernels`` (CUDA) have those where that pays. The fastest that
works here is chosen; ``BLDA_KERNELS`` in the environment overrides it, see :func:`wanted`.
"""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from blda_cli.core.kernels import torch_kernels
from blda_cli.core.kernels.common import SOFT_UNIT, quantile_factors

__all__ = [
    "SOFT_UNIT",
    "align_location",
    "align_offset",
    "align_quantile",
    "argmax",
    "count_cells",
    "count_cells_soft",
    "quantile_factors",
    "wanted",
]

_FAST = {"cpu": "numba_kernels", "cuda": "triton_kernels"}


def argmax(logits: Tensor) -> Tensor:
    """The network's own class ids.

    Args:
        logits: ``[N, C, *spatial]`` floating point, finite.

    Returns:
        uint8 ``[N, *spatial]``, int16 where there are more than 256 classes; the lowest class among equals.
    """
    flat = logits.flatten(2) if logits.dim() > 2 else logits.unsqueeze(2)
    ids: Tensor = _choose("argmax", logits)(flat)
    return ids.view(logits.shape[0], *logits.shape[2:])


def count_cells(counts: Tensor, logits: Tensor, labels: Tensor, limit: float) -> None:
    """Histogram every channel under the pixel's label.

    Args:
        counts: float64 ``[C, C, B]``: label, channel, bin ``floor(z B / (2 limit)) + B / 2``; B a power of two. The
            pixels are added to it.
        logits: ``[N, C, P]`` floating point, every value in ``[-limit, limit)``.
        labels: ``[N, P]`` integers; pixels outside ``[0, C)`` are left out.
        limit: half the axis, a power of two.
    """
    _choose("count_cells", logits)(counts, logits, labels, limit)


def count_cells_soft(counts: Tensor, logits: Tensor, limit: float) -> None:
    """Histogram every channel under every label, weighted by the label's softmax probability.

    Args:
        counts: float64 ``[C, C, B]``, as in :func:`count_cells`. The added weights are multiples of :data:`SOFT_UNIT`,
            each probability rounded to the nearest, so sums are exact in any order.
        logits: ``[N, C, P]`` floating point, every value in ``[-limit, limit)``.
        limit: half the axis, a power of two.
    """
    _choose("count_cells_soft", logits)(counts, logits, limit)


def align_quantile(logits: Tensor, factors: Tensor, limit: float) -> Tensor:
    """Class ids by the quantile form: per channel and bin, one factor for every hypothesis.

    ``score_c = f_c + Δ[c, c](f_c) − log Σ_l exp(f_l + Δ[c, l](f_l))``; exponentials are compared, no logarithm taken.

    Args:
        logits: ``[N, C, P]`` floating point, finite.
        factors: float32 ``[C, B, S]``, :func:`quantile_factors` of the shifts Δ at the bins' centres. The shifts of
            one hypothesis span 64 at most, so that nothing that counts vanishes in float32.
        limit: half the axis; a logit outside takes the outermost bin's shift.

    Returns:
        ``argmax_c score_c``, ``[N, P]``, as :func:`argmax` gives it.
    """
    ids: Tensor = _choose("align_quantile", logits)(logits, factors, limit)
    return ids


def align_location(logits: Tensor, shifts: Tensor) -> Tensor:
    """Class ids by the location form: constant shifts, one small matrix product.

    Args:
        logits: ``[N, C, P]`` floating point, finite.
        shifts: float32 ``[C, C]``: ``τ L[c, l]``, hypothesis and channel; those of one hypothesis span 64 at most.

    Returns:
        ``argmax_c f_c + L[c, c] − log Σ_l exp(f_l + L[c, l])``, ``[N, P]``, as :func:`argmax` gives it.
    """
    ids: Tensor = _choose("align_location", logits)(logits, shifts)
    return ids


def align_offset(logits: Tensor, offsets: Tensor) -> Tensor:
    """Class ids after one offset per class.

    Args:
        logits: ``[N, C, P]`` floating point, finite.
        offsets: float32 ``[C]``.

    Returns:
        ``argmax_c f_c + offsets[c]``, ``[N, P]``, as :func:`argmax` gives it.
    """
    ids: Tensor = _choose("align_offset", logits)(logits, offsets)
    return ids


def wanted() -> str | None:
    """The implementation that ``BLDA_KERNELS`` in the environment asks for.

    Returns:
        ``"torch"``: torch's, on any device. ``"triton"``: Triton's on CUDA, its errors shown. None: the fastest that
        works.

    Raises:
        ValueError: it is something else.
    """
    name = os.environ.get("BLDA_KERNELS") or None
    if name not in (None, "torch", "triton"):
        raise ValueError(f"BLDA_KERNELS={name} in the environment: it must be torch or triton, or unset")
    return name


def _choose(kernel: str, logits: Tensor) -> Callable[..., Any]:
    """The fastest implementation of a kernel for these logits."""
    fast = _fast(logits.device, wanted())
    chosen: Callable[..., Any] = getattr(fast, kernel, None) or getattr(torch_kernels, kernel)
    return chosen


@cache
def _fast(device: torch.device, wanted: str | None) -> ModuleType | None:
    """The compiled kernels for a device; None where torch's are to be used.

    numba may not be installed, or find no folder to keep compiled code in. Triton comes with torch, but needs a C
    compiler and a card that it supports; only running a kernel shows that.
    """
    name = _FAST.get(device.type)
    if name is None or wanted == "torch":
        return None
    try:
        module = import_module(f"{__name__}.{name}")
        if device.type == "cuda":
            module.argmax(torch.zeros(1, 1, 1, device=device))
    except Exception:  # whatever the compiler raises
        if name == f"{wanted}_kernels":
            raise
        return None
    return module
