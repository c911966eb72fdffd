"""Collectives between the processes of ``torchrun``: join, wait, sum, maximum."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from blda_cli.errors import BldaError
from blda_cli.runtime.shards import Shard, current_shard

# Processes reach the end of their shares hours apart, and wait while the first validates and writes; torch's own
# patience is half an hour. torchrun ends the others when one fails.
_PATIENCE = timedelta(days=30)


@contextmanager
def process_group(device: torch.device | None = None) -> Iterator[None]:
    """Join the other processes, where there are some; none leaves before all have come to the end of their work.

    A process that leaves early closes its connections, which would end the others while they still work.

    Args:
        device: of this process' tensors that are added up; None where there are none.

    Raises:
        BldaError: they cannot be reached.
    """
    if current_shard().world == 1:
        yield
        return
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    with _together():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield
        wait_for_all(current_shard())
    finally:
        # DistributedDataParallel holds the group, within a cycle. A group that is left to the interpreter's exit ends
        # the process with SIGABRT now and then.
        gc.collect()
        dist.destroy_process_group()


def wait_for_all(shard: Shard) -> None:
    """Barrier over the processes that share the work; returns at once in a single process.

    Raises:
        BldaError: another one has stopped.
    """
    if shard.world > 1:
        with _together():
            dist.barrier()


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


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        shard = current_shard()
        raise BldaError(
            f"process {shard.rank} of {shard.world} cannot reach the others: one has stopped, or WORLD_SIZE is set "
            "outside of torchrun"
        ) from error
