"""Rasters that GDAL reads: GeoTIFF and other TIFF, of any number of bands and any type; needs the extra ``geo``."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

import numpy as np

from blda_cli.data.pillow_images import image_size, read_image
from blda_cli.data.pixels import AS_SEEN, PixelFormat
from blda_cli.data.source import ImageSource
from blda_cli.data.windows import touching
from blda_cli.errors import BldaError
from blda_cli.files import check_regular

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_INSTALLED = importlib.util.find_spec("rasterio") is not None
"""The extra; without it Pillow reads the TIFF files that it can."""

_SEEN, _MOST_SEEN = ("uint8", "uint16"), 4
"""Types that a viewer shows, and the most bands."""

BLOCK = 2048
"""Side of the parts of a map in pixels. Logits of 19 classes take 320 MB of one."""

_WHOLE = 1 << 24
"""Rasters of more pixels than this are read in parts even where they are no maps."""

_CACHE_MEGABYTES = 64
"""Of decoded tiles that GDAL keeps; its own default is a twentieth of the machine's memory."""

Window = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class RasterImage(ImageSource):
    """A file that GDAL reads, or a part of one: ``ROW-COLUMN``, counted in blocks.

    Maps (rasters with a coordinate system or a transform) and very large rasters are found in parts.

    Attributes:
        context: (height, width) of the windows that the network is run by, and their stride; see `with_context`.
    """

    context: Window | None = None

    suffixes = frozenset({".tif", ".tiff", ".vrt"}) if _INSTALLED else frozenset()

    @classmethod
    def found_in(cls, path: Path, key: str, pixels: PixelFormat) -> list[Self]:
        """See `ImageSource.found_in`."""
        whole = cls(path, key, pixels=pixels)
        with suppress(BldaError), whole.opened() as raster:  # which reading will say
            if raster.crs or not raster.transform.is_identity or raster.width * raster.height > _WHOLE:
                rows, columns = (-(-side // BLOCK) for side in (raster.height, raster.width))
                return [
                    cls(path, f"{key}/{row:03}-{column:03}", f"{row}-{column}", pixels)
                    for row in range(rows)
                    for column in range(columns)
                ]
        return [whole]

    @property
    def labelled_as(self) -> str:
        """See `ImageSource.labelled_as`."""
        return str(PurePosixPath(self.key).parent) if self.part else self.key

    def with_context(self, window: tuple[int, int], stride: tuple[int, int]) -> ImageSource:
        """See `ImageSource.with_context`."""
        return replace(self, context=(window, stride)) if self.part else self

    @property
    def core(self) -> tuple[int, int, int, int] | None:
        """See `ImageSource.core`."""
        if not self.part:
            return None
        with self.opened() as raster:
            (top, bottom), (left, right) = self.place(raster)
            (first, _), (leftmost, _) = self._area(raster)
        return top - first, left - leftmost, bottom - top, right - left

    def place(self, raster: "DatasetReader") -> Window:
        """Rows and columns of the raster that it is, each from and to."""
        if not self.part:
            return (0, raster.height), (0, raster.width)
        row, column = map(int, self.part.split("-"))
        rows = row * BLOCK, min((row + 1) * BLOCK, raster.height)
        columns = column * BLOCK, min((column + 1) * BLOCK, raster.width)
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            raise BldaError(f"{self.path} has no part {self.part} any more: it is {raster.width}x{raster.height}")
        return rows, columns

    def _area(self, raster: "DatasetReader") -> Window:
        """Rows and columns that `read` reads."""
        rows, columns = self.place(raster)
        if self.context is None:
            return rows, columns
        (height, width), (down, right) = self.context
        return touching(*rows, raster.height, height, down), touching(*columns, raster.width, width, right)

    def size(self) -> tuple[int, int]:
        """See `ImageSource.size`; of a part, that of the part itself."""
        if self.pixels.as_seen and not self.part:
            return image_size(self.path)
        with self.opened() as raster:
            (top, bottom), (left, right) = self.place(raster)
        return bottom - top, right - left

    def read(self) -> np.ndarray:
        """See `ImageSource.read`; where there is no data, it is 0."""
        if not self.part:
            return super().read()
        with self.opened() as raster:
            area = self._area(raster)
            holes = raster.dataset_mask(window=area) == 0
            bands = self.pixels.indices(_names(raster), self.location)
            samples = raster.read([band + 1 for band in bands], window=area).transpose(1, 2, 0)
            if self.pixels.as_seen:
                self._refuse_unseen(raster)
                samples = samples if samples.dtype == np.uint8 else (samples >> 8).astype(np.uint8)
            samples[holes] = 0
        pixels = np.ascontiguousarray(samples) if self.pixels.as_seen else self.pixels.scaled(samples, self.location)
        pixels[holes] = 0
        return pixels

    def valid(self) -> np.ndarray | None:
        """See `ImageSource.valid`; also uses the file's nodata value, mask and alpha."""
        if not self.part:
            return super().valid()
        with self.opened() as raster:
            place = self.place(raster)
            valid: np.ndarray = raster.dataset_mask(window=place) != 0
            size = raster.shape
        if self.mask is not None:
            with RasterImage(self.mask, self.key).opened() as mask:
                if mask.shape != size:
                    raise BldaError(
                        f"{self.mask} is {mask.width}x{mask.height} but its image {self.path} is {size[1]}x{size[0]} "
                        "(width x height): masks must have the images' size"
                    )
                valid &= mask.read(1, window=place) != 0
        return None if valid.all() else valid

    def depth(self) -> tuple[int, int] | None:
        """See `ImageSource.depth`: of its first band, as far as the part goes."""
        with self.opened() as raster:
            if raster.dtypes[0] != "uint16":
                return None
            return 16, int(raster.read(1, window=self.place(raster)).max(initial=0)).bit_length()

    def seen(self) -> np.ndarray:
        """See `ImageSource.seen`."""
        if self.part:
            return replace(self, pixels=AS_SEEN).read()
        with suppress(_UnreadableError), self.opened() as raster:  # what GDAL cannot read Pillow may
            self._refuse_unseen(raster)
        return read_image(self.path)

    def band_names(self) -> Sequence[str]:
        """See `ImageSource.band_names`: the bands' descriptions, else their colour interpretations."""
        with self.opened() as raster:
            return _names(raster)

    def samples(self, bands: Sequence[int]) -> np.ndarray:
        """See `ImageSource.samples`."""
        with self.opened() as raster:
            return np.ascontiguousarray(raster.read([band + 1 for band in bands]).transpose(1, 2, 0))

    def _refuse_unseen(self, raster: "DatasetReader") -> None:
        count, dtype = raster.count, raster.dtypes[0]
        if count > _MOST_SEEN or dtype not in _SEEN:
            raise BldaError(
                f"{self.path} has {count} {'band' if count == 1 else 'bands'} of {dtype} values: say which the network "
                "takes, and which values become 0 and 1: [preprocessing] bands and range = [low, high]"
            )

    @contextmanager
    def opened(self) -> "Iterator[DatasetReader]":
        """The raster; GDAL's errors while it is open become one line."""
        import warnings

        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError

        check_regular(self.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                raster = rasterio.open(self.path)
            with rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES), raster:
                yield raster
        except (RasterioError, OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _UnreadableError(
                f"{self.path} cannot be read as a raster ({reason}): is the file complete?"
            ) from error


class _UnreadableError(BldaError):
    """GDAL cannot read the file."""


def _names(raster: "DatasetReader") -> list[str]:
    colors = [color.name if color.name != "undefined" else "" for color in raster.colorinterp]
    return [said or color for said, color in zip(raster.descriptions, colors, strict=True)]
