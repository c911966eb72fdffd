"""The kernels in plain torch, block by block so that temporaries stay small; they run anywhere torch runs."""

from collections.abc import Iterator

import torch
from torch import Tensor

from blda_cli.core.kernels.common import SOFT_UNIT, empty_ids, id_type, location_factors

# Logits a block: on a CPU so few that the temporaries stay in its cache. On a GPU, where every block is launched anew,
# as many as temporaries of this share of all logits' memory allow, but no fewer than keep it busy.
_CPU_BLOCK = 1 << 18
_SMALLEST_GPU_BLOCK = 1 << 20
_SHARE = 0.45
_OF_PIXEL = 24


def argmax(logits: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.argmax`."""
    ids = empty_ids(logits)
    for image, block in _blocks(logits, 0):
        ids[image, block] = _argmax(logits[image, :, block])
    return ids


def count_cells(counts: Tensor, logits: Tensor, labels: Tensor, limit: float) -> None:
    """See :func:`blda_cli.core.kernels.count_cells`."""
    num_classes, _, bins = counts.shape
    # Channel first, so that the channels are independent rows; one label more takes the pixels without one.
    sums = torch.zeros(num_classes, (num_classes + 1) * bins, dtype=torch.int32, device=logits.device)
    one = torch.ones((), dtype=torch.int32, device=logits.device)
    for image, block in _blocks(logits, 20):
        label = labels[image, block].long()
        label = torch.where((label >= 0) & (label < num_classes), label, num_classes)
        index = _bins(logits[image, :, block].float(), bins, limit).long().add_(label * bins)
        sums.scatter_add_(1, index, one.expand_as(index))
    counts += sums.view(num_classes, num_classes + 1, bins)[:, :num_classes].transpose(0, 1)


def count_cells_soft(counts: Tensor, logits: Tensor, limit: float) -> None:
    """See :func:`blda_cli.core.kernels.count_cells_soft`."""
    num_classes, _, bins = counts.shape
    # Sums of integers below 2^53 are exact in float64, which has the fast path for rows; channel, bin, label, so
    # that a pixel adds one row of C neighbours per channel.
    sums = torch.zeros(num_classes, bins, num_classes, dtype=torch.float64, device=logits.device)
    for image, block in _blocks(logits, 28, of_half=4):
        values = logits[image, :, block].float()
        weights = _softmax(values).div_(SOFT_UNIT).round_().T.to(torch.float64, memory_format=torch.contiguous_format)
        for channel, index in enumerate(_bins(values, bins, limit).long()):
            sums[channel].scatter_add_(0, index.unsqueeze(1).expand_as(weights), weights)
    counts += sums.permute(2, 0, 1).mul_(SOFT_UNIT)


def align_quantile(logits: Tensor, factors: Tensor, limit: float) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_quantile`."""
    num_classes, bins, width = factors.shape
    table = factors.view(num_classes * bins, width)
    own = factors.diagonal(dim1=0, dim2=2).T.contiguous()
    channel = torch.arange(0, num_classes * bins, bins, dtype=torch.int32, device=logits.device).unsqueeze(1)
    ids = empty_ids(logits)
    for image, block in _blocks(logits, 34):
        values = logits[image, :, block].float()
        index = _bins(values, bins, limit)
        weights = _exponentials(values)
        del values  # converted from half precision, it would take room beside what follows
        own_factors = own.gather(1, index.long())
        sums = torch.nn.functional.embedding_bag(
            index.add_(channel).T.contiguous(), table, per_sample_weights=weights.T.contiguous(), mode="sum"
        )
        # exp(score) = exp(f_c) factor_c / sum_c: no logarithm is needed to compare the hypotheses.
        scores = weights.mul_(own_factors).div_(sums[:, :num_classes].T)
        ids[image, block] = _argmax(scores)
    return ids


def align_location(logits: Tensor, shifts: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_location`."""
    factors = location_factors(shifts)
    ids = empty_ids(logits)
    for image, block in _blocks(logits, 8, of_half=4):
        weights = _exponentials(logits[image, :, block].float())
        # exp(score_c) = exp(f_c) / Σ_l exp(f_l) exp(L[c, l] − L[c, c])
        ids[image, block] = _argmax(weights.div_(factors @ weights))
    return ids


def align_offset(logits: Tensor, offsets: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_offset`."""
    ids = empty_ids(logits)
    for image, block in _blocks(logits, 4, of_half=4):
        ids[image, block] = _argmax(logits[image, :, block].float() + offsets.unsqueeze(1))
    return ids


def _exponentials(values: Tensor) -> Tensor:
    """``exp(f_c − max f)`` of float32 ``[C, P]``."""
    return (values - values.amax(dim=0)).exp_()


def _softmax(values: Tensor) -> Tensor:
    """Softmax over the first of two dimensions, which for a pixel does not depend on the pixels beside it.

    ``torch.softmax`` and ``sum`` add up in an order that depends on the number of pixels, and round accordingly.
    """
    exponentials = _exponentials(values)
    total = exponentials[0].clone()
    for exponential in exponentials[1:]:
        total += exponential
    return exponentials.div_(total)


def _argmax(scores: Tensor) -> Tensor:
    """Argmax over the first of two dimensions, the lowest index among equals.

    On a CPU ``torch.argmax`` is several times slower than these two passes, which the compiler vectorises.
    """
    if not _on_cpu(scores):
        return scores.argmax(dim=0)
    num_classes = scores.shape[0]
    rank = torch.arange(num_classes - 1, -1, -1, dtype=id_type(num_classes)).unsqueeze(1)
    return num_classes - 1 - scores.eq(scores.amax(dim=0)).mul(rank).amax(dim=0)


def _bins(values: Tensor, bins: int, limit: float) -> Tensor:
    """``floor(z B / (2 limit)) + B / 2`` as int32, the outermost bin for values outside.

    Exact, because the scale is a power of two and the floor comes first.
    """
    index = (values * (bins / (2 * limit))).floor_().clamp_(-bins // 2, bins // 2 - 1)
    return index.to(torch.int32).add_(bins // 2)


def _blocks(logits: Tensor, temporaries: int, of_half: int = 0) -> Iterator[tuple[int, slice]]:
    """Every image's pixels in blocks.

    Args:
        logits: ``[N, C, P]``.
        temporaries: bytes of them for each logit; for each pixel there are some more.
        of_half: bytes for each logit of half precision beyond that.
    """
    images, num_classes, pixels = logits.shape
    most = _CPU_BLOCK
    if not _on_cpu(logits):
        width = logits.element_size()
        each = temporaries + (of_half if width < 4 else 0) + _OF_PIXEL / num_classes
        room = images * pixels * (_SHARE * num_classes * width - 1)  # 1: an id
        most = max(_SMALLEST_GPU_BLOCK, int(room / each))
    size = max(1, most // num_classes)
    for image in range(images):
        for start in range(0, pixels, size):
            yield image, slice(start, start + size)


def _on_cpu(values: Tensor) -> bool:
    return values.device.type == "cpu"
