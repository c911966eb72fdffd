"""Rasters that GDAL reads: GeoTIFF and other TIFF, of any number of bands and any type; needs the extra ``geo``."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from blda_cli.data.divided_images import DividedImage
from blda_cli.data.pillow_images import image_size, opacity, read_image
from blda_cli.data.pixels import PixelFormat
from blda_cli.errors import BldaError
from blda_cli.files import check_regular

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_INSTALLED = importlib.util.find_spec("rasterio") is not None
"""The extra; without it Pillow reads the TIFF files that it can."""

_SEEN, _MOST_SEEN = ("uint8", "uint16"), 4
"""Types that a viewer shows, and the most bands."""

_CACHE_MEGABYTES = 64
"""Of decoded tiles that GDAL keeps; its own default is a twentieth of the machine's memory."""


@dataclass(frozen=True)
class RasterImage(DividedImage):
    """A file that GDAL reads, or a part of one."""

    suffixes = frozenset({".tif", ".tiff", ".vrt"}) if _INSTALLED else frozenset()

    def is_map(self) -> bool:
        """Whether it has a coordinate system, a transform or a nodata value, or is part of a large raster.

        Raises:
            BldaError: it cannot be read.
        """
        if self.is_part:
            return True
        with self.opened() as raster:
            return _is_map(raster)

    def whole_size(self) -> tuple[int, int]:
        """See `ImageSource.whole_size`."""
        with self._opened_or_left_to_pillow() as raster:
            if raster is not None:
                return raster.height, raster.width
        return image_size(self.path)

    def declared(self) -> np.ndarray | None:
        """See `ImageSource.declared`: by nodata value, mask or alpha, unless the network takes the alpha band."""
        from rasterio.enums import ColorInterp, MaskFlags

        with self._opened_or_left_to_pillow() as raster:
            if raster is not None:
                flags = {flag for of_band in raster.mask_flag_enums for flag in of_band}
                alpha = [index for index, color in enumerate(raster.colorinterp) if color is ColorInterp.alpha]
                taken = MaskFlags.alpha in flags and set(alpha) & {*self.pixels.indices(_names(raster), self.location)}
                if taken or flags == {MaskFlags.all_valid}:
                    return None
                there: np.ndarray = raster.dataset_mask(window=self.area()) != 0
                if there.all():
                    return None
                return there if self.is_part or _is_map(raster) or there.any() else None
        return opacity(self.path)

    def _masked(self, path: Path) -> np.ndarray:
        with RasterImage(path, self.key).opened() as mask:
            self._refuse_other_size(path, mask.shape)
            there: np.ndarray = mask.read(1, window=self.area()) != 0
        return there

    def depth(self) -> tuple[int, int] | None:
        """See `ImageSource.depth`: of its first band, as far as the part goes."""
        with self.opened() as raster:
            if raster.dtypes[0] != "uint16":
                return None
            return 16, int(raster.read(1, window=self.place()).max(initial=0)).bit_length()

    def seen(self) -> np.ndarray:
        """See `ImageSource.seen`."""
        from rasterio.enums import ColorInterp

        with self._opened_or_left_to_pillow() as raster:
            if raster is not None:
                bands = PixelFormat().indices(_names(raster), self.location)
                samples: np.ndarray = raster.read([band + 1 for band in bands], window=self.area()).transpose(1, 2, 0)
                if raster.colorinterp[0] is ColorInterp.palette:
                    colors = raster.colormap(1)
                    palette = [colors.get(value, (0, 0, 0))[:3] for value in range(max(colors) + 1)]
                    samples = np.array(palette, dtype=np.uint8)[samples[..., 0]]
                return np.ascontiguousarray(samples if samples.dtype == np.uint8 else (samples >> 8).astype(np.uint8))
        return read_image(self.path)

    def band_names(self) -> Sequence[str]:
        """See `ImageSource.band_names`: the bands' descriptions, else their colour interpretations."""
        with self.opened() as raster:
            return _names(raster)

    def samples(self, bands: Sequence[int]) -> np.ndarray:
        """See `ImageSource.samples`."""
        with self.opened() as raster:
            area = self.area()
            return np.ascontiguousarray(raster.read([band + 1 for band in bands], window=area).transpose(1, 2, 0))

    @contextmanager
    def _opened_or_left_to_pillow(self) -> "Iterator[DatasetReader | None]":
        """The raster; None of an ordinary picture to be seen, whose colours and orientation Pillow knows better."""
        with ExitStack() as stack:
            raster = None
            with suppress(_UnreadableError) if self.pixels.as_seen and not self.is_part else nullcontext():
                raster = stack.enter_context(self.opened())
            if raster is not None and self.pixels.as_seen:
                self._refuse_unseen(raster)
                raster = raster if self.is_part or _is_map(raster) else None
            yield raster

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


def _is_map(raster: "DatasetReader") -> bool:
    return bool(raster.crs) or not raster.transform.is_identity or raster.nodata is not None


def _names(raster: "DatasetReader") -> list[str]:
    colors = [color.name if color.name != "undefined" else "" for color in raster.colorinterp]
    return [said or color for said, color in zip(raster.descriptions, colors, strict=True)]
