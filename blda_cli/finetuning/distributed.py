"""Several processes under ``torchrun``: who this one is, and sums and maxima over all of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Which process this is; 0 without ``torchrun``."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are; 1 without ``torchrun``."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes, where ``torchrun`` started several.

    Args:
        device: as the user asked for it; on CUDA every process takes the GPU of its local rank.

    Yields:
        The device of this process.
    """
    if world_size() == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
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
