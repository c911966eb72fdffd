"""Label files on disk: reading raw values, writing class ids with a palette."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from blda_cli.data.classes import ClassSet, to_ids
from blda_cli.data.divided_images import LastRead
from blda_cli.data.pillow_images import TRANSPOSED, is_wide_color, rawmode, to_decode, wide_color
from blda_cli.data.raster_images import RasterImage
from blda_cli.data.source import ImageSource
from blda_cli.data.windows import Window
from blda_cli.errors import BldaError
from blda_cli.files import replacing, stamp

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

    def part(self, place: Window) -> "RawLabel":
        """What lies in some rows and columns."""
        (top, bottom), (left, right) = place
        values, colors = (
            None if array is None else array[top:bottom, left:right] for array in (self.values, self.colors)
        )
        return replace(self, values=values, colors=colors)

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
    with to_decode(path) as image:
        return _raw(image, path)


def read_label_raster(path: Path, image: RasterImage) -> RawLabel:
    """Read the raw values of a label raster where a map or a part of one lies.

    Args:
        path: the label file, of the whole map's size.
        image: the map or the part.

    Raises:
        BldaError: it cannot be read, is of another size than the map, or its values are not whole numbers from 0.
    """
    place = image.place()
    with RasterImage(path, image.key).opened() as labels:
        refuse_other_size(path, labels.shape, image)
        if labels.count >= 3:
            return RawLabel(None, colors=labels.read([1, 2, 3], window=place).transpose(1, 2, 0).astype(np.uint8))
        values = labels.read(1, window=place)
        holes = labels.dataset_mask(window=place) == 0
    filled = np.where(holes, VOID, values)
    if (filled < 0).any() or (filled >= 2**31).any() or (filled != np.floor(filled)).any():
        raise BldaError(f"{path} holds values that are not whole numbers from 0: labels must be ids or colours")
    return RawLabel(filled.astype(np.int64))


_whole: LastRead[RawLabel] = LastRead()
"""The last label of a large image."""


def kept_label_file(path: Path) -> RawLabel:
    """As `read_label_file`, kept for the next part of the image."""
    return _whole.get((path, stamp([path])), lambda: read_label_file(path))


def refuse_other_size(path: Path, size: tuple[int, int], image: ImageSource) -> None:
    """Raise unless a label file has the size (height, width) of its image, or of the one that the image is a part of.

    Raises:
        BldaError: it is of another size.
    """
    whole = image.whole_size()
    if size != whole:
        raise BldaError(
            f"{path} is {size[1]}x{size[0]} but its image {image.path if image.is_part else image.location} is "
            f"{whole[1]}x{whole[0]} (width x height): labels must have the images' size"
        )


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
    with replacing(path) as temporary:
        save_ids(temporary, to_ids(labels, ids), classes, ids)


def save_ids(path: Path, values: np.ndarray, classes: ClassSet | None, ids: Sequence[int] | None = None) -> None:
    """Write the pixels of a label PNG.

    Args:
        path: where to.
        values: uint8 or uint16 ``[H, W]``.
        classes: gives 8-bit values their colours; None: they are grey.
        ids: the value of each class, ``classes.ids`` by default.
    """
    image = Image.fromarray(values)
    if classes is not None and values.dtype == np.uint8:
        palette = np.zeros((256, 3), dtype=np.uint8)  # pixels without a class stay black
        palette[list(classes.ids if ids is None else ids)] = classes.palette
        image.putpalette(palette.tobytes())
    # Label maps consist of runs of equal ids: a third faster than the default strategy, and 12 to 36 % smaller.
    image.save(path, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
