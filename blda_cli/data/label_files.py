"""Label files on disk: reading raw values, writing class ids with a palette."""

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from blda_cli.data.classes import ClassSet, to_ids
from blda_cli.data.pillow_images import TRANSPOSED, is_wide_color, rawmode, unreadable, wide_color
from blda_cli.data.raster_images import RasterImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import check_regular, replacing

VOID = 255
"""A pixel without a class, in most encodings."""

# JPEG is not among them: it changes values.
LABEL_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"})


@dataclass(frozen=True)
class RawLabel:
    """Raw contents of a label file, before decoding.

    Attributes:
        values: integers ``[H, W]`` from 0: the single channel, the palette's indices, or the first channel of a
            picture whose channels are equal or have 16 bits; None for a colour picture.
        colors: uint8 ``[H, W, 3]`` where the file has colours of 8 bits.
        palette: uint8 ``[entries, 3]`` where it has a palette.
        wide_color: it has colour channels of 16 bits, the first of which is ``values``.
        turned: the file has an orientation, which has been applied.
    """

    values: np.ndarray | None
    colors: np.ndarray | None = None
    palette: np.ndarray | None = None
    wide_color: bool = False
    turned: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        array = self.values if self.values is not None else self.colors
        assert array is not None
        return array.shape[0], array.shape[1]

    def as_shown(self, orientation: int) -> "RawLabel":
        """The same, turned by EXIF's orientation."""
        values = None if self.values is None else _turned(self.values, orientation)
        colors = None if self.colors is None else _turned(self.colors, orientation)
        return replace(self, values=values, colors=colors, turned=True)


def read_label_file(path: Path) -> RawLabel:
    """Read the raw values of a label file, exactly as they were written.

    Raises:
        BldaError: it cannot be read, or its values are not whole numbers from 0.
    """
    try:
        check_regular(path)
        with Image.open(path) as image:
            return _raw(image, path)
    except BldaError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise unreadable(path, error) from error


def read_label_part(path: Path, part: ImageSource) -> RawLabel:
    """Read the raw values of a label raster where a part of a map lies.

    Args:
        path: the label file, of the map's size.
        part: the part of the map.

    Raises:
        BldaError: it cannot be read, is of another size than the map, or its values are not whole numbers from 0.
    """
    assert isinstance(part, RasterImage)
    with part.opened() as raster, RasterImage(path, part.key).opened() as labels:
        if labels.shape != raster.shape:
            raise BldaError(
                f"{path} is {labels.width}x{labels.height} but its image {part.path} is {raster.width}x{raster.height} "
                "(width x height): labels must have the images' size"
            )
        place = part.place(raster)
        if labels.count >= 3:
            return RawLabel(None, colors=labels.read([1, 2, 3], window=place).transpose(1, 2, 0).astype(np.uint8))
        values = labels.read(1, window=place)
        holes = labels.dataset_mask(window=place) == 0
    whole = np.where(holes, VOID, values)
    if (whole < 0).any() or (whole >= 2**31).any() or (whole != np.floor(whole)).any():
        raise BldaError(f"{path} holds values that are not whole numbers from 0: labels must be ids or colours")
    return RawLabel(whole.astype(np.int64))


def _raw(image: ImageFile.ImageFile, path: Path) -> RawLabel:
    if is_wide_color(image):  # as SYNTHIA stores its classes: the first channel
        return RawLabel(wide_color(image, path)[..., 0], wide_color=True)
    raw = rawmode(image)
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    ImageOps.exif_transpose(image, in_place=True)
    return replace(_contents(image, raw, path), turned=turned)


def _contents(image: ImageFile.ImageFile, raw: str, path: Path) -> RawLabel:
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        return RawLabel(np.asarray(image), palette=palette)
    if image.mode in ("LA", "RGBA"):
        channels = np.asarray(image).reshape(-1, len(image.getbands()))
        lowest, highest = channels.min(axis=0, initial=255), channels.max(axis=0, initial=0)
        if (lowest[:-1] >= highest[:-1]).all() and lowest[-1] < highest[-1]:  # all is in the alpha channel
            return RawLabel(np.asarray(image.getchannel("A")))
    values = np.asarray(image.getchannel("L") if image.mode == "LA" else image)
    if image.mode == "1":
        return RawLabel(values.astype(np.uint8))
    if image.mode in ("L", "LA"):
        # Pillow stretches grey of fewer bits to 0..255.
        return RawLabel(values // {"L;2": 85, "L;4": 17}.get(raw, 1))
    if image.mode == "F" or image.mode.startswith("I"):
        exact = values.astype(np.float64)
        if not np.array_equal(exact, np.floor(exact)) or exact.min(initial=0) < 0 or exact.max(initial=0) >= 2**31:
            raise BldaError(f"{path} holds values that are not whole numbers from 0: labels must be ids or colours")
        return RawLabel(values.astype(np.int64))
    colors = np.asarray(image.convert("RGB"))
    grey = np.array_equal(colors[..., 0], colors[..., 1]) and np.array_equal(colors[..., 0], colors[..., 2])
    return RawLabel(colors[..., 0] if grey else None, colors=colors)


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels ``[H, W, ...]`` as they are shown, of those that are stored under an EXIF orientation."""
    if orientation in TRANSPOSED:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def packed(colors: np.ndarray) -> np.ndarray:
    """RGB colours ``[..., 3]`` as one int32 each, ``0xRRGGBB``."""
    wide = colors.astype(np.int32)
    codes: np.ndarray = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return codes


def write_label_png(path: Path, labels: np.ndarray, classes: ClassSet, *, original_ids: bool = False) -> None:
    """Write class ids as a PNG with the classes' palette, or as 16-bit grey where an id exceeds 254.

    The file is written atomically.

    Args:
        path: where to; its folder is made.
        labels: integers ``[H, W]``: class ids, or ``IGNORE_INDEX``.
        classes: the classes.
        original_ids: write ``classes.ids`` instead of class ids.

    Raises:
        BldaError: it cannot be written.
    """
    ids = classes.ids if original_ids else tuple(range(len(classes)))
    values = to_ids(labels, ids)
    image = Image.fromarray(values)
    if values.dtype == np.uint8:
        palette = np.zeros((256, 3), dtype=np.uint8)  # pixels without a class stay black
        palette[list(ids)] = classes.palette
        image.putpalette(palette.tobytes())
    with replacing(path) as temporary:
        # Label maps consist of runs of equal ids: a third faster than the default strategy, and 12 to 36 % smaller.
        image.save(temporary, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
