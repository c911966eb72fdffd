"""The kernels in plain torch, block by block so that temporaries stay in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

SOFT_UNIT = 2.0**-16

# Pixels a block: large enough that a block keeps the device busy, small enough that its temporaries
# (a few times C values a pixel) stay in a CPU's cache or a small share of a GPU's memory.
_CPU_BLOCK = 1 << 14
_GPU_BLOCK = 1 << 20


def count_cells(logits: Tensor, labels: Tensor, bins: int, limit: float) -> Tensor:
    """See :func:`blda_cli.core.kernels.count_cells`."""
    num_classes = logits.shape[1]
    counts = torch.zeros(num_classes * num_classes * bins, dtype=torch.int64, device=logits.device)
    channel = torch.arange(num_classes, device=logits.device).mul_(bins).unsqueeze(1)
    for image, block in _blocks(logits):
        label = labels[image, block].long()
        kept = (label >= 0) & (label < num_classes)
        # A pixel without a label would need a mask on all its C channels: it is sent to label 0 with weight 0 by
        # being dropped beforehand, which costs nothing where every pixel is labelled.
        values = logits[image, :, block]
        if not bool(kept.all()):
            values, label = values[:, kept], label[kept]
        index = _bin_index(values, bins, limit) + channel + label * (num_classes * bins)
        counts += torch.bincount(index.flatten(), minlength=counts.numel())
    return counts.view(num_classes, num_classes, bins)


def count_cells_soft(logits: Tensor, probabilities: Tensor, bins: int, limit: float) -> Tensor:
    """See :func:`blda_cli.core.kernels.count_cells_soft`."""
    num_classes = logits.shape[1]
    # [channel, bin, label], so that a pixel adds one contiguous row of C weights per channel.
    sums = torch.zeros(num_classes * bins, num_classes, dtype=torch.int64, device=logits.device)
    channel = torch.arange(num_classes, device=logits.device).mul_(bins).unsqueeze(1)
    for image, block in _blocks(logits):
        index = _bin_index(logits[image, :, block], bins, limit) + channel
        weights = (probabilities[image, :, block].float() / SOFT_UNIT).round_().long().T.contiguous()
        for row in index:
            sums.index_add_(0, row, weights)
    return sums.view(num_classes, bins, num_classes).permute(2, 0, 1).double() * SOFT_UNIT


def align_quantile(logits: Tensor, factors: Tensor, own: Tensor, limit: float) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_quantile`."""
    num_classes, bins, _ = factors.shape
    table = factors.view(num_classes * bins, num_classes)
    channel = torch.arange(num_classes, device=logits.device).mul_(bins).unsqueeze(1)
    ids = torch.empty(logits.shape[0], logits.shape[2], dtype=torch.int64, device=logits.device)
    for image, block in _blocks(logits):
        values = logits[image, :, block].float()
        index = _bin_index(values, bins, limit).clamp_(0, bins - 1) + channel
        weights = (values - values.amax(dim=0)).exp_()
        sums = torch.nn.functional.embedding_bag(
            index.T.contiguous(), table, per_sample_weights=weights.T.contiguous(), mode="sum"
        )
        scores = (values + own.view(-1)[index]).T - sums.log_()
        ids[image, block] = scores.argmax(dim=1)
    return ids


def align_location(logits: Tensor, shifts: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_location`."""
    own = shifts.diagonal()[:, None]
    # Adding a constant to all of a hypothesis' shifts changes nothing; this one keeps the exponentials in range.
    largest = shifts.amax(dim=1, keepdim=True)
    factors = (shifts - largest).exp()
    own = own - largest
    ids = torch.empty(logits.shape[0], logits.shape[2], dtype=torch.int64, device=logits.device)
    for image, block in _blocks(logits):
        values = logits[image, :, block].float()
        weights = (values - values.amax(dim=0)).exp_()
        scores = values.add(own).sub_((factors @ weights).log_())
        ids[image, block] = scores.argmax(dim=0)
    return ids


def align_offset(logits: Tensor, offsets: Tensor) -> Tensor:
    """See :func:`blda_cli.core.kernels.align_offset`."""
    ids = torch.empty(logits.shape[0], logits.shape[2], dtype=torch.int64, device=logits.device)
    for image, block in _blocks(logits):
        ids[image, block] = (logits[image, :, block] + offsets[:, None]).argmax(dim=0)
    return ids


def _bin_index(values: Tensor, bins: int, limit: float) -> Tensor:
    """``floor(z B / (2 limit)) + B / 2``; exact, because the scale is a power of two and the floor comes first."""
    return (values.float() * (bins / (2 * limit))).floor_().long().add_(bins // 2)


def _blocks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Every image's pixels in blocks."""
    size = _CPU_BLOCK if logits.device.type == "cpu" else _GPU_BLOCK
    for image in range(logits.shape[0]):
        for start in range(0, logits.shape[2], size):
            yield image, slice(start, start + size)
