"""Images as ``.npy`` and ``.npz`` arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blda_cli.data.arrays import SUFFIXES, read_numbers, shape_of
from blda_cli.data.divided_images import DividedImage, LastRead
from blda_cli.data.pixels import Layout
from blda_cli.errors import BldaError
from blda_cli.files import stamp

_MOST_BANDS = 16
"""Where the first or last axis is no longer than this, and both others are longer, it holds the bands."""


_unpacked: LastRead[np.ndarray] = LastRead()
"""The last array of which parts were read."""


@dataclass(frozen=True)
class ArrayImage(DividedImage):
    """An array of pixels: ``[H, W]``, ``[H, W, B]`` or ``[B, H, W]``; of an archive, the one called ``image``.

    Arrays beside other images are left out of a search: they are mostly logits or labels of those.
    """

    suffixes = SUFFIXES
    only_alone = True

    def whole_size(self) -> tuple[int, int]:
        """See `ImageSource.whole_size`."""
        shape = shape_of(self.path, "image")
        if len(shape) == 2:
            return shape[0], shape[1]
        return (shape[0], shape[1]) if self._layout(shape) == "hwc" else (shape[1], shape[2])

    def seen(self) -> np.ndarray:
        """See `ImageSource.seen`."""
        array = self._array()
        if array.dtype not in (np.uint8, np.uint16) or array.shape[-1] > 4:
            raise BldaError(
                f"{self.path} holds {array.dtype} values {list(array.shape)}: say which bands the network takes, and "
                "which values become 0 and 1: [preprocessing] bands and range = [low, high] (logits are read by "
                "--model logits:DIR)"
            )
        upper = array if array.dtype == np.uint8 else (array >> 8).astype(np.uint8)
        return np.ascontiguousarray(upper[..., self.pixels.indices([""] * upper.shape[-1], self.location)])

    def band_names(self) -> Sequence[str]:
        """See `ImageSource.band_names`: arrays name none."""
        shape = shape_of(self.path, "image")
        return [""] * (1 if len(shape) == 2 else shape[2] if self._layout(shape) == "hwc" else shape[0])

    def samples(self, bands: Sequence[int]) -> np.ndarray:
        """See `ImageSource.samples`."""
        return self._array()[..., list(bands)]

    def _array(self) -> np.ndarray:
        array = self._whole()
        if array.dtype == np.bool_:
            array = array.astype(np.uint8) * 255
        if array.ndim == 2:
            array = array[..., None]
        elif self._layout(array.shape) == "chw":
            array = array.transpose(1, 2, 0)
        return self.cut(array) if self.is_part else array

    def _whole(self) -> np.ndarray:
        if not self.is_part:
            return read_numbers(self.path, "image")
        return _unpacked.get((self.path, stamp([self.path])), lambda: read_numbers(self.path, "image"))

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        if len(shape) != 3 or 0 in shape:
            raise BldaError(f"{self.path} is of shape {list(shape)}: an image is [H, W], [H, W, B] or [B, H, W]")
        if self.pixels.layout is not None:
            return self.pixels.layout
        few = [length <= _MOST_BANDS for length in shape]
        if few == [False, False, True]:
            return "hwc"
        if few == [True, False, False]:
            return "chw"
        raise BldaError(
            f'{self.path} is of shape {list(shape)}: say which axis holds the bands: [preprocessing] layout = "hwc" or '
            '"chw"'
        )
