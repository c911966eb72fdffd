"""CPU kernels compiled by numba (extra ``fast``), for the operations whose temporaries are expensive in torch.

The loops release the interpreter's lock and are called from a few threads; each thread owns what it writes, so
results depend on neither their number nor the block size.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from blda_cli.core.kernels import torch_kernels
from blda_cli.core.kernels.common import SOFT_UNIT, empty_ids

_BLOCK = 512  # pixels: a block's temporaries, 12 bytes a logit, stay in the first two levels of cache
_PADDED = _BLOCK + 16  # rows a power of two apart would share a few cache sets
_TASK = 1 << 13  # pixels a thread takes at a time: a millisecond's work
_CHUNK = 1 << 20  # logits converted at a time where they are not float32 rows already
_SOFT_CHUNK = (1 << 16) - 1  # pixels whose weights, 2^16 at most each, add up in 32 bits

_LOG2_E = np.float32(1 / math.log(2))
_LOWEST_EXPONENT = np.float32(-87)  # exp of it is still a normal float32
# 2^f = Σ (f ln 2)^k / k!, good to 1e-6 for |f| ≤ ½ with the powers up to 6.
_P1, _P2, _P3, _P4, _P5, _P6 = (np.float32(math.log(2) ** k / math.factorial(k)) for k in range(1, 7))
_HALF, _ONE = np.float32(0.5), np.float32(1)
_SOFT_SCALE = np.float32(1 / SOFT_UNIT)

Array = NDArray[Any]


def argmax(logits: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.argmax`."""
    if logits.dtype is torch.float64:  # whose differences float32 could not represent
        return torch_kernels.argmax(logits)
    return align_offset(logits, torch.zeros(logits.shape[1]))


def align_offset(logits: Tensor, offsets: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_offset`."""
    ids, added = empty_ids(logits), offsets.float().numpy()
    for image, start, values in _rows(logits):
        out = ids[image, start : start + values.shape[1]].numpy()
        _in_threads(_highest, values.shape[1], _TASK, values, added, out)
    return ids


def count_cells(counts: Tensor, logits: Tensor, labels: Tensor, limit: float) -> None:
    """See :func:`blda_cli.core.kernels.count_cells`."""
    cells, scale = counts.numpy(), _scale(counts.shape[2], limit)
    for image, start, values in _rows(logits):
        label = labels[image, start : start + values.shape[1]].contiguous().numpy()
        _in_threads(_count, values.shape[0], 1, values, label, scale, cells)


def count_cells_soft(counts: Tensor, logits: Tensor, limit: float) -> None:
    """See :func:`blda_cli.core.kernels.count_cells_soft`."""
    cells, scale = counts.numpy(), _scale(counts.shape[2], limit)
    num_classes = logits.shape[1]
    share = -(-num_classes // torch.get_num_threads())
    # Rows of a multiple of 8 add up without a remainder.
    weights = np.zeros((min(_SOFT_CHUNK, logits.shape[2]), -(-num_classes // 8) * 8), np.uint32)
    for _, _, values in _rows(logits):
        for start in range(0, values.shape[1], _SOFT_CHUNK):
            size = min(_SOFT_CHUNK, values.shape[1] - start)
            _in_threads(_weigh, size, _TASK, values, start, weights)
            _in_threads(_count_soft, num_classes, share, values, start, weights[:size], scale, cells)


def align_quantile(logits: Tensor, factors: Tensor, limit: float) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_quantile`."""
    ids = empty_ids(logits)
    table, scale = factors.numpy(), _scale(factors.shape[1], limit)
    for image, start, values in _rows(logits):
        out = ids[image, start : start + values.shape[1]].numpy()
        _in_threads(_align, values.shape[1], _TASK, values, table, scale, out)
    return ids


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _highest(first: int, last: int, logits: Array, offsets: Array, ids: Array) -> None:
    highest, winner = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    for start in range(first, last, _BLOCK):
        size = min(_BLOCK, last - start)
        highest[:] = -np.inf
        winner[:] = 0
        for channel in range(logits.shape[0]):
            row, offset = logits[channel, start : start + size], offsets[channel]
            for j in range(size):
                score = row[j] + offset
                winner[j] = channel if score > highest[j] else winner[j]
                highest[j] = max(score, highest[j])
        for j in range(size):
            ids[start + j] = winner[j]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count(first: int, last: int, logits: Array, labels: Array, scale: np.float32, counts: Array) -> None:
    # One thread per channel: its cells are its own, and few enough to stay in the second level of cache.
    num_classes, _, bins = counts.shape
    index = np.empty(_BLOCK, np.int32)
    for channel in range(first, last):
        for start in range(0, logits.shape[1], _BLOCK):
            row = logits[channel, start : start + _BLOCK]
            _bin(row, scale, bins, index)
            for j in range(len(row)):
                label = np.int64(labels[start + j])
                if 0 <= label < num_classes:
                    counts[label, channel, index[j]] += 1.0


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _weigh(first: int, last: int, logits: Array, offset: int, weights: Array) -> None:
    num_classes = logits.shape[0]
    bits = np.empty((num_classes, _PADDED), np.int32)
    exponentials = bits.view(np.float32)
    unit = np.empty(_BLOCK, np.float32)
    for start in range(first, last, _BLOCK):
        size = min(_BLOCK, last - start)
        _exponentiate(logits, offset + start, size, exponentials, bits)
        unit[:] = 0
        for channel in range(num_classes):
            for j in range(size):
                unit[j] += exponentials[channel, j]
        for j in range(size):
            unit[j] = _SOFT_SCALE / unit[j]
        for channel in range(num_classes):
            for j in range(size):
                bits[channel, j] = np.int32(exponentials[channel, j] * unit[j] + _HALF)
        for j in range(size):
            for channel in range(num_classes):
                weights[start + j, channel] = bits[channel, j]


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _count_soft(
    first: int, last: int, logits: Array, offset: int, weights: Array, scale: np.float32, counts: Array
) -> None:
    num_classes, _, bins = counts.shape
    pixels, width = weights.shape
    # A pixel adds one row of neighbours, all its labels, and a channel's rows stay in the second level of cache.
    sums = np.zeros((bins, width), np.uint32)
    index = np.empty(_BLOCK, np.int32)
    for channel in range(first, last):
        lowest, highest = bins, 0
        for start in range(0, pixels, _BLOCK):
            size = min(_BLOCK, pixels - start)
            _bin(logits[channel, offset + start : offset + start + size], scale, bins, index)
            for j in range(size):
                lowest, highest = min(lowest, index[j]), max(highest, index[j])
                into, weight = sums[index[j]], weights[start + j]
                for label in range(width):
                    into[label] += weight[label]
        for label in range(num_classes):
            row = counts[label, channel]
            for b in range(lowest, highest + 1):
                row[b] += sums[b, label] * SOFT_UNIT
        sums[lowest : highest + 1] = 0


@njit(nogil=True, cache=True, fastmath={"contract"})  # type: ignore[untyped-decorator]
def _align(first: int, last: int, logits: Array, factors: Array, scale: np.float32, ids: Array) -> None:
    num_classes, bins, width = factors.shape
    bits = np.empty((num_classes, _PADDED), np.int32)
    weights = bits.view(np.float32)
    index = np.empty((num_classes, _PADDED), np.int32)
    sums, own = np.empty(width, np.float32), np.empty(width, np.float32)
    by_four = num_classes // 4 * 4
    for start in range(first, last, _BLOCK):
        size = min(_BLOCK, last - start)
        _exponentiate(logits, start, size, weights, bits)
        for channel in range(num_classes):
            _bin(logits[channel, start : start + size], scale, bins, index[channel])
        for j in range(size):
            sums[:] = 0
            # Four channels at a time: the sums are loaded and stored a quarter as often.
            for c in range(0, by_four, 4):
                row0, row1 = factors[c, index[c, j]], factors[c + 1, index[c + 1, j]]
                row2, row3 = factors[c + 2, index[c + 2, j]], factors[c + 3, index[c + 3, j]]
                w0, w1, w2, w3 = weights[c, j], weights[c + 1, j], weights[c + 2, j], weights[c + 3, j]
                own[c], own[c + 1] = w0 * row0[c], w1 * row1[c + 1]
                own[c + 2], own[c + 3] = w2 * row2[c + 2], w3 * row3[c + 3]
                for h in range(width):
                    sums[h] += w0 * row0[h] + w1 * row1[h] + w2 * row2[h] + w3 * row3[h]
            for c in range(by_four, num_classes):
                row, weight = factors[c, index[c, j]], weights[c, j]
                own[c] = weight * row[c]
                for h in range(width):
                    sums[h] += weight * row[h]
            # exp(score) = own / sum: no logarithm is needed to compare the hypotheses.
            highest, winner = np.float32(-1), 0
            for c in range(num_classes):
                score = own[c] / sums[c]
                if score > highest:
                    highest, winner = score, c
            ids[start + j] = winner


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _bin(values: Array, scale: np.float32, bins: int, index: Array) -> None:
    """``floor(values scale) + bins / 2``, the outermost bin for values outside."""
    lowest, highest = np.float32(-(bins // 2)), np.float32(bins // 2 - 1)
    for j in range(len(values)):
        index[j] = np.int32(min(max(math.floor(values[j] * scale), lowest), highest)) + bins // 2


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _exponentiate(logits: Array, start: int, size: int, exponentials: Array, bits: Array) -> None:
    """``exp(f_c − max f)`` of a block of pixels, to 1e-6; ``bits`` is a view of ``exponentials``.

    ``math.exp`` would be called for one value at a time; this is compiled to vector instructions.
    """
    num_classes = len(logits)
    highest, fraction = np.empty(size, np.float32), np.empty(size, np.float32)
    for j in range(size):
        highest[j] = logits[0, start + j]
    for channel in range(1, num_classes):
        row = logits[channel, start : start + size]
        for j in range(size):
            highest[j] = max(highest[j], row[j])
    for channel in range(num_classes):
        row, whole, result = logits[channel, start : start + size], bits[channel], exponentials[channel]
        for j in range(size):
            power = max(row[j] - highest[j], _LOWEST_EXPONENT) * _LOG2_E
            nearest = math.floor(power + _HALF)
            f = power - nearest
            fraction[j] = _ONE + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * (_P5 + f * _P6)))))
            whole[j] = (np.int32(nearest) + 127) << 23  # the bits of 2^nearest
        for j in range(size):
            result[j] *= fraction[j]


def _rows(logits: Tensor) -> Iterator[tuple[int, int, Array]]:
    """Image, first pixel and values: whole images of contiguous float32, else chunks converted to it."""
    whole = logits.dtype is torch.float32 and logits.is_contiguous()
    step = logits.shape[2] if whole else max(4 * _TASK, _CHUNK // logits.shape[1])
    for image in range(logits.shape[0]):
        for start in range(0, logits.shape[2], step):
            yield image, start, logits[image, :, start : start + step].float().contiguous().numpy()


def _scale(bins: int, limit: float) -> np.float32:
    return np.float32(bins / (2 * limit))


def _in_threads(loop: Callable[..., None], size: int, step: int, *arguments: object) -> None:
    """Call ``loop(first, last, *arguments)`` for steps of ``range(size)``, in as many threads as torch would use."""
    starts = range(0, size, step)
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        loop(0, size, *arguments)
    else:
        for _ in _pool(threads).map(lambda first: loop(first, min(first + step, size), *arguments), starts):
            pass


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="blda-kernels")
