# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The kernels fused for CUDA, in Triton, which comes with torch there: a pass or two over the logits, then ids."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from blda_cli.core.kernels.common import SOFT_UNIT, empty_ids, quantile_factors

_PIXELS = 1024  # a program's, where every lane is a pixel
_TILE = 4096  # elements of a program's tile of pixels and classes


def argmax(logits: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.argmax`."""
    return align_offset(logits, torch.zeros(logits.shape[1], device=logits.device))


def align_offset(logits: Tensor, offsets: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_offset`."""
    ids = empty_ids(logits)
    _launch(_offset, _PIXELS, logits, offsets, ids)
    return ids


def count_cells(counts: Tensor, logits: Tensor, labels: Tensor, limit: float) -> None:
    """See :func:`blda_cli.core.kernels.count_cells`."""
    bins = counts.shape[2]
    _launch(_count, _PIXELS, logits, labels, *labels.stride(), counts, bins / (2 * limit), bins)


def count_cells_soft(counts: Tensor, logits: Tensor, limit: float) -> None:
    """See :func:`blda_cli.core.kernels.count_cells_soft`."""
    num_classes, _, bins = counts.shape
    # Channel, bin, label: a pixel adds one row of neighbours per channel, which the cache takes sector by sector.
    sums = torch.zeros(num_classes, bins, num_classes, dtype=torch.int64, device=logits.device)
    width, block = _tile(num_classes)
    _launch(_count_soft, block, logits, sums, bins / (2 * limit), bins, width)
    counts += sums.permute(2, 0, 1) * SOFT_UNIT


def align_quantile(logits: Tensor, factors: Tensor, limit: float) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_quantile`."""
    ids = empty_ids(logits)
    num_classes, bins, stride = factors.shape
    width, block = _tile(num_classes)
    _launch(_align, block, logits, factors, ids, bins / (2 * limit), bins, stride, width)
    return ids


def align_location(logits: Tensor, shifts: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_location`."""
    return align_quantile(logits, quantile_factors(shifts.unsqueeze(2)), 1.0)  # one bin holds every logit


def _tile(num_classes: int) -> tuple[int, int]:
    """Classes, rounded up as Triton needs it, and pixels of a program's tile."""
    width = triton.next_power_of_2(num_classes)
    return width, max(16, _TILE // width)


def _launch(kernel: Any, block: int, logits: Tensor, *arguments: object) -> None:
    images, num_classes, pixels = logits.shape
    with torch.cuda.device_of(logits):  # Triton launches on the current device, wherever the tensors are
        kernel[triton.cdiv(pixels, block), images](
            logits, *logits.stride(), *arguments, C=num_classes, pixels=pixels, BLOCK=block
        )


@triton.jit
def _offset(logits, of_image, of_class, of_pixel, offsets, ids, C: tl.constexpr, pixels, BLOCK: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    values = logits + image * of_image + pixel * of_pixel
    highest = tl.load(values, inside, other=0.0).to(tl.float32) + tl.load(offsets)
    winner = tl.zeros([BLOCK], tl.int32)
    for c in range(1, C):
        values += of_class
        value = tl.load(values, inside, other=0.0).to(tl.float32) + tl.load(offsets + c)
        winner = tl.where(value > highest, c, winner)
        highest = tl.maximum(value, highest)
    tl.store(ids + image * pixels + pixel, winner, inside)


@triton.jit
def _bin(values, scale, BINS: tl.constexpr):
    index = tl.floor(values * scale).to(tl.int32) + BINS // 2
    return tl.minimum(tl.maximum(index, 0), BINS - 1)


@triton.jit
def _count(
    logits, of_image, of_class, of_pixel, labels, labels_of_image, labels_of_pixel, counts, scale,
    BINS: tl.constexpr, C: tl.constexpr, pixels, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    label = tl.load(labels + image * labels_of_image + pixel * labels_of_pixel, inside, other=0).to(tl.int32)
    counted = inside & (label >= 0) & (label < C)
    values = logits + image * of_image + pixel * of_pixel
    cells = counts + label * (C * BINS)
    one = tl.full([BLOCK], 1, counts.dtype.element_ty)
    for _ in range(C):
        value = tl.load(values, inside, other=0.0).to(tl.float32)
        tl.atomic_add(cells + _bin(value, scale, BINS), one, counted, sem="relaxed")
        values += of_class
        cells += BINS


@triton.jit
def _count_soft(
    logits, of_image, of_class, of_pixel, sums, scale,
    BINS: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, pixels, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    label = tl.arange(0, WIDTH)
    values = logits + image * of_image + pixel * of_pixel
    tile = (label < C)[None, :] & inside[:, None]
    value = tl.load(values[:, None] + label[None, :] * of_class, tile, other=-float("inf")).to(tl.float32)
    value = tl.where(inside[:, None], value, 0.0)
    weight = tl.exp(value - tl.max(value, axis=1)[:, None])
    weight = (weight * (65536.0 / tl.sum(weight, axis=1))[:, None] + 0.5).to(tl.int32)
    tile = tile & (weight > 0)
    weight = weight.to(sums.dtype.element_ty)
    for c in range(C):
        row = c * BINS + _bin(tl.load(values, inside, other=0.0).to(tl.float32), scale, BINS)
        tl.atomic_add(sums + row[:, None] * C + label[None, :], weight, tile, sem="relaxed")
        values += of_class


@triton.jit
def _align(
    logits, of_image, of_class, of_pixel, factors, ids, scale,
    BINS: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, pixels, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    hypothesis = tl.arange(0, WIDTH)
    values = logits + image * of_image + pixel * of_pixel
    highest = tl.load(values, inside, other=0.0).to(tl.float32)
    for c in range(1, C):
        highest = tl.maximum(highest, tl.load(values + c * of_class, inside, other=0.0).to(tl.float32))
    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    own = tl.zeros([BLOCK, WIDTH], tl.float32)
    for c in range(C):
        value = tl.load(values, inside, other=0.0).to(tl.float32)
        row = c * BINS + _bin(value, scale, BINS)
        factor = tl.load(
            factors + row[:, None] * STRIDE + hypothesis[None, :], (hypothesis < STRIDE)[None, :], other=1.0
        )
        term = tl.exp(value - highest)[:, None] * factor.to(tl.float32)
        total += term
        own = tl.where((hypothesis == c)[None, :], term, own)
        values += of_class
    score = tl.where((hypothesis < C)[None, :], own / total, -1.0)
    tl.store(ids + image * pixels + pixel, tl.argmax(score, axis=1, tie_break_left=True), inside)
