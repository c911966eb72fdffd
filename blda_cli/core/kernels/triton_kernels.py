# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The kernels fused for CUDA, in Triton, which comes with torch there: a pass or two over the logits, then ids."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from blda_cli.core.kernels.common import SOFT_UNIT, empty_ids, location_factors

_PIXELS = 1024  # a program's, where every lane is a pixel
_COUNTED = 512  # the same where every lane counts: fewer wait for each other's additions
_TILE = 4096  # elements of a program's tile of pixels and classes
_STEP = 32  # classes a matrix product takes at a time: with more, or more pixels, registers spill
# As exact as float32: each product as three of 19-bit numbers on NVIDIA's tensor cores. AMD's have no such mode.
_PRECISION = tl.constexpr("ieee" if torch.version.hip else "tf32x3")


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
    sums = torch.zeros_like(counts, dtype=torch.int32)  # which a GPU adds up faster than float64
    _launch(_count, _COUNTED, logits, labels, *labels.stride(), sums, bins / (2 * limit), bins)
    counts += sums


def count_cells_soft(counts: Tensor, logits: Tensor, limit: float) -> None:
    """See :func:`blda_cli.core.kernels.count_cells_soft`."""
    num_classes, _, bins = counts.shape
    # Channel, bin, label: a pixel adds one row of neighbours per channel, which the cache takes sector by sector.
    sums = torch.zeros(num_classes, bins, num_classes, dtype=torch.int64, device=logits.device)
    width = triton.next_power_of_2(num_classes)
    block = max(16, _TILE // width)
    # Unfused, so that a weight is the same in every variant that Triton compiles for other strides and alignments.
    _launch(_count_soft, block, logits, sums, bins / (2 * limit), bins, width, enable_fp_fusion=False)
    counts.add_(sums.permute(2, 0, 1), alpha=SOFT_UNIT)


def align_quantile(logits: Tensor, factors: Tensor, limit: float) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_quantile`."""
    ids = empty_ids(logits)
    num_classes, bins, stride = factors.shape
    width = triton.next_power_of_2(num_classes)
    block = max(16, _TILE // width)
    _launch(_align, block, logits, factors, ids, bins / (2 * limit), bins, stride, width)
    return ids


def align_location(logits: Tensor, shifts: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_location`."""
    ids = empty_ids(logits)
    num_classes = logits.shape[1]
    step = min(max(triton.next_power_of_2(num_classes), 16), _STEP)
    # One product: what was fastest on an H100. Several: what fits the registers of compute capability 8.0 and 9.0.
    block = 64 if num_classes > step else 256 if logits.dtype is torch.float32 else 128
    _launch(_location, block, logits, location_factors(shifts), ids, step)
    return ids


def _launch(kernel: Any, block: int, logits: Tensor, *arguments: object, **options: object) -> None:
    images, num_classes, pixels = logits.shape
    with torch.cuda.device_of(logits):  # Triton launches on the current device, wherever the tensors are
        kernel[triton.cdiv(pixels, block), images](
            logits, *logits.stride(), *arguments, C=num_classes, pixels=pixels, BLOCK=block, **options
        )


@triton.jit
def _offset(logits, of_image, of_class, of_pixel, offsets, ids, C: tl.constexpr, pixels, BLOCK: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    values = logits + image * of_image + pixel.to(tl.int64) * of_pixel
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
def _highest(values, of_class, inside, C: tl.constexpr):
    """The highest logit of each pixel."""
    highest = tl.load(values, inside, other=0.0).to(tl.float32)
    for _ in range(1, C):
        values += of_class
        highest = tl.maximum(highest, tl.load(values, inside, other=0.0).to(tl.float32))
    return highest


@triton.jit
def _tile(values, of_class, channel, inside, C: tl.constexpr):
    """Logits of some channels ``[BLOCK, channels]``: −∞ beyond the last, 0 at pixels outside the image."""
    there = (channel < C)[None, :] & inside[:, None]
    value = tl.load(values[:, None] + channel.to(tl.int64)[None, :] * of_class, there, other=-float("inf"))
    return tl.where(inside[:, None], value.to(tl.float32), 0.0)


@triton.jit
def _count(
    logits, of_image, of_class, of_pixel, labels, labels_of_image, labels_of_pixel, sums, scale,
    BINS: tl.constexpr, C: tl.constexpr, pixels, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    label = tl.load(labels + image * labels_of_image + pixel.to(tl.int64) * labels_of_pixel, inside, other=0)
    label = label.to(tl.int64)
    counted = inside & (label >= 0) & (label < C)
    values = logits + image * of_image + pixel.to(tl.int64) * of_pixel
    cells = sums + label * (C * BINS)
    one = tl.full([BLOCK], 1, sums.dtype.element_ty)
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
    values = logits + image * of_image + pixel.to(tl.int64) * of_pixel
    highest = _highest(values, of_class, inside, C)
    # Summed class by class: tl.sum over the tile adds up in an order that depends on the layout, and a weight near
    # half a unit would round either way.
    total = tl.zeros([BLOCK], tl.float32)
    of_channel = values
    for _ in range(C):
        total += tl.exp(tl.load(of_channel, inside, other=0.0).to(tl.float32) - highest)
        of_channel += of_class
    weight = tl.exp(_tile(values, of_class, label, inside, C) - highest[:, None])
    weight = (weight * (65536.0 / total)[:, None] + 0.5).to(tl.int32)
    counted = (label < C)[None, :] & inside[:, None] & (weight > 0)
    weight = weight.to(sums.dtype.element_ty)
    for c in range(C):
        row = c * BINS + _bin(tl.load(values, inside, other=0.0).to(tl.float32), scale, BINS)
        tl.atomic_add(sums + row[:, None] * C + label[None, :], weight, counted, sem="relaxed")
        values += of_class


@triton.jit
def _location(
    logits, of_image, of_class, of_pixel, factors, ids,
    STEP: tl.constexpr, C: tl.constexpr, pixels, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    values = logits + image * of_image + pixel.to(tl.int64) * of_pixel
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, C, STEP):
        tile = _tile(values, of_class, start + tl.arange(0, STEP), inside, C)
        highest = tl.maximum(highest, tl.max(tile, axis=1))
    best = tl.full([BLOCK], -1.0, tl.float32)
    winner = tl.zeros([BLOCK], tl.int32)
    for first in range(0, C, STEP):
        hypothesis = first + tl.arange(0, STEP)
        total = tl.zeros([BLOCK, STEP], tl.float32)
        own = tl.zeros([BLOCK, STEP], tl.float32)
        for start in range(0, C, STEP):
            channel = start + tl.arange(0, STEP)
            weight = tl.exp(_tile(values, of_class, channel, inside, C) - highest[:, None])
            own = tl.where(start == first, weight, own)
            known = (channel < C)[:, None] & (hypothesis < C)[None, :]
            factor = tl.load(factors + hypothesis[None, :] * C + channel[:, None], known, other=0.0)
            total = tl.dot(weight, factor, total, input_precision=_PRECISION)
        score = tl.where((hypothesis < C)[None, :], own / total, -1.0)
        ahead = tl.max(score, axis=1) > best
        winner = tl.where(ahead, first + tl.argmax(score, axis=1, tie_break_left=True), winner)
        best = tl.maximum(best, tl.max(score, axis=1))
    tl.store(ids + image * pixels + pixel, winner, inside)


@triton.jit
def _align(
    logits, of_image, of_class, of_pixel, factors, ids, scale,
    BINS: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, pixels, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    hypothesis = tl.arange(0, WIDTH)
    values = logits + image * of_image + pixel.to(tl.int64) * of_pixel
    highest = _highest(values, of_class, inside, C)
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
