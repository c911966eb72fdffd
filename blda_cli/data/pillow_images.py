"""Images in the formats that Pillow reads."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from blda_cli.data.divided_images import LARGE, DividedImage, LastRead
from blda_cli.errors import BldaError
from blda_cli.files import check_regular, stamp
from blda_cli.runtime.memory import available_memory

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


_HUGE: dict[bytes, Callable[[Path], ImageFile.ImageFile]] = {
    b"\x89PNG": PngImagePlugin.PngImageFile,
    b"\xff\xd8": JpegImagePlugin.JpegImageFile,
}
"""What opens files beyond Pillow's limit of pixels, by their first bytes."""

_BYTES, _BYTES_WIDE = 16, 28
"""Memory that decoding takes at most, for each pixel of 8 bits and of more: measured with 25 million pixels."""

_seen, _samples, _opacity, _mask = (LastRead[np.ndarray]() for _ in range(4))
"""What was read last of large files: Pillow decodes them whole."""


@dataclass(frozen=True)
class PillowImage(DividedImage):
    """An image file that Pillow reads."""

    suffixes = _suffixes()

    def whole_size(self) -> tuple[int, int]:
        """See `ImageSource.whole_size`."""
        return image_size(self.path)

    def orientation(self) -> int:
        """See `ImageSource.orientation`."""
        with opened(self.path) as image:
            return _orientation(image)

    def depth(self) -> tuple[int, int] | None:
        """See `ImageSource.depth`."""
        with opened(self.path) as image:
            if not (is_wide_color(image) or image.mode.startswith("I")):
                return None
        largest = int(self._whole(_samples, _read_stored).max(initial=0))
        return None if largest >= 1 << 16 else (16, largest.bit_length())

    def declared(self) -> np.ndarray | None:
        """See `ImageSource.declared`: not where it is transparent, unless the network takes the alpha band."""
        names = self.band_names()
        if "alpha" in names and names.index("alpha") in self.pixels.indices(names, self.location):
            return None
        with opened(self.path) as image:
            if not _may_be_transparent(image):
                return None
        there = self._whole(_opacity, _read_opacity)
        return self.cut(there) if there.any() else None

    def seen(self) -> np.ndarray:
        """See `ImageSource.seen`."""
        return self.cut(self._whole(_seen, read_image)) if self.is_part else read_image(self.path)

    def band_names(self) -> Sequence[str]:
        """See `ImageSource.band_names`."""
        with opened(self.path) as image:
            return _BANDS.get(image.mode, ("red", "green", "blue"))

    def samples(self, bands: Sequence[int]) -> np.ndarray:
        """See `ImageSource.samples`."""
        stored = self._whole(_samples, _read_stored)
        return np.ascontiguousarray((self.cut(stored) if self.is_part else stored)[..., list(bands)])

    def _whole(self, last: LastRead[np.ndarray], read: Callable[[Path], np.ndarray]) -> np.ndarray:
        """What ``read`` reads of the whole file; of a part it is kept for the next one."""
        if not self.is_part:
            return read(self.path)
        return last.get((self.path, stamp([self.path])), lambda: read(self.path))


@contextmanager
def opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open an image; a failure inside ``with`` becomes a one-line error."""
    try:
        check_regular(path)
        with _open(path) as image:
            yield image
    except BldaError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise unreadable(path, error) from error


def _open(path: Path) -> ImageFile.ImageFile:
    """Open an image; one that Pillow takes for a decompression bomb only if its memory can be checked."""
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        with path.open("rb") as file:
            start = file.read(4)
        kind = next((kind for mark, kind in _HUGE.items() if start.startswith(mark)), None)
        if kind is None or available_memory() is None:
            raise
        return kind(path)


@contextmanager
def to_decode(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open an image whose pixels will be decoded; a large one for which the memory does not suffice is refused."""
    with opened(path) as image:
        _refuse_too_large(image, path)
        yield image


def _refuse_too_large(image: Image.Image, path: Path) -> None:
    pixels = image.width * image.height
    left = available_memory() if pixels > LARGE else None
    needed = pixels * (_BYTES_WIDE if is_wide_color(image) or image.mode[0] in "IF" else _BYTES)
    if left is not None and needed > left:
        raise BldaError(
            f"{path} is {image.width}x{image.height} (width x height): decoding it takes {needed / 2**30:.1f} GiB, and "
            f"{left / 2**30:.1f} GiB are left; a tiled TIFF is read in parts (pip install 'blda-cli[geo]'; "
            f"gdal_translate -co TILED=YES {path.name} {path.stem}.tif)"
        )


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
    with to_decode(path) as image:
        if image.format == "TIFF" and image.tag_v2.get(_SAMPLES_PER_PIXEL, 1) > 4:  # type: ignore[attr-defined]
            raise BldaError(f"{path} has more than four bands: pip install 'blda-cli[geo]' for what reads them")
        ImageOps.exif_transpose(image, in_place=True)
        return np.array(_to_rgb(image, path))


def read_mask(path: Path) -> np.ndarray:
    """Where a picture is not black, bool ``[H, W]``; a large one is kept for the next part of its image.

    Raises:
        BldaError: it cannot be read.
    """

    def read() -> np.ndarray:
        with to_decode(path) as image:
            mask: np.ndarray = np.asarray(image.convert("L") if image.mode != "P" else image) > 0
            return mask

    height, width = image_size(path)
    return _mask.get((path, stamp([path])), read) if height * width > LARGE else read()


def opacity(path: Path) -> np.ndarray | None:
    """Where an image is not wholly transparent, bool ``[H, W]``; None: everywhere, or nowhere, which says nothing.

    Raises:
        BldaError: it cannot be read.
    """
    with opened(path) as image:
        if not _may_be_transparent(image):
            return None
    there = _read_opacity(path)
    return there if there.any() else None


def _may_be_transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "RGBA", "PA") or ("transparency" in image.info and image.mode in ("1", "L", "P", "RGB"))


def _read_opacity(path: Path) -> np.ndarray:
    with to_decode(path) as image:
        if is_wide_color(image):
            there: np.ndarray = wide_color(image, path)[..., 3] > 0
        else:
            there = np.asarray(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")) > 0
        return there


def _read_stored(path: Path) -> np.ndarray:
    with to_decode(path) as image:
        return _stored(image, path)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as `read_image` will return it, from its header alone.

    An orientation that a PNG keeps after its pixels is not seen.

    Raises:
        BldaError: it cannot be read.
    """
    with opened(path) as image:
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
            f"{path} has more pixels than Pillow reads ({Image.MAX_IMAGE_PIXELS or 0:,} twice): save it as a TIFF "
            "(pip install 'blda-cli[geo]'; gdal_translate x.bmp x.tif)"
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
    return image if image.mode == "RGB" else image.convert("RGB")


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
    with _open(path) as again:
        tile = again.tile[0]
        again.tile = [(*tile[:3], swapped)]  # type: ignore[list-item]  # a plain tuple before Pillow 11
        lower = np.asarray(again)
    values: np.ndarray = upper << 8 | lower
    return values
