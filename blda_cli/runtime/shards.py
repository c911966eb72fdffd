"""Dividing images over the processes of ``torchrun``; each writes its own part, the first puts them together."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


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


def current_shard() -> Shard:
    """The process that ``torchrun`` made this, or the only one."""
    return Shard(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
