"""Predictions as annotation tools import them, to be corrected by hand."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blda_cli.data.annotations import LABELMAP, MASKS
from blda_cli.data.classes import ClassSet
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import replacing, to_json
from blda_cli.runtime.monitor import Monitor
from blda_cli.store.predictions import ANNOTATIONS, PREDICTIONS, AlignedFolder


def write_annotations(folder: AlignedFolder, tool: str, monitor: Monitor) -> None:
    """Write aligned predictions for an annotation tool, into ``annotations/``.

    Args:
        folder: the predictions.
        tool: ``"cvat"`` (its "Segmentation mask 1.1": masks in the classes' colours and ``labelmap.txt``), ``"coco"``
            (``instances.json``, a region of runs for each class and image) or ``"labelme"`` (``KEY.json``, a mask for
            each class).
        monitor: receives the progress.

    Raises:
        BldaError: a prediction cannot be read, a file cannot be written, or two classes have one colour.
    """
    place, classes = folder.path / ANNOTATIONS, folder.record.class_set
    writers: dict[str, Callable[[Path, ClassSet], Any]] = {"cvat": _Cvat, "coco": _Coco, "labelme": _Labelme}
    writer = writers[tool](place, classes)
    files = folder.files
    monitor.start("annotating", len(files))
    for file in files:
        writer.add(file, folder.read(file.key, PREDICTIONS))
        monitor.advance(1)
        monitor.check()
    writer.finish()


class _Cvat:
    def __init__(self, place: Path, classes: ClassSet) -> None:
        if len({*classes.palette, (0, 0, 0)}) <= len(classes):
            raise BldaError("--annotations cvat: two classes have one colour, or one is black: give [classes] palette")
        self.place = place
        self.classes = classes
        self.palette = np.array([*classes.palette, (0, 0, 0)], dtype=np.uint8)  # IGNORE_INDEX is the last entry
        self.keys: list[str] = []

    def add(self, file: ImageSource, labels: np.ndarray) -> None:
        picture = Image.fromarray(self.palette[labels])
        for kind in (MASKS, "SegmentationObject"):
            with replacing(self.place / kind / f"{file.key}.png") as temporary:
                picture.save(temporary, format="PNG")
        self.keys.append(file.key)

    def finish(self) -> None:
        lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
        for name, color in zip(self.classes.names, self.classes.palette, strict=True):
            lines.append(f"{name.replace(':', ' ')}:{','.join(map(str, color))}::")
        _write(self.place / LABELMAP, "\n".join(lines) + "\n")
        _write(self.place / "ImageSets" / "Segmentation" / "default.txt", "".join(f"{key}\n" for key in self.keys))


class _Coco:
    def __init__(self, place: Path, classes: ClassSet) -> None:
        self.place = place
        self.classes = classes
        self.images: list[dict[str, Any]] = []
        self.regions: list[dict[str, Any]] = []

    def add(self, file: ImageSource, labels: np.ndarray) -> None:
        height, width = labels.shape
        name = f"{file.key}{file.path.suffix}"
        self.images.append({"id": len(self.images) + 1, "file_name": name, "height": height, "width": width})
        for index in _present(labels):
            mask = labels == index
            left, top, right, bottom = _box(mask)
            self.regions.append(
                {
                    "id": len(self.regions) + 1,
                    "image_id": len(self.images),
                    "category_id": index + 1,
                    "segmentation": {"counts": runs_of(mask), "size": [height, width]},
                    "area": int(mask.sum()),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 1,  # what a region of runs is to COCO
                }
            )

    def finish(self) -> None:
        names = enumerate(self.classes.names, start=1)
        categories = [{"id": number, "name": name, "supercategory": ""} for number, name in names]
        content = {"images": self.images, "categories": categories, "annotations": self.regions}
        _write(self.place / "instances.json", to_json(content))


class _Labelme:
    def __init__(self, place: Path, classes: ClassSet) -> None:
        self.place = place
        self.classes = classes

    def add(self, file: ImageSource, labels: np.ndarray) -> None:
        shapes: list[dict[str, Any]] = []
        for index in _present(labels):
            mask = labels == index
            left, top, right, bottom = _box(mask)
            data = io.BytesIO()
            Image.fromarray(mask[top:bottom, left:right].astype(np.uint8)).save(data, format="PNG")
            shapes.append(
                {
                    "label": self.classes.names[index],
                    "points": [[left, top], [right - 1, bottom - 1]],
                    "shape_type": "mask",
                    "mask": base64.b64encode(data.getvalue()).decode(),
                    "group_id": None,
                    "flags": {},
                }
            )
        content = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": str(file.path.absolute()),
            "imageData": None,
            "imageHeight": labels.shape[0],
            "imageWidth": labels.shape[1],
        }
        _write(self.place / f"{file.key}.json", to_json(content))

    def finish(self) -> None:
        pass


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's runs of a mask, bool ``[H, W]``: lengths of zeros and ones in turn, column by column, zeros first."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0] if not flat[0] else [0, 0], changes, [flat.size]])
    return [int(length) for length in np.diff(edges)]


def _present(labels: np.ndarray) -> list[int]:
    return [index for index in np.unique(labels).tolist() if index >= 0]


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, the last two not in it."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
