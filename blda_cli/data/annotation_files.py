"""Files of annotation tools: COCO, labelme, Label Studio and CVAT."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from blda_cli.data.shapes import Shape
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError

_MOST_JSON = 1 << 30
"""Bytes of an annotation file at most."""

T = TypeVar("T")

Shapes = dict[str, list[Shape]]
"""The shapes of each image, by its key, in the order they are drawn."""


def coco_shapes(images: Sequence[ImageSource], path: Path, content: Any) -> Shapes:
    """The regions of a COCO file.

    Args:
        images: the images.
        path: the file, for messages.
        content: what it holds.

    Raises:
        BldaError: it is no such file, or lacks an image.
    """
    try:
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        files = {one["id"]: one for one in content["images"]}
        of_image: dict[Any, list[Shape]] = defaultdict(list)
        for one in content["annotations"]:
            image = files[one["image_id"]]
            size = (image["height"], image["width"]) if "height" in image and "width" in image else None
            of_image[one["image_id"]].append(Shape(names[one["category_id"]], "coco", one["segmentation"], size))
        by_name = {_plain(str(one["file_name"])): number for number, one in files.items()}
    except (KeyError, TypeError) as error:
        raise BldaError(
            f"{path} is no COCO file of regions: it needs images, categories and annotations with a segmentation, and "
            f"lacks {error}"
        ) from error
    return _of_images(images, path, {name: of_image[number] for name, number in by_name.items()})


def labelme_shapes(images: Sequence[ImageSource], folder: Path) -> tuple[dict[str, Path], Shapes]:
    """The file of each image, and its shapes, of a folder of labelme's files.

    Raises:
        BldaError: a file cannot be read, or an image has none.
    """
    found = {_plain(path.relative_to(folder).as_posix()): path for path in sorted(folder.rglob("*.json"))}
    paths = _matched(images, folder, found)
    shapes = {}
    for image in images:
        path = paths.get(image.key)
        if path is None:
            raise BldaError(
                f"no label found for {image.location} in {folder}: {image.key}.json of labelme is looked for"
            )
        content = read_json(path)
        try:
            height, width = content.get("imageHeight"), content.get("imageWidth")
            size = (int(height), int(width)) if height and width else None
            shapes[image.key] = [
                Shape(str(one["label"]), one.get("shape_type") or "polygon", one["points"], size, one.get("mask") or "")
                for one in content["shapes"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BldaError(f"{path} is no file of labelme: it needs shapes with label and points ({error})") from error
    return paths, shapes


def studio_shapes(images: Sequence[ImageSource], path: Path, content: Any) -> Shapes:
    """The regions of Label Studio's JSON: brushes, polygons, rectangles and ellipses.

    Of several annotations of a task the ground truth is taken, else the last that was not cancelled.

    Args:
        images: the images.
        path: the file, for messages.
        content: what it holds.

    Raises:
        BldaError: it is no such file, or lacks an image.
    """
    by_name: dict[str, list[Shape]] = {}
    try:
        for task in content:
            done = [one for one in task["annotations"] if not one.get("was_cancelled")]
            chosen = next((one for one in done if one.get("ground_truth")), done[-1] if done else {"result": []})
            names = [value for value in task["data"].values() if isinstance(value, str)]
            shapes = [_studio_shape(one) for one in chosen["result"] if str(one.get("type")).endswith("labels")]
            by_name |= {_uploaded(name): shapes for name in names}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BldaError(
            f"{path} is no export of Label Studio as JSON: it needs tasks with data and annotations, and lacks {error} "
            "(JSON-MIN and CSV are not read)"
        ) from error
    return _of_images(images, path, by_name)


def _studio_shape(one: Any) -> Shape:
    kind, value = str(one["type"]), one["value"]
    width, height = int(one["original_width"]), int(one["original_height"])
    name, size = str(value[kind][0]), (height, width)
    if kind == "brushlabels":
        return Shape(name, "brush", value["rle"], size)
    if kind == "polygonlabels":
        return _outlined(name, [(x * width / 100, y * height / 100) for x, y in value["points"]], size)
    if kind not in ("rectanglelabels", "ellipselabels"):
        return Shape(name, kind, [[0, 0]], size)  # which covers no area
    x, y = value["x"] * width / 100, value["y"] * height / 100
    turn = math.radians(value.get("rotation") or 0)
    if kind == "rectanglelabels":
        right, down = value["width"] * width / 100, value["height"] * height / 100
        return _outlined(name, _turned([(0, 0), (right, 0), (right, down), (0, down)], turn, (x, y)), size)
    radii = value["radiusX"] * width / 100, value["radiusY"] * height / 100
    return _outlined(name, _turned(_ellipse(*radii), turn, (x, y)), size)


def _uploaded(name: str) -> str:
    """The key of an image from its address in Label Studio."""
    address = urlsplit(name)
    return _plain(unquote(parse_qs(address.query).get("d", [address.path])[0]))


def cvat_shapes(images: Sequence[ImageSource], path: Path) -> Shapes:
    """The regions of "CVAT for images", ``annotations.xml``: polygons, boxes, ellipses and masks, the lowest first.

    Raises:
        BldaError: it is no such file, or lacks an image.
    """
    try:
        root = ElementTree.fromstring(read_text(path))
        if root.tag != "annotations" or root.find("track") is not None:
            raise BldaError(
                f'{path} is no file of CVAT for images (videos have tracks): export it as "Segmentation mask 1.1" and '
                "give the unpacked folder"
            )
        by_name = {}
        for image in root.iter("image"):
            size = int(image.attrib["height"]), int(image.attrib["width"])
            drawn = sorted(image, key=lambda one: int(one.get("z_order", 0)))
            by_name[_plain(image.attrib["name"])] = [_cvat_shape(one, size) for one in drawn if "label" in one.attrib]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise BldaError(f"{path} cannot be read as a file of CVAT for images: {error}") from error
    return _of_images(images, path, by_name)


def _cvat_shape(one: ElementTree.Element, size: tuple[int, int]) -> Shape:
    said, turn = one.attrib, math.radians(float(one.get("rotation", 0)))
    name = said["label"]

    def numbers(*keys: str) -> list[float]:
        return [float(said[key]) for key in keys]

    if one.tag == "polygon":
        return _outlined(name, [tuple(map(float, pair.split(","))) for pair in said["points"].split(";")], size)
    if one.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        x, y = (right - left) / 2, (bottom - top) / 2
        return _outlined(name, _turned([(-x, -y), (x, -y), (x, y), (-x, y)], turn, (left + x, top + y)), size)
    if one.tag == "ellipse":
        x, y, *radii = numbers("cx", "cy", "rx", "ry")
        return _outlined(name, _turned(_ellipse(*radii), turn, (x, y)), size)
    if one.tag == "mask":
        box = [int(value) for value in numbers("left", "top", "width", "height")]
        return Shape(name, "runs", (box, [int(run) for run in said["rle"].split(",")]), size)
    return Shape(name, one.tag, [[0, 0]], size)  # which covers no area


def _outlined(name: str, corners: Sequence[tuple[float, ...]], size: tuple[int, int]) -> Shape:
    return Shape(name, "outline", corners, size)


def _turned(
    points: Sequence[tuple[float, float]], turn: float, origin: tuple[float, float]
) -> list[tuple[float, float]]:
    """Points about 0, turned clockwise as seen and moved to an origin."""
    cos, sin = math.cos(turn), math.sin(turn)
    return [(origin[0] + cos * x - sin * y, origin[1] + sin * x + cos * y) for x, y in points]


def _ellipse(x: float, y: float) -> list[tuple[float, float]]:
    return [(x * math.cos(angle), y * math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 73)[:-1].tolist()]


def _of_images(images: Sequence[ImageSource], path: Path, by_name: dict[str, list[Shape]]) -> Shapes:
    """The shapes of each image from those of each name in a file.

    Raises:
        BldaError: an image has none, or two would have the same.
    """
    shapes = _matched(images, path, by_name)
    missing = next((image for image in images if image.key not in shapes), None)
    if missing is not None:
        raise BldaError(
            f"{path} has no image called {missing.key} (it has {len(by_name)}, such as "
            f"{next(iter(by_name), 'none')[:60]}): give the file of these images"
        )
    return shapes


def _matched(images: Sequence[ImageSource], source: Path, by_path: dict[str, T]) -> dict[str, T]:
    """The entry of each image that has one, by its key, from entries by path.

    Raises:
        BldaError: two images would have the same entry.
    """
    findable, found = _findable(by_path), {}
    owners: dict[str, ImageSource] = {}
    for image in images:
        path = next((findable[name] for name in _names(image) if name in findable), None)
        if path is None:
            continue
        owner = owners.setdefault(path, image)
        if owner.labelled_as != image.labelled_as:
            raise BldaError(
                f"{owner.location} and {image.location} would both have the labels of {path} in {source}: give labels "
                "of both, named by the images' paths"
            )
        found[image.key] = by_path[path]
    return found


def _findable(paths: Iterable[str]) -> dict[str, str]:
    """Paths by themselves; by the last part where that is no other's; and by that without the eight digits that Label
    Studio puts before the names of uploads."""
    whole = list(paths)
    last = [PurePosixPath(path).name for path in whole]
    uploaded = [re.sub("^[0-9a-f]{8}-", "", name) for name in last]
    found: dict[str, str] = {}
    for names in (uploaded, last):
        times = Counter(names)
        found |= {name: path for name, path in zip(names, whole, strict=True) if times[name] == 1}
    return found | {path: path for path in whole}


def _names(image: ImageSource) -> list[str]:
    """The names that a file may have for an image, the most precise first."""
    key = PurePosixPath(image.labelled_as)
    return [str(key), key.name]


def _plain(name: str) -> str:
    """A file's name in an annotation file in the form of keys: with ``/``, without a suffix."""
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path.with_suffix("")) if path.name else ""


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        BldaError: it cannot be read, or is larger than 1 GiB.
    """
    try:
        if path.stat().st_size > _MOST_JSON:
            raise BldaError(f"{path} is larger than 1 GiB: split it")
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BldaError(f"{path} is no JSON: {str(error)[:100]}") from error


def read_text(path: Path) -> str:
    """What a text file holds.

    Raises:
        BldaError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BldaError(f"{path} cannot be read as text: {error}") from error
