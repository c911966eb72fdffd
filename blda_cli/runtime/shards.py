"""Dividing images over processes.

Processes of ``torchrun`` communicate: each writes its own part, and the first merges them. The jobs of an array
(``--shard I/N``) do not: each writes an output of its own, and ``blda merge`` merges them.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from blda_cli.errors import BldaError

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
        """Whether this is the process that merges the parts."""
        return self.rank == 0

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This process' share of the items."""
        return items[self.rank :: self.world]

    def path(self, path: Path, rank: int | None = None) -> Path:
        """Where a process keeps its part of ``path``: beside it, hidden; ``path.partial`` for a process alone."""
        rank = self.rank if rank is None else rank
        part = "" if self.world == 1 else f".{rank}-of-{self.world}"
        return path.with_name(f"{path.name}{part}.partial")


@dataclass(frozen=True)
class ArrayShard:
    """One job of an array.

    Attributes:
        number: from 1.
        of: how many there are.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This job's share of the items."""
        return items[self.number - 1 :: self.of]

    def record(self, keys: Sequence[str]) -> dict[str, Any]:
        """JSON that identifies this share and the images it was taken from; ``keys`` are those of all images."""
        digest = hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()
        return {"number": self.number, "of": self.of, "images": len(keys), "keys": f"sha256:{digest}"}


def current_shard() -> Shard:
    """The process that ``torchrun`` made this, or the only one.

    Raises:
        BldaError: ``RANK`` and ``WORLD_SIZE`` are no numbers that torchrun would set.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isascii() and rank.isdigit() and world.isascii() and world.isdigit() and int(rank) < int(world)):
        raise BldaError(
            f"RANK={rank} and WORLD_SIZE={world} in the environment are none of torchrun's: unset them, or use torchrun"
        )
    return Shard(int(rank), int(world))


def processors() -> int:
    """Processors that this process may use: its share, where ``torchrun`` started several on this machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, usable // (int(share) if share.isdecimal() and int(share) else 1))
