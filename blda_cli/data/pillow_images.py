"""Images in the formats that Pillow reads."""

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import check_regular

# Pillow refuses images that are too large; its warning about merely large ones is not needed.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Nor is metadata that is damaged; what cannot be decoded is an error.
warnings.filterwarnings("ignore", module=r"PIL\.")

_SAMPLES_PER_PIXEL = 277
"""A TIFF tag."""

_BANDS = {
    **dict.fromkeys(("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"), ("gray",)),
    "LA": ("gray", "alpha"),
    "RGBA": ("red", "green", "blue", "alpha"),
}
"""Names of the bands by Pillow's mode; other modes are read as RGB."""

TRANSPOSED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


_NO_PICTURES = frozenset({"BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
"""Formats of Pillow that hold documents, films or data."""


def _suffixes() -> frozenset[str]:
    """The suffixes of every picture format that this Pillow reads."""
    Image.init()
    known = Image.registered_extensions().items()
    # Files of several JPEGs are opened as JPEG, and found to be more.
    return frozenset(
        suffix for suffix, kind in known if (kind in Image.OPEN or kind == "MPO") and kind not in _NO_PICTURES
    )


@dataclass(frozen=True)
class PillowImage(ImageSource):
    """An image file that Pillow reads."""

    suffixes = _suffixes()

    def size(self) -> tuple[int, int]:
        """See `ImageSource.size`."""
        return image_size(self.path)

    def orientation(self) -> int:
        """See `ImageSource.orientation`."""
        with _opened(self.path) as image:
            return _orientation(image)

    def depth(self) -> tuple[int, int] | None:
        """See `ImageSource.depth`."""
        with _opened(self.path) as image:
            if not (is_wide_color(image) or image.mode.startswith("I")):
                return None
            largest = int(_stored(image, self.path).max(initial=0))
        return None if largest >= 1 << 16 else (16, largest.bit_length())

    def seen(self) -> np.ndarray:
        """See `ImageSource.seen`."""
        return read_image(self.path)

    def band_names(self) -> Sequence[str]:
        """See `ImageSource.band_names`."""
        with _opened(self.path) as image:
            return _BANDS.get(image.mode, ("red", "green", "blue"))

    def samples(self, bands: Sequence[int]) -> np.ndarray:
        """See `ImageSource.samples`."""
        with _opened(self.path) as image:
            return np.ascontiguousarray(_stored(image, self.path)[..., list(bands)])


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; a failure inside ``with`` becomes a one-line error."""
    try:
        check_regular(path)
        with Image.open(path) as image:
            yield image
    except BldaError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise unreadable(path, error) from error


def read_image(path: Path) -> np.ndarray:
    """Read an image as it is meant to be seen.

    Grey, palette, CMYK and 16-bit images are converted (16 bits to their upper 8), alpha is dropped, the EXIF
    orientation is applied, and of several frames the first is taken.

    Args:
        path: the image.

    Returns:
        uint8 ``[H, W, 3]``, RGB.

    Raises:
        BldaError: it cannot be read.
    """
    with _opened(path) as image:
        if image.format == "TIFF" and image.tag_v2.get(_SAMPLES_PER_PIXEL, 1) > 4:  # type: ignore[attr-defined]
            raise BldaError(f"{path} has more than four bands: pip install 'blda-cli[geo]' for what reads them")
        return np.array(_to_rgb(ImageOps.exif_transpose(image), path))


def read_mask(path: Path) -> np.ndarray:
    """Where a picture is not black, bool ``[H, W]``.

    Raises:
        BldaError: it cannot be read.
    """
    with _opened(path) as image:
        return np.asarray(image.convert("L") if image.mode != "P" else image) > 0


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as `read_image` will return it, from its header alone.

    An orientation that a PNG keeps after its pixels is not seen.

    Raises:
        BldaError: it cannot be read.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = _orientation(image) in TRANSPOSED
    return (width, height) if turned else (height, width)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation of an image, 1 where it has none."""
    # Pillow decodes a whole PNG to see whether EXIF follows the pixels.
    exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
    number = exif.get(ExifTags.Base.Orientation, 1)
    return number if number in range(1, 9) else 1


def unreadable(path: Path, error: Exception) -> BldaError:
    """The one-line error for a picture that cannot be read, with the reason."""
    if isinstance(error, FileNotFoundError):
        return BldaError(f"{path} does not exist")
    if isinstance(error, UnidentifiedImageError):
        more = path.suffix.lower() in (".tif", ".tiff") and importlib.util.find_spec("rasterio") is None
        way = ": pip install 'blda-cli[geo]' for what reads any TIFF" if more else ""
        return BldaError(f"{path} is not an image, or of a format that Pillow cannot read{way}")
    if isinstance(error, Image.DecompressionBombError):
        return BldaError(
            f"{path} has more pixels than Pillow reads ({Image.MAX_IMAGE_PIXELS or 0:,} twice): as a TIFF it is run in "
            "parts, with --slide too (pip install 'blda-cli[geo]'; gdal_translate x.png x.tif)"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return BldaError(f"{path} cannot be read as an image ({reason}): is the file complete?")


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise BldaError(
            f"{path} holds floating-point values: say which become 0 and 1: [preprocessing] range = [low, high]"
        )
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # a transparent entry is dropped with the alpha channel, not blended
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _stored(image: Image.Image, path: Path) -> np.ndarray:
    """The samples of all bands, ``[H, W, B]``."""
    if is_wide_color(image):
        return wide_color(image, path)
    image = ImageOps.exif_transpose(image)
    if image.mode not in _BANDS:
        image = _to_rgb(image, path)
    values = np.asarray(image)
    if image.mode == "1":
        values = values.astype(np.uint8) * 255
    return values if values.ndim == 3 else values[..., None]


def rawmode(image: Image.Image) -> str:
    """Pillow's raw mode of an opened file: how it stores its pixels, e.g. ``RGB;16B``."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else None
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def is_wide_color(image: Image.Image) -> bool:
    """Whether an opened file has colour channels of 16 bits."""
    return image.mode in ("RGB", "RGBA") and ";16" in rawmode(image)


def wide_color(image: Image.Image, path: Path) -> np.ndarray:
    """Both bytes of a PNG with colour channels of 16 bits, as uint16 ``[H, W, 3 or 4]``.

    Pillow has no mode for such pictures and keeps each value's upper byte. Decoded again as if the bytes were in
    the other order it keeps the lower.

    Raises:
        BldaError: it is of another format.
    """
    swapped = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}.get(rawmode(image))
    if image.format != "PNG" or swapped is None:
        raise BldaError(f"{path} is a 16-bit colour picture of a kind that Pillow cannot read whole: save it as PNG")
    upper = np.asarray(image).astype(np.uint16)
    with Image.open(path) as again:
        tile = again.tile[0]
        again.tile = [(*tile[:3], swapped)]  # type: ignore[list-item]  # a plain tuple before Pillow 11
        lower = np.asarray(again)
    values: np.ndarray = upper << 8 | lower
    return values
