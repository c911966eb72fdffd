"""Labels as annotation tools export them: shapes in files of COCO, labelme, Label Studio and CVAT, and CVAT's masks."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.annotation_files import (
    Shapes,
    coco_shapes,
    cvat_shapes,
    labelme_shapes,
    read_json,
    read_text,
    studio_shapes,
)
from blda_cli.data.classes import ClassSet, Color
from blda_cli.data.encodings import LabelEncoding, resolve, unknown_names
from blda_cli.data.label_files import LABEL_SUFFIXES
from blda_cli.data.shapes import Shape
from blda_cli.data.source import ImageSource, refuse_parts
from blda_cli.errors import BldaError

LABELMAP = "labelmap.txt"
MASKS = "SegmentationClass"
"""The folder of masks in CVAT's export "Segmentation mask"."""

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
    shapes: dict[str, list[tuple[Shape, int]]]

    def __call__(self, image: ImageSource) -> np.ndarray:
        """The label of an image, int16 ``[H, W]``; later shapes cover earlier ones.

        Raises:
            BldaError: a shape cannot be drawn, lies outside the image, or is of an image of another size.
        """
        refuse_parts([image], "a file of annotations", "give the labels as a picture of its size")
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


def annotated_labels(
    images: Sequence[ImageSource], source: Path, classes: ClassSet, groups: Groups
) -> AnnotatedLabels | None:
    """The labels of images from annotation files.

    Args:
        images: the images.
        source: a file of COCO, Label Studio or CVAT, a folder with such a file, or a folder of labelme's files beside
            each other as the images are.
        classes: the segmenter's classes.
        groups: for each of them the names of the classes it groups.

    Returns:
        The labels; None where there are no annotation files.

    Raises:
        BldaError: a file cannot be read, lacks an image, or has none of the classes.
    """
    if source.is_dir() and any(re.match(r"task-\d+-annotation-\d+-by-", path.name) for path in source.rglob("*.png")):
        raise BldaError(
            f"{source} holds brush pictures of Label Studio, which are named by task, not by image: export as JSON and "
            "give that file"
        )
    shapes: Shapes
    only = _only_file(source)
    if only is not None and only.suffix.lower() == ".xml":
        name, shapes = "cvat", cvat_shapes(images, only)
    elif only is not None:
        content = read_json(only)
        if isinstance(content, list):
            name, shapes = "label-studio", studio_shapes(images, only, content)
        else:
            name, shapes = "coco", coco_shapes(images, only, content)
    elif source.is_dir() and _holds_json_alone(source):
        name, (paths, shapes) = "labelme", labelme_shapes(images, source)
    else:
        return None
    if only is not None:
        paths = dict.fromkeys(shapes, only)
    ids, unmatched = class_indices(
        (one.name for of_image in shapes.values() for one in of_image), name, classes, groups
    )
    indexed = {key: [(one, ids[one.name]) for one in of_image if one.name in ids] for key, of_image in shapes.items()}
    return AnnotatedLabels(name, paths, unmatched, indexed)


def _only_file(source: Path) -> Path | None:
    """The file of all annotations: the source itself, or the only file of annotations in a folder without pictures.

    Raises:
        BldaError: it is packed.
    """
    if source.is_file() and source.suffix.lower() == ".zip":
        raise BldaError(f"{source} is packed: give the unpacked folder, or the .json or .xml file in it")
    if source.is_file():
        return source if source.suffix.lower() in (".json", ".xml") else None
    if not source.is_dir() or any(path.suffix.lower() in LABEL_SUFFIXES for path in source.rglob("*")):
        return None
    found = [path for path in source.rglob("*") if path.suffix.lower() in (".json", ".xml")]
    if len(found) != 1 or (found[0].suffix.lower() == ".json" and _is_labelme(found[0])):
        return None
    return found[0]


def _is_labelme(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, dict) and "shapes" in content


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
    for number, line in enumerate(read_text(path).splitlines(), start=1):
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
