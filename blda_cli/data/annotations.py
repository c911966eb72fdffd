"""Labels as annotation tools export them: COCO's and labelme's JSON, and CVAT's ``labelmap.txt``."""

import base64
import binascii
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.classes import ClassSet, Color
from blda_cli.data.encodings import LabelEncoding, resolve, unknown_names
from blda_cli.data.label_files import LABEL_SUFFIXES
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError

LABELMAP = "labelmap.txt"
MASKS = "SegmentationClass"
"""The folder of masks in CVAT's export "Segmentation mask"."""

_MOST_JSON = 1 << 30
"""Bytes of an annotation file at most."""

T = TypeVar("T")

Groups = Mapping[str, Sequence[str]] | None


@dataclass(frozen=True)
class AnnotatedLabels:
    """Reads labels that are drawn as shapes; the pixels of no shape have no class.

    Attributes:
        encoding: name of the format.
        paths: the file of each image's shapes, by the image's key.
        unmatched: names of shapes' classes that are none of the segmenter's; their pixels have no class.
        shapes: of each image, in the order they are drawn, each with its class id.
    """

    encoding: str
    paths: dict[str, Path]
    unmatched: tuple[str, ...]
    shapes: dict[str, list[tuple["Shape", int]]]

    def __call__(self, image: ImageSource) -> np.ndarray:
        """The label of an image, int16 ``[H, W]``; later shapes cover earlier ones.

        Raises:
            BldaError: a shape cannot be drawn, lies outside the image, or is of an image of another size.
        """
        if image.is_part:
            raise BldaError(
                f"{image.path} is run in parts, for which no shapes are drawn: give its labels as a picture of its size"
            )
        size = image.size()
        labels = np.full(size, IGNORE_INDEX, dtype=np.int16)
        path = self.paths[image.key]
        for number, (shape, index) in enumerate(self.shapes[image.key], start=1):
            if shape.size not in (None, size):
                assert shape.size is not None
                raise BldaError(
                    f"{path} is of an image of {shape.size[1]}x{shape.size[0]} (width x height), {image.location} is "
                    f"{size[1]}x{size[0]}: labels must have the images' size"
                )
            try:
                mask = shape.mask(size)
            except BldaError as error:
                raise BldaError(f"{path}: shape {number} of {image.key} {error}") from error
            if not mask.any():
                raise BldaError(f"{path}: shape {number} of {image.key} lies outside the image, or has no area")
            labels[mask] = index
        return labels


@dataclass(frozen=True)
class Shape:
    """One annotated region.

    Attributes:
        name: of its class.
        kind: ``polygon``, ``rectangle``, ``circle``, ``mask`` (a picture at a place), or ``coco``.
        data: points ``[[x, y], ...]``, for ``mask`` with the picture, for ``coco`` the ``segmentation`` of COCO.
        size: (height, width) of the image it was drawn on; None: not stated.
        picture: of a ``mask``, as base64 of a PNG.
    """

    name: str
    kind: str
    data: Any
    size: tuple[int, int] | None
    picture: str = field(default="", repr=False)

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """Where it lies, bool ``[H, W]``.

        Raises:
            BldaError: it cannot be drawn.
        """
        if self.kind == "coco":
            return _coco_mask(self.data, size)
        points = _points(self.data)
        if self.kind == "mask":
            return self._pasted(points, size)
        canvas = Image.new("1", (size[1], size[0]))
        draw = ImageDraw.Draw(canvas)
        if self.kind == "polygon" and len(points) >= 3:
            draw.polygon(points, fill=1)
        elif self.kind == "rectangle" and len(points) == 2:
            (left, right), (top, bottom) = (sorted(values) for values in zip(*points, strict=True))
            draw.rectangle([left, top, right, bottom], fill=1)
        elif self.kind == "circle" and len(points) == 2:
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=1)
        else:
            raise BldaError(f"is a {str(self.kind)[:20]} of {len(points)} points, which covers no area")
        return np.asarray(canvas)

    def _pasted(self, points: list[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
        """Labelme's masks: the picture's upper left is the first point."""
        try:
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(self.picture, validate=True)))).astype(bool)
        except (OSError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
            raise BldaError("holds no picture that can be read") from error
        whole = np.zeros(size, dtype=bool)
        left, top = (max(0, round(value)) for value in points[0])
        part = picture[: max(0, size[0] - top), : max(0, size[1] - left)]
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
        return whole


def annotated_labels(
    images: Sequence[ImageSource], source: Path, classes: ClassSet, groups: Groups
) -> AnnotatedLabels | None:
    """The labels of images from annotation files.

    Args:
        images: the images.
        source: a COCO file, or a folder of labelme's files beside each other as the images are.
        classes: the segmenter's classes.
        groups: for each of them the names of the classes it groups.

    Returns:
        The labels; None where there are no annotation files.

    Raises:
        BldaError: a file cannot be read, lacks an image, or has none of the classes.
    """
    if source.is_file() and source.suffix.lower() == ".json":
        name, paths, shapes = "coco", {image.key: source for image in images}, _coco_shapes(images, source)
    elif source.is_dir() and _holds_json_alone(source):
        name, (paths, shapes) = "labelme", _labelme_shapes(images, source)
    else:
        return None
    ids, unmatched = class_indices(
        (one.name for of_image in shapes.values() for one in of_image), name, classes, groups
    )
    indexed = {key: [(one, ids[one.name]) for one in of_image if one.name in ids] for key, of_image in shapes.items()}
    return AnnotatedLabels(name, paths, unmatched, indexed)


def _holds_json_alone(folder: Path) -> bool:
    """Whether there is JSON in a folder, and no label picture: Cityscapes has polygons beside its pictures."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*")}
    return ".json" in suffixes and not suffixes & LABEL_SUFFIXES


def cvat_encoding(folder: Path, classes: ClassSet, groups: Groups) -> tuple[LabelEncoding, tuple[str, ...]]:
    """What the colours of CVAT's masks mean, as ``labelmap.txt`` says: lines of ``name:red,green,blue:parts:actions``.

    Args:
        folder: the export.
        classes: the segmenter's classes.
        groups: for each of them the names of the classes it groups.

    Returns:
        The encoding, without the classes that are none of the segmenter's, and the names of those.

    Raises:
        BldaError: the file cannot be read, or none of its classes is the segmenter's.
    """
    path = folder / LABELMAP
    colors: dict[Color, str] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        parts = rest.split(":")[0].split(",")
        if len(parts) != 3 or not all(part.strip().isdigit() and int(part) <= 255 for part in parts):
            raise BldaError(f"{path}, line {number}: {line[:60]!r} is not NAME:RED,GREEN,BLUE:PARTS:ACTIONS")
        colors[int(parts[0]), int(parts[1]), int(parts[2])] = name.strip()
    ids, unmatched = class_indices(colors.values(), LABELMAP, classes, groups)
    known = {color: ids[name] for color, name in colors.items() if name in ids}
    return LabelEncoding(LABELMAP, colors=known, void=None), tuple(name for name in unmatched if name != "background")


def class_indices(
    names: Any, encoding: str, classes: ClassSet, groups: Groups
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The segmenter's class of each name, and the names that are no class of it.

    Raises:
        BldaError: no name is a class of the segmenter.
    """
    known = dict(enumerate(dict.fromkeys(names)))
    lookup = resolve(LabelEncoding(encoding, values=known, void=None), classes, groups)
    if known and not lookup.values:
        raise unknown_names(lookup, classes)
    return {known[place]: index for place, index in lookup.values.items()}, lookup.unmatched


def _coco_shapes(images: Sequence[ImageSource], path: Path) -> dict[str, list[Shape]]:
    content = _json(path)
    try:
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        files = {one["id"]: one for one in content["images"]}
        of_image: dict[Any, list[Shape]] = defaultdict(list)
        for one in content["annotations"]:
            image = files[one["image_id"]]
            size = (image["height"], image["width"]) if "height" in image and "width" in image else None
            of_image[one["image_id"]].append(Shape(names[one["category_id"]], "coco", one["segmentation"], size))
        by_name = _findable({_plain(str(one["file_name"])): number for number, one in files.items()})
    except (KeyError, TypeError) as error:
        raise BldaError(
            f"{path} is no COCO file of regions: it needs images, categories and annotations with a segmentation, and "
            f"lacks {error}"
        ) from error
    shapes = {}
    for image in images:
        number = next((by_name[name] for name in _names(image) if name in by_name), None)
        if number is None:
            other = next(iter(files.values()), {"file_name": "none"})["file_name"]
            raise BldaError(
                f"{path} has no image called {image.key} (it has {len(files)}, such as {str(other)[:60]}): give the "
                "file of these images"
            )
        shapes[image.key] = of_image[number]
    return shapes


def _labelme_shapes(images: Sequence[ImageSource], folder: Path) -> tuple[dict[str, Path], dict[str, list[Shape]]]:
    found = sorted(folder.rglob("*.json"))
    files = _findable({_plain(path.relative_to(folder).as_posix()): path for path in found})
    paths, shapes = {}, {}
    for image in images:
        path = next((files[name] for name in _names(image) if name in files), None)
        if path is None:
            raise BldaError(
                f"no label found for {image.location} in {folder}: {image.key}.json of labelme is looked for"
            )
        content = _json(path)
        try:
            height, width = content.get("imageHeight"), content.get("imageWidth")
            size = (int(height), int(width)) if height and width else None
            shapes[image.key] = [
                Shape(str(one["label"]), one.get("shape_type") or "polygon", one["points"], size, one.get("mask") or "")
                for one in content["shapes"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BldaError(f"{path} is no file of labelme: it needs shapes with label and points ({error})") from error
        paths[image.key] = path
    return paths, shapes


def _findable(by_path: dict[str, T]) -> dict[str, T]:
    """Entries by path, and by the last part of it where that is no other's."""
    last = Counter(PurePosixPath(path).name for path in by_path)
    short = {PurePosixPath(path).name: one for path, one in by_path.items()}
    return {name: one for name, one in short.items() if last[name] == 1} | by_path


def _names(image: ImageSource) -> list[str]:
    """The names that a file may have for an image, the most precise first."""
    key = PurePosixPath(image.labelled_as)
    return [str(key), key.name]


def _plain(name: str) -> str:
    """A file's name in an annotation file in the form of keys: with ``/``, without a suffix."""
    return str(PurePosixPath(name.replace("\\", "/")).with_suffix(""))


def _points(data: Any) -> list[tuple[float, float]]:
    try:
        points = [(float(x), float(y)) for x, y in data]
    except (TypeError, ValueError) as error:
        raise BldaError("has points that are no pairs of numbers") from error
    if not points or not all(math.isfinite(value) and abs(value) < 1e7 for point in points for value in point):
        raise BldaError("has no points, or points that no image has")
    return points


def _coco_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a COCO segmentation: polygons, or runs in columns, as numbers or packed."""
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        return _from_runs(segmentation["counts"], segmentation.get("size"), size)
    try:
        from pycocotools import mask as coco
    except ModuleNotFoundError as error:
        raise BldaError("is a polygon or packed runs: pip install 'blda-cli[coco]' for what reads those") from error
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", size)) != list(size):
            raise BldaError(f"is of size {segmentation['size']}, the image of {list(size)}")
        runs = [segmentation]
    else:
        flat = [_points(list(zip(one[::2], one[1::2], strict=False))) for one in segmentation if len(one) >= 6]
        if not flat:
            raise BldaError("is a polygon of fewer than three points")
        runs = coco.frPyObjects([[value for point in one for value in point] for one in flat], *size)
    try:
        mask: np.ndarray = coco.decode(coco.merge(runs)).astype(bool)
    except (TypeError, ValueError, KeyError) as error:
        raise BldaError("cannot be decoded") from error
    return mask


def _from_runs(counts: list[Any], of: Any, size: tuple[int, int]) -> np.ndarray:
    if of is not None and list(of) != list(size):
        raise BldaError(f"is of size {of}, the image of {list(size)}")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise BldaError("has runs that do not add up to the image")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[1], size[0]).T


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise BldaError(f"{path} is larger than 1 GiB: split it")
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise BldaError(f"{path} is no JSON: {str(error)[:100]}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BldaError(f"{path} cannot be read as text: {error}") from error
