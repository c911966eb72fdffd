"""Dividing images over the processes of ``torchrun``; each writes its own part, the first puts them together."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch

from blda_cli.errors import BldaError

T = TypeVar("T")

# Processes reach the end hours apart; torch's own patience is half an hour.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Shard:
    """One process among ``world``.

    Attributes:
        rank: from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that puts the parts together."""
        return self.rank == 0

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This process' share of the items."""
        return items[self.rank :: self.world]

    def path(self, path: Path, rank: int | None = None) -> Path:
        """Where a process keeps its part of ``path``: beside it, hidden; ``path.partial`` for a process alone."""
        rank = self.rank if rank is None else rank
        part = "" if self.world == 1 else f".{rank}-of-{self.world}"
        return path.with_name(f"{path.name}{part}.partial")

    def wait(self) -> None:
        """Wait until every process is here.

        Raises:
            BldaError: another one has stopped, or this was not started by ``torchrun``.
        """
        if self.world == 1:
            return
        try:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
            torch.distributed.barrier()
        except (RuntimeError, ValueError) as error:
            raise BldaError(
                f"process {self.rank} of {self.world} cannot reach the others: one has stopped, or WORLD_SIZE is set "
                "outside of torchrun"
            ) from error


def current_shard() -> Shard:
    """The process that ``torchrun`` made this, or the only one."""
    return Shard(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
