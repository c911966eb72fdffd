"""Sums and maxima over the processes that ``torchrun`` started."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from blda_cli.runtime.shards import current_shard


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes, where there are some; ``device`` is this one's."""
    if current_shard().world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The others wait while the first validates and writes.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=6))
    try:
        yield
    finally:
        dist.destroy_process_group()


def all_sum(values: Tensor) -> Tensor:
    """The sum over all processes, the same in each."""
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.SUM)
    return values


def all_maximum(values: Tensor) -> Tensor:
    """The elementwise maximum over all processes, the same in each."""
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values
