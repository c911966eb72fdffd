"""Rasters that GDAL reads: GeoTIFF and other TIFF, of any number of bands and any type; needs the extra ``geo``."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blda_cli.data.pillow_images import image_size, read_image
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import check_regular

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_INSTALLED = importlib.util.find_spec("rasterio") is not None
"""Without it Pillow reads the TIFF files that it can."""

_SEEN, _MOST_SEEN = ("uint8", "uint16"), 4
"""Types that a viewer shows, and the most bands."""


@dataclass(frozen=True)
class RasterImage(ImageSource):
    """A file that GDAL reads."""

    suffixes = frozenset({".tif", ".tiff", ".vrt"}) if _INSTALLED else frozenset()

    def size(self) -> tuple[int, int]:
        """See `ImageSource.size`."""
        if self.pixels.as_seen:
            return image_size(self.path)
        with self._opened() as raster:
            return raster.height, raster.width

    def seen(self) -> np.ndarray:
        """See `ImageSource.seen`."""
        count, dtype = 1, "uint8"
        with suppress(BldaError), self._opened() as raster:  # what GDAL cannot read Pillow may
            count, dtype = raster.count, raster.dtypes[0]
        if count > _MOST_SEEN or dtype not in _SEEN:
            raise BldaError(
                f"{self.path} has {count} {'band' if count == 1 else 'bands'} of {dtype} values: say which the network "
                "takes, and which values become 0 and 1: [preprocessing] bands and range = [low, high]"
            )
        return read_image(self.path)

    def band_names(self) -> Sequence[str]:
        """See `ImageSource.band_names`: the bands' descriptions, else what their colours are."""
        with self._opened() as raster:
            colors = [color.name if color.name != "undefined" else "" for color in raster.colorinterp]
            return [said or color for said, color in zip(raster.descriptions, colors, strict=True)]

    def samples(self, bands: Sequence[int]) -> np.ndarray:
        """See `ImageSource.samples`."""
        with self._opened() as raster:
            return np.ascontiguousarray(raster.read([band + 1 for band in bands]).transpose(1, 2, 0))

    @contextmanager
    def _opened(self) -> "Iterator[DatasetReader]":
        """The raster; what GDAL says while it is open is said in one line."""
        import warnings

        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError

        check_regular(self.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                raster = rasterio.open(self.path)
            with raster:
                yield raster
        except (RasterioError, OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BldaError(f"{self.path} cannot be read as a raster ({reason}): is the file complete?") from error
