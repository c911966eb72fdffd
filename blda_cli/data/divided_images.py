"""Images that are found, run, counted and predicted part by part where they are large."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Generic, Self, TypeVar

import numpy as np

from blda_cli.data.pixels import PixelFormat
from blda_cli.data.source import ImageSource, Window
from blda_cli.data.windows import touching
from blda_cli.errors import BldaError

BLOCK = 2048
"""Side of a part in pixels. Logits of 19 classes take 320 MB of one."""

LARGE = 1 << 24
"""Images of more pixels than this are divided, whatever the file that holds them."""

T = TypeVar("T")


@dataclass(frozen=True)
class DividedImage(ImageSource):
    """An image in a file of its own, or where that is large a part of it: ``ROW-COLUMN``, counted in blocks.

    Attributes:
        context: (height, width) of the windows that the network is run by, and their stride; see `with_context`.
    """

    context: Window | None = None

    @classmethod
    def found_in(cls, path: Path, key: str, pixels: PixelFormat) -> list[Self]:
        """See `ImageSource.found_in`."""
        whole = cls(path, key, pixels=pixels)
        with suppress(BldaError):  # which reading will say
            height, width = whole.whole_size()
            if height * width > LARGE:
                return [
                    cls(path, f"{key}/{row:03}-{column:03}", f"{row}-{column}", pixels)
                    for row in range(-(-height // BLOCK))
                    for column in range(-(-width // BLOCK))
                ]
        return [whole]

    @abstractmethod
    def whole_size(self) -> tuple[int, int]:
        """See `ImageSource.whole_size`."""

    @property
    def is_part(self) -> bool:
        """See `ImageSource.is_part`."""
        return bool(self.part)

    @property
    def labelled_as(self) -> str:
        """See `ImageSource.labelled_as`."""
        return str(PurePosixPath(self.key).parent) if self.is_part else self.key

    def with_context(self, window: tuple[int, int], stride: tuple[int, int]) -> ImageSource:
        """See `ImageSource.with_context`."""
        return replace(self, context=(window, stride)) if self.is_part else self

    @property
    def core(self) -> tuple[int, int, int, int] | None:
        """See `ImageSource.core`."""
        if not self.is_part:
            return None
        (top, bottom), (left, right) = self.place()
        (first, _), (leftmost, _) = self.area()
        return top - first, left - leftmost, bottom - top, right - left

    def place(self) -> Window:
        """See `ImageSource.place`."""
        whole = self.whole_size()
        if not self.is_part:
            return (0, whole[0]), (0, whole[1])
        row, column = map(int, self.part.split("-"))
        rows = row * BLOCK, min((row + 1) * BLOCK, whole[0])
        columns = column * BLOCK, min((column + 1) * BLOCK, whole[1])
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            raise BldaError(f"{self.path} has no part {self.part} any more: it is {whole[1]}x{whole[0]}")
        return rows, columns

    def area(self) -> Window:
        """See `ImageSource.area`."""
        rows, columns = self.place()
        if self.context is None:
            return rows, columns
        (height, width), (down, right) = self.context
        whole = self.whole_size()
        return touching(*rows, whole[0], height, down), touching(*columns, whole[1], width, right)

    def size(self) -> tuple[int, int]:
        """See `ImageSource.size`; of a part, that of the part itself."""
        (top, bottom), (left, right) = self.place()
        return bottom - top, right - left

    def valid(self) -> np.ndarray | None:
        """See `ImageSource.valid`."""
        return replace(self, context=None).valid_around()

    def cut(self, whole: np.ndarray) -> np.ndarray:
        """What `read` reads of the whole image, a copy.

        Args:
            whole: of the whole image, ``[H, W, ...]``.
        """
        (top, bottom), (left, right) = self.area()
        return whole[top:bottom, left:right].copy()


class LastRead(Generic[T]):
    """Keeps what was read last, for the next part of the same file; threads wait for one another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[Hashable, T] | None = None

    def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """What was read under this key, or is now; what was kept before is released first."""
        with self._lock:
            if self._kept is None or self._kept[0] != key:
                self._kept = None
                self._kept = (key, read())
            return self._kept[1]
