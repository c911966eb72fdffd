"""Predictions of maps: one GeoTIFF a map, where its parts were predicted one by one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from blda_cli.data.classes import ClassSet, void_value
from blda_cli.data.raster_images import RasterImage
from blda_cli.errors import BldaError
from blda_cli.files import replacing

MapParts = Mapping[str, RasterImage]
"""The parts of one map, by key."""


def parts_of_maps(files: Iterable[object]) -> list[MapParts]:
    """The parts of maps among images, map by map."""
    maps: dict[Path, dict[str, RasterImage]] = {}
    for file in files:
        if isinstance(file, RasterImage) and file.part:
            maps.setdefault(file.path, {})[file.key] = file
    return list(maps.values())


def map_path(folder: Path, part: RasterImage) -> Path:
    """Path of the predictions of the map that a part belongs to."""
    return folder / f"{part.labelled_as}.tif"


def write_map(folder: Path, parts: MapParts, classes: ClassSet | None) -> None:
    """Put the PNG files of a map's parts together to a GeoTIFF, and remove them.

    It has the coordinate system and transform of the map, the classes' colours, their names as the tags
    ``class_VALUE``, and the value of void pixels as nodata; parts without a file are void.

    Args:
        folder: holds ``KEY.png`` of the parts, ids as ``classes.ids`` says.
        parts: of one map.
        classes: the classes with the values they have in the files; None: the files hold other values of 8 bits.

    Raises:
        BldaError: a file cannot be read or written.
    """
    import rasterio
    from PIL import Image

    first = next(iter(parts.values()))
    pictures = {key: folder / f"{key}.png" for key in parts}
    path = map_path(folder, first)
    if path.exists() and not any(picture.exists() for picture in pictures.values()):
        return  # an earlier run did it, and was stopped afterwards
    void = void_value(classes.ids) if classes else None
    with first.opened() as raster:
        profile = {
            "driver": "GTiff", "height": raster.height, "width": raster.width, "count": 1, "nodata": void,
            "dtype": "uint16" if void == 65535 else "uint8", "crs": raster.crs, "transform": raster.transform,
            "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "BIGTIFF": "IF_SAFER",
            "SPARSE_OK": True,
        }  # fmt: skip
        places = {key: part.place(raster) for key, part in parts.items()}
    with replacing(path) as temporary, rasterio.open(temporary, "w", **profile) as output:
        for key, place in places.items():
            if pictures[key].exists():
                output.write(np.asarray(Image.open(pictures[key])), 1, window=place)
        if classes:
            output.update_tags(
                1, **{f"class_{id_}": name for id_, name in zip(classes.ids, classes.names, strict=True)}
            )
        if classes and void == 255:
            colors = {value: (*color, 255) for value, color in zip(classes.ids, classes.palette, strict=True)}
            output.write_colormap(1, colors)
    for picture in pictures.values():
        picture.unlink(missing_ok=True)
    for holder in {picture.parent for picture in pictures.values()}:
        if not any(holder.iterdir()):
            holder.rmdir()


def read_map(folder: Path, part: RasterImage) -> np.ndarray:
    """The values of a part of a map's predictions, integers ``[height, width]``.

    Raises:
        BldaError: they cannot be read, or are of another size than the map.
    """
    path = map_path(folder, part)
    with part.opened() as raster, RasterImage(path, part.key).opened() as predictions:
        if raster.shape != predictions.shape:
            raise BldaError(f"{path} is of another size than {part.path}: run blda align again")
        values: np.ndarray = predictions.read(1, window=part.place(raster))
    return values
