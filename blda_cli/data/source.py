"""What every kind of image implements; a kind is a module of this package and a line in `images.KINDS`."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from blda_cli.files import stamp


@dataclass(frozen=True)
class ImageSource(ABC):
    """An image to be segmented. Nothing outside its class decodes the file that holds it.

    Attributes:
        path: the file that holds it.
        key: names its outputs: relative, with ``/``, without a suffix or ``..``, unique among the images found
            together.
        part: which image of the file it is, where a file may hold several; else empty.
    """

    path: Path
    key: str
    part: str = ""

    suffixes: ClassVar[frozenset[str]]
    """Lower-case suffixes of the files that this kind reads."""

    searched: ClassVar[bool] = True
    """Whether a folder is searched for them; files that are named outright are read all the same."""

    @classmethod
    def found_in(cls, path: Path, key: str) -> list[Self]:
        """The images that a file holds: by default one.

        Args:
            path: the file.
            key: its path relative to the searched folder, without the suffix.

        Raises:
            BldaError: the file cannot be read.
        """
        return [cls(path, key)]

    @property
    def location(self) -> str:
        """What records keep of it, and messages call it: ``PATH`` or ``PATH#PART``; see `images.image_at`."""
        return f"{os.fspath(self.path)}#{self.part}" if self.part else os.fspath(self.path)

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names that a table of labels may have for it, the most precise first."""
        name = self.path.name + (f"#{self.part}" if self.part else "")
        return (self.key, self.location, self.key + self.path.suffix, name, self.path.stem)

    def fingerprint(self) -> str:
        """A text that changes when the image is modified or removed: size and time of change of its file."""
        return stamp([self.path])

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of what `read` returns, found without decoding all of it where the format allows that.

        Raises:
            BldaError: it cannot be read.
        """

    @abstractmethod
    def read(self) -> np.ndarray:
        """The image as it is meant to be seen; called from several threads.

        Returns:
            uint8 ``[H, W, 3]``, RGB.

        Raises:
            BldaError: it cannot be read.
        """
