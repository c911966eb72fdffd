"""Labels from annotation tools: CVAT, COCO and labelme."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blda_cli.data.classes import class_set
from blda_cli.data.images import find_images
from blda_cli.data.labels import LabelReader, label_reader
from blda_cli.errors import BldaError

CLASSES = class_set(["road", "traffic sign", "sky"])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images" / "east").mkdir(parents=True)
    for name in ("east/a.jpg", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def reader(images: Path, source: Path, **more: Any) -> LabelReader:
    return label_reader(find_images(images), source, CLASSES, **more)


def labels(images: Path, source: Path, **more: Any) -> list[np.ndarray]:
    read = reader(images, source, **more)
    return [read(file) for file in find_images(images)]


def coco(folder: Path, *regions: tuple[int, int, Any], **more: Any) -> Path:
    content = {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 9, "file_name": "some/where/a.jpg", "width": 40, "height": 30},
        ],
        "categories": [{"id": 3, "name": "Road"}, {"id": 1, "name": "traffic-sign"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"image_id": image, "category_id": category, "segmentation": shape} for image, category, shape in regions
        ],
        **more,
    }
    (folder / "coco.json").write_text(json.dumps(content))
    return folder / "coco.json"


def test_coco_regions(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="the extra coco is not installed")
    from pycocotools import mask as coco_mask

    packed = np.zeros((30, 40), np.uint8, order="F")
    packed[3:9, 30:] = 1
    runs = coco_mask.encode(packed)
    source = coco(
        tmp_path,
        (7, 3, [[0, 0, 10, 0, 10, 20, 0, 20]]),
        (7, 1, [[5, 5, 15, 5, 15, 25, 5, 25], [20, 0, 30, 0, 30, 30]]),  # later regions cover earlier ones
        (7, 5, [[0, 0, 40, 0, 40, 30]]),  # of no class of the network
        (9, 1, {"size": [30, 40], "counts": runs["counts"].decode()}),
        (9, 3, {"size": [30, 40], "counts": [2, 5, 1193]}),
    )
    b, a = labels(images, source, encoding="ids")
    assert set(np.unique(b)) == {-1, 0, 1}
    assert (b[:5, :10] == 0).all()
    assert (b[5:25, 5:15] == 1).all()
    assert (b[26:, :15] == -1).all()
    assert (a[3:9, 30:] == 1).all()
    assert (a[2:7, 0] == 0).all()
    assert (a >= 0).sum() == 6 * 10 + 5
    assert reader(images, source).unmatched == ("dog",)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([[50, 50, 60, 50, 60, 60]], "shape 1 of b lies outside the image, or has no area"),
        ([[1, 1, 2, 2]], "a polygon of fewer than three points"),
        ([[1, 1, 2, 2, "x", 3]], "points that are no pairs of numbers"),
        ({"size": [30, 40], "counts": [2, 5]}, "runs that do not add up to the image"),
        ({"size": [3, 4], "counts": [12]}, r"is of size \[3, 4\], the image of \[30, 40\]"),
        ({"size": [30, 40], "counts": 5}, "cannot be decoded"),
    ],
)
def test_regions_that_cannot_be(images: Path, tmp_path: Path, shape: Any, said: str) -> None:
    pytest.importorskip("pycocotools", reason="the extra coco is not installed")
    with pytest.raises(BldaError, match=said):
        labels(images, coco(tmp_path, (7, 3, shape)))


def test_coco_files_that_do_not_fit(images: Path, tmp_path: Path) -> None:
    whole = (7, 3, {"size": [30, 40], "counts": [0, 1200]})
    with pytest.raises(BldaError, match=r"has no image called b \(it has 1, such as other.png\): give the file"):
        labels(images, coco(tmp_path, images=[{"id": 7, "file_name": "other.png"}]))
    with pytest.raises(BldaError, match="names 'cat', which is none of the segmenter's 3 classes"):
        labels(images, coco(tmp_path, whole, categories=[{"id": 3, "name": "cat"}]))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(BldaError, match=r"is no COCO file of regions: .* lacks 'categories'"):
        labels(images, tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{" * 10)
    with pytest.raises(BldaError, match=r"x.json is no JSON"):
        labels(images, tmp_path / "x.json")
    source = coco(tmp_path, whole)
    Image.new("RGB", (41, 30)).save(images / "b.png")
    with pytest.raises(BldaError, match=r"of an image of 40x30 \(width x height\), .*b.png is 41x30"):
        labels(images, source)


def labelme(folder: Path, name: str, *shapes: dict[str, Any]) -> None:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"shapes": list(shapes), "imageHeight": 30, "imageWidth": 40, "imagePath": "x.png"}
    path.write_text(json.dumps(content))


def test_labelme_shapes(images: Path, tmp_path: Path) -> None:
    mask = io.BytesIO()
    Image.fromarray(np.eye(5, dtype=np.uint8)).save(mask, format="PNG")
    folder = tmp_path / "labelme"
    labelme(
        folder, "b",
        {"label": "sky", "points": [[0, 0], [39, 9]], "shape_type": "rectangle"},
        {"label": "road", "points": [[0, 20], [39, 20], [39, 29], [0, 29]]},
        {"label": "Traffic Sign", "points": [[20, 15], [20, 18]], "shape_type": "circle"},
    )  # fmt: skip
    picture = base64.b64encode(mask.getvalue()).decode()
    labelme(folder, "east/a", {"label": "road", "points": [[36, 2], [40, 6]], "shape_type": "mask", "mask": picture})
    b, a = labels(images, folder)
    assert (b[:10] == 2).all()
    assert (b[20:] == 0).all()
    assert b[15, 20] == b[12, 20] == 1
    assert (b[10:12] == -1).all()
    assert [tuple(place) for place in np.argwhere(a == 0)] == [(2, 36), (3, 37), (4, 38), (5, 39)]


def test_labelme_files_that_do_not_fit(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labelme"
    labelme(folder, "b", {"label": "sky", "points": [[0, 0], [39, 9]], "shape_type": "line"})
    with pytest.raises(BldaError, match=r"no label found for .*a.jpg in .*: east/a.json of labelme is looked for"):
        labels(images, folder)
    labelme(folder, "a", {"label": "sky", "points": [[0, 0], [9, 9]], "shape_type": "rectangle"})
    with pytest.raises(BldaError, match="shape 1 of b is a line of 2 points, which covers no area"):
        labels(images, folder)
    (folder / "b.json").write_text('{"shapes": [{"points": []}]}')
    with pytest.raises(BldaError, match="is no file of labelme: it needs shapes with label and points"):
        labels(images, folder)


def cvat(folder: Path, text: str) -> Path:
    for name in ("east/a", "b"):
        picture = np.zeros((30, 40, 3), np.uint8)
        picture[:10] = (1, 2, 3)
        picture[10:20] = (9, 9, 9)
        for kind in ("SegmentationClass", "SegmentationObject"):
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    (folder / "labelmap.txt").write_text(text)
    return folder


def test_cvat_masks(images: Path, tmp_path: Path) -> None:
    head = "# label:color_rgb:parts:actions\nbackground:0,0,0::\n"
    folder = cvat(tmp_path / "cvat", head + "road:1,2,3::\nsky:9,9,9::\ndog:7,7,7::\n")
    for label in labels(images, folder):
        assert (label[:10] == 0).all()
        assert (label[10:20] == 2).all()
        assert (label[20:] == -1).all()
    assert reader(images, folder).unmatched == ("dog",)
    with pytest.raises(BldaError, match="names 'background', which is none"):
        labels(images, cvat(tmp_path / "cvat", head))
    with pytest.raises(BldaError, match=r"labelmap.txt, line 1: 'road' is not NAME:RED,GREEN,BLUE"):
        labels(images, cvat(tmp_path / "cvat", "road"))


def test_json_beside_label_pictures_is_no_annotation(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gt"
    labelme(folder, "b", {"label": "sky", "points": [[0, 0], [39, 9]], "shape_type": "rectangle"})
    for name in ("a", "b"):
        Image.fromarray(np.full((30, 40), 1, np.uint8)).save(folder / f"{name}.png")
    assert all((label == 1).all() for label in labels(images, folder, encoding="ids"))
