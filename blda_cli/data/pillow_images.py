"""Images in the formats that Pillow reads."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import check_regular

# What is too large for Pillow is refused by it; what is merely large is not worth a warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# EXIF orientations that swap width and height.
_TRANSPOSED = frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class PillowImage(ImageSource):
    """An image file that Pillow reads."""

    suffixes = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm"})

    def size(self) -> tuple[int, int]:
        """See `ImageSource.size`."""
        return image_size(self.path)

    def read(self) -> np.ndarray:
        """See `ImageSource.read`."""
        return read_image(self.path)


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
    try:
        check_regular(path)
        with Image.open(path) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image), path))
    except BldaError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise unreadable(path, error) from error


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as `read_image` will return it, from its header alone.

    An orientation that a PNG keeps after its pixels is not seen.

    Raises:
        BldaError: it cannot be read.
    """
    try:
        check_regular(path)
        with Image.open(path) as image:
            width, height = image.size
            # Pillow decodes a whole PNG to see whether EXIF follows the pixels.
            exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
            turned = exif.get(ExifTags.Base.Orientation) in _TRANSPOSED
    except BldaError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def unreadable(path: Path, error: Exception) -> BldaError:
    """The error for a picture that cannot be read, in one line that says why."""
    if isinstance(error, FileNotFoundError):
        return BldaError(f"{path} does not exist")
    if isinstance(error, UnidentifiedImageError):
        return BldaError(f"{path} is not an image, or of a format that Pillow cannot read")
    reason = " ".join(str(error).split()) or type(error).__name__
    return BldaError(f"{path} cannot be read as an image ({reason}): is the file complete?")


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise BldaError(f"{path} holds floating-point values: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # a transparent entry is dropped with the alpha channel, not blended
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
