"""Images that are found, run, counted and predicted part by part where they are large."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Generic, Self, TypeVar

import numpy as np

from blda_cli.data.pixels import PixelFormat
from blda_cli.data.source import ImageSource
from blda_cli.data.windows import Window, spread_windows, touching
from blda_cli.errors import BldaError

BLOCK = 2048
"""Side of a part in pixels. Logits of 19 classes take 320 MB of one."""

LARGE = 1 << 24
"""Images of more pixels than this are divided, whatever the file that holds them."""

T = TypeVar("T")


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


@dataclass(frozen=True)
class Context:
    """How the parts of large images are run in one pass over them.

    Attributes:
        window: (height, width) of the windows, which lie on a grid over the whole image.
        stride: (height, width) from one to the next.
        of_whole: what the pass knows of the image whose part it is at, for its other parts.
    """

    window: tuple[int, int]
    stride: tuple[int, int]
    of_whole: LastRead[dict[Hashable, Any]] = field(default_factory=LastRead, compare=False)


@dataclass(frozen=True)
class DividedImage(ImageSource):
    """An image in a file of its own, or where that is large a part of it: ``ROW-COLUMN``, counted in blocks.

    Attributes:
        context: of a part, how it is run: it reads all of the larger image that is covered by windows touching it;
            None: it reads itself alone. See `in_windows`.
        window: rows and columns of the larger image that it reads instead.
    """

    context: Context | None = None
    window: Window | None = None

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
        if self.window is not None:
            return self.window
        rows, columns = self.place()
        if self.context is None:
            return rows, columns
        (height, width), (down, right) = self.context.window, self.context.stride
        whole = self.whole_size()
        return touching(*rows, whole[0], height, down), touching(*columns, whole[1], width, right)

    def spread_windows(self, most: int) -> list[Self]:
        """Windows spread evenly over the image that this is a part of: as many as cover it, or at most so many.

        Raises:
            BldaError: it cannot be read.
        """
        assert self.context is not None
        places = spread_windows(self.whole_size(), self.context.window, most)
        return [replace(self, window=place) for place in places]

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


def in_windows(files: Sequence[ImageSource], window: tuple[int, int], stride: tuple[int, int]) -> list[ImageSource]:
    """The files for a pass over them, in which parts of large images are run in windows.

    Args:
        files: the images.
        window: (height, width) of the windows.
        stride: (height, width) from one to the next.
    """
    context = Context(window, stride)
    return [
        replace(file, context=context) if isinstance(file, DividedImage) and file.is_part else file for file in files
    ]
