"""The interface of an image to be segmented; a kind is a module of this package and a line in `images.KINDS`."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from blda_cli.data.pixels import AS_SEEN, PixelFormat, stretched
from blda_cli.data.windows import Window
from blda_cli.errors import BldaError
from blda_cli.files import stamp


@dataclass(frozen=True)
class ImageSource(ABC):
    """An image to be segmented. Only its class decodes the file that holds it.

    Attributes:
        path: the file that holds it.
        key: names its outputs: relative, with ``/``, without a suffix or ``..``, unique among the images found
            together.
        part: which image of the file it is, where a file may hold several; else empty.
        pixels: which of its samples are read, and on which scale.
        mask: a picture of the whole image's size: where it is 0 the image holds no data.
    """

    path: Path
    key: str
    part: str = ""
    pixels: PixelFormat = AS_SEEN
    mask: Path | None = None

    suffixes: ClassVar[frozenset[str]]
    """Lower-case suffixes of the files that this kind reads."""

    only_alone: ClassVar[bool] = False
    """Whether a folder that holds images of other kinds, too, is not searched for them."""

    @classmethod
    def found_in(cls, path: Path, key: str, pixels: PixelFormat) -> list[Self]:
        """The images that a file holds: by default one.

        Args:
            path: the file.
            key: its path relative to the searched folder, without the suffix.
            pixels: see `ImageSource.pixels`.

        Raises:
            BldaError: the file cannot be read.
        """
        return [cls(path, key, pixels=pixels)]

    @property
    def location(self) -> str:
        """Its name in records and messages: ``PATH`` or ``PATH#PART``; see `images.image_at`."""
        return f"{os.fspath(self.path)}#{self.part}" if self.part else os.fspath(self.path)

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names that a table of labels may have for it, the most precise first."""
        name = self.path.name + (f"#{self.part}" if self.part else "")
        return (self.key, self.location, self.key + self.path.suffix, name, self.path.stem)

    def fingerprint(self) -> str:
        """Fingerprint (size, mtime) of its files; it changes when the image or its mask is modified or removed."""
        return stamp([self.path] if self.mask is None else [self.path, self.mask])

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a larger image, of which the network also gets what surrounds it."""
        return False

    @property
    def core(self) -> tuple[int, int, int, int] | None:
        """Top, left, height and width, in what `read` returns, of a part of a larger image; None: it is a whole one."""
        return None

    @property
    def labelled_as(self) -> str:
        """The key that its label files are paired by: that of the larger image where it is a part of one."""
        return self.key

    def place(self) -> Window:
        """Rows and columns of the whole image that it is.

        Raises:
            BldaError: it cannot be read.
        """
        height, width = self.size()
        return (0, height), (0, width)

    def whole_size(self) -> tuple[int, int]:
        """(height, width) of the image that it is, or is a part of.

        Raises:
            BldaError: it cannot be read.
        """
        return self.size()

    def declared(self) -> np.ndarray | None:
        """Where its file says that there is data, bool of the size of what `read` returns; None: everywhere.

        Raises:
            BldaError: it cannot be read.
        """
        return None

    def area(self) -> Window:
        """Rows and columns of the whole image that `read` reads.

        Raises:
            BldaError: it cannot be read.
        """
        return self.place()

    def valid(self) -> np.ndarray | None:
        """Where its core holds data, bool ``[height, width]``, by its file and its mask; None: everywhere.

        Raises:
            BldaError: it cannot be read, or the mask is of another size than the image.
        """
        return self.valid_around()

    def valid_around(self) -> np.ndarray | None:
        """The same of the size of what `read` returns."""
        valid = self.declared()
        if self.mask is not None:
            there = self._masked(self.mask)
            valid = there if valid is None else valid & there
        return None if valid is None or valid.all() else valid

    def _masked(self, path: Path) -> np.ndarray:
        """Where a mask says that what `read` returns holds data."""
        from blda_cli.data.pillow_images import read_mask  # which imports this module

        mask = read_mask(path)
        self._refuse_other_size(path, mask.shape)
        (top, bottom), (left, right) = self.area()
        return mask[top:bottom, left:right]

    def _refuse_other_size(self, path: Path, size: tuple[int, ...]) -> None:
        whole = self.whole_size()
        if size != whole:
            raise BldaError(
                f"{path} is {size[1]}x{size[0]} but its image {self.path} is {whole[1]}x{whole[0]} (width x height): "
                "masks must have the images' size"
            )

    def seconds(self) -> float | None:
        """When it is shown, from the start of the video that it is a frame of; None of any other image.

        Raises:
            BldaError: it cannot be read.
        """
        return None

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of what `read` returns, found without decoding all of it where the format allows that.

        Raises:
            BldaError: it cannot be read.
        """

    def depth(self) -> tuple[int, int] | None:
        """How many bits its values may have and how many they use, for integers of more than 8 bits; else None.

        Raises:
            BldaError: it cannot be read.
        """
        return None

    def orientation(self) -> int:
        """EXIF's orientation, by which `read` turns the file's pixels; 1 for not at all.

        Raises:
            BldaError: it cannot be read.
        """
        return 1

    def read(self) -> np.ndarray:
        """Read the pixels that a network gets; called from several threads.

        Returns:
            uint8 ``[H, W, 3]``, RGB; or where ``pixels`` is not the default, float32 ``[H, W, B]`` on the same scale.
            0 where its file says that there is no data.

        Raises:
            BldaError: it cannot be read, or lacks a band.
        """
        there = self.declared()
        if self.pixels.as_seen:
            pixels = self.seen()
        else:
            samples = self.samples(self.pixels.indices(self.band_names(), self.location))
            if there is not None:
                samples[~there] = 0  # nodata may be NaN
            pixels = self.pixels.scaled(samples, self.location)
        if there is not None:
            pixels[~there] = 0
        return pixels

    def picture(self) -> np.ndarray:
        """The pixels of `read` as a viewable picture.

        Returns:
            uint8 ``[H, W, 3]``, RGB; of bands the first three, stretched.

        Raises:
            BldaError: it cannot be read.
        """
        return self.seen() if self.pixels.as_seen else stretched(self.read())

    @abstractmethod
    def seen(self) -> np.ndarray:
        """The image as a viewer shows it: uint8 ``[H, W, 3]``, RGB.

        Raises:
            BldaError: it cannot be read, or the description lacks what is needed to show it.
        """

    def band_names(self) -> Sequence[str]:
        """One name for each band, empty text where it has none; by default those of `seen`.

        Raises:
            BldaError: it cannot be read.
        """
        return ("red", "green", "blue")

    def samples(self, bands: Sequence[int]) -> np.ndarray:
        """Some of its bands as they are stored; by default of `seen`.

        Args:
            bands: indices from 0, each below the number of `band_names`.

        Returns:
            ``[H, W, len(bands)]`` of the file's own type.

        Raises:
            BldaError: it cannot be read.
        """
        return np.ascontiguousarray(self.seen()[..., list(bands)])


def refuse_parts(
    images: Iterable[ImageSource], what: str, way: str = "cut it into images of at most 16 million pixels"
) -> None:
    """Refuse what needs whole images where a large image is run in parts.

    Args:
        images: the images.
        what: needs whole images: an option, or what else the user gave.
        way: the way out.

    Raises:
        BldaError: an image is a part of a larger one.
    """
    part = next((image for image in images if image.is_part), None)
    if part is not None:
        raise BldaError(f"{what} needs whole images, and {part.path} is run in parts: {way}")
