"""Predictions of maps and of images that are predicted part by part: one GeoTIFF or PNG for each."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from blda_cli.data.classes import ClassSet, void_value
from blda_cli.data.divided_images import DividedImage
from blda_cli.data.label_files import kept_label_file, save_ids
from blda_cli.data.raster_images import RasterImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import replacing

Parts = Mapping[str, DividedImage]
"""The parts of one image, by key."""


def divided(files: Iterable[ImageSource]) -> list[Parts]:
    """The images among files whose predictions are to be put together: those found in parts, and maps.

    Raises:
        BldaError: one cannot be read.
    """
    images: dict[Path, dict[str, DividedImage]] = {}
    for file in files:
        if isinstance(file, DividedImage) and (file.is_part or (isinstance(file, RasterImage) and file.is_map())):
            images.setdefault(file.path, {})[file.key] = file
    return list(images.values())


def write_whole(folder: Path, parts: Parts, classes: ClassSet | None) -> None:
    """Put the PNG files of an image's parts together, to a GeoTIFF of a raster and to a PNG of others; remove them.

    A GeoTIFF has the coordinate system and transform of the map, the classes' colours, their names as the tags
    ``class_VALUE``, and the value of void pixels as nodata. Parts without a file are void.

    Args:
        folder: holds ``KEY.png`` of the parts, ids as ``classes.ids`` says.
        parts: of one image.
        classes: the classes with the values they have in the files; None: the files hold other values of 8 bits.

    Raises:
        BldaError: a file cannot be read or written.
    """
    first = next(iter(parts.values()))
    path = _path(folder, first)
    there = {key: folder / f"{key}.png" for key in parts if (folder / f"{key}.png").exists()}
    if not path.exists():  # else it is whole, and an earlier run was stopped while it removed the parts
        _write(path, first, ((parts[key], np.asarray(Image.open(picture))) for key, picture in there.items()), classes)
    for of_part in there.values():
        of_part.unlink()
    for holder in {of_part.parent for of_part in there.values()}:
        if not any(holder.iterdir()):
            holder.rmdir()


def _write(
    path: Path, first: DividedImage, pictures: Iterable[tuple[DividedImage, np.ndarray]], classes: ClassSet | None
) -> None:
    void = 0 if classes is None else void_value(classes.ids)
    with replacing(path) as temporary:
        if isinstance(first, RasterImage):
            _write_raster(temporary, first, pictures, void, classes)
        else:
            values = np.full(first.whole_size(), void, dtype=np.uint16 if void == 65535 else np.uint8)
            for part, picture in pictures:
                (top, bottom), (left, right) = part.place()
                values[top:bottom, left:right] = picture
            save_ids(temporary, values, classes)


def _write_raster(
    path: Path,
    first: RasterImage,
    pictures: Iterable[tuple[DividedImage, np.ndarray]],
    void: int,
    classes: ClassSet | None,
) -> None:
    import rasterio

    with first.opened() as raster:
        profile = {
            "driver": "GTiff", "height": raster.height, "width": raster.width, "count": 1,
            "nodata": void if classes else None, "dtype": "uint16" if void == 65535 else "uint8", "crs": raster.crs,
            "transform": raster.transform, "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate",
            "BIGTIFF": "IF_SAFER", "SPARSE_OK": True,
        }  # fmt: skip
    with rasterio.open(path, "w", **profile) as output:
        for part, picture in pictures:
            output.write(picture, 1, window=part.place())
        if classes:
            names = zip(classes.ids, classes.names, strict=True)
            output.update_tags(1, **{f"class_{id_}": name for id_, name in names})
        if classes and void == 255:
            colors = {value: (*color, 255) for value, color in zip(classes.ids, classes.palette, strict=True)}
            output.write_colormap(1, colors)


def read_whole(folder: Path, image: ImageSource) -> np.ndarray | None:
    """The values where an image lies in what `write_whole` wrote, integers ``[height, width]``.

    Returns:
        None of an image with a prediction of its own.

    Raises:
        BldaError: they cannot be read, or are of another size than the image.
    """
    if not isinstance(image, DividedImage):
        return None
    path = _path(folder, image)
    if isinstance(image, RasterImage) and path.exists():
        with RasterImage(path, image.key).opened() as predictions:
            _refuse_other_size(path, predictions.shape, image)
            values: np.ndarray = predictions.read(1, window=image.place())
        return values
    if not image.is_part:
        return None
    whole = kept_label_file(path)
    _refuse_other_size(path, whole.size, image)
    return whole.part(image.place()).values


def _path(folder: Path, part: DividedImage) -> Path:
    return folder / f"{part.labelled_as}{'.tif' if isinstance(part, RasterImage) else '.png'}"


def _refuse_other_size(path: Path, size: tuple[int, int], image: DividedImage) -> None:
    if size != image.whole_size():
        raise BldaError(f"{path} is of another size than {image.path}: run blda align again")
