"""Labels from annotation tools: CVAT, COCO, labelme and Label Studio."""

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
    with pytest.raises(BldaError, match=r"has no image called b \(it has 1, such as other\): give the file"):
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


def test_two_images_of_one_name_do_not_share_regions(images: Path, tmp_path: Path) -> None:
    (images / "west").mkdir()
    Image.new("RGB", (40, 30)).save(images / "west" / "a.jpg")
    source = coco(tmp_path, (9, 3, {"size": [30, 40], "counts": [2, 5, 1193]}))
    (tmp_path / "labelme").mkdir()
    shape = {"label": "road", "points": [[0, 0], [9, 9]], "shape_type": "rectangle"}
    for name in ("a", "b"):
        (tmp_path / "labelme" / f"{name}.json").write_text(json.dumps({"shapes": [shape]}))
    for given in (source, tmp_path / "labelme"):
        with pytest.raises(BldaError, match=r"east/a\.jpg and .*west/a\.jpg would both have the labels of .*a in"):
            reader(images, given)


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


def packed(mask: np.ndarray) -> list[int]:
    """A brush of Label Studio: a long run of zeros, the values of the rows that have some, and zeros again."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = 255
    flat = values.ravel()
    first, last = np.flatnonzero(flat)[[0, -1]]
    bits = f"{flat.size:032b}" + f"{7:05b}" + "".join(f"{length - 1:04b}" for length in (3, 4, 8, 16))

    def run(repeated: int, values: np.ndarray) -> str:
        if not len(values):
            return ""
        head = f"{repeated}11{len(values) - 1:016b}"
        return head + "".join(f"{value:08b}" for value in (values[:1] if repeated else values))

    bits += run(1, flat[:first]) + run(0, flat[first : last + 1]) + run(1, flat[last + 1 :])
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def region(kind: str, name: str, **value: Any) -> dict[str, Any]:
    return {"type": kind, "original_width": 40, "original_height": 30, "value": {**value, kind: [name]}}


def studio(folder: Path, *results: list[dict[str, Any]]) -> Path:
    places = ["/data/upload/3/0a1b2c3d-a.jpg", "/data/local-files/?d=set/b.png"]
    tasks = [
        {"id": number, "data": {"image": place, "note": 3}, "annotations": [{"result": result}]}
        for number, (place, result) in enumerate(zip(places, results, strict=True))
    ]
    (folder / "project.json").write_text(json.dumps(tasks))
    return folder / "project.json"


def test_label_studio(images: Path, tmp_path: Path) -> None:
    brush = np.zeros((30, 40), bool)
    brush[10:12, 5:30] = True
    brush[11, 7] = False
    source = studio(
        tmp_path,
        [
            region("brushlabels", "road", format="rle", rle=packed(brush)),
            {"type": "choices", "value": {"choices": ["day"]}},
        ],
        [
            region("polygonlabels", "sky", points=[[0, 0], [100, 0], [100, 50], [0, 50]]),
            region("rectanglelabels", "road", x=25, y=50, width=50, height=20, rotation=0),
            region("rectanglelabels", "Traffic-Sign", x=50, y=0, width=25, height=10, rotation=90),
            region("ellipselabels", "dog", x=50, y=90, radiusX=10, radiusY=5),
        ],
    )
    b, a = labels(images, source)
    np.testing.assert_array_equal(a == 0, brush)
    assert (a[~brush] == -1).all()
    expected = np.full((30, 40), -1)
    expected[:15] = 2
    expected[15:21, 10:30] = 0
    expected[0:10, 17:20] = 1  # turned about its corner at x = 20
    np.testing.assert_array_equal(b, expected)
    assert reader(images, source).unmatched == ("dog",)
    tasks = json.loads(source.read_text())
    tasks[1]["annotations"] += [{"result": []}, {"result": [region("keypointlabels", "road")], "was_cancelled": True}]
    source.write_text(json.dumps(tasks))
    assert (labels(images, source)[0] == -1).all()  # the last that was not cancelled
    tasks[1]["annotations"][0]["ground_truth"] = True
    source.write_text(json.dumps(tasks))
    np.testing.assert_array_equal(labels(images, source)[0], expected)


CUT = packed(np.eye(40, dtype=bool)[:30])[:40]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (region("brushlabels", "road", rle=packed(np.eye(5, dtype=bool))), "a brush of a picture of another size"),
        (region("brushlabels", "road", rle=CUT), "cannot be unpacked as a brush"),
        (region("brushlabels", "road", rle=[1, 900]), "cannot be unpacked as a brush"),
        (region("keypointlabels", "road", x=1, y=1), "is a keypointlabels of 1 points, which covers no area"),
        ({"type": "brushlabels", "value": {}}, "is no export of Label Studio as JSON"),
        (region("polygonlabels", "sky", points=[[0, 0], [9, 0], [9, 9]]) | {"original_width": 50},
         r"of an image of 50x30 \(width x height\)"),
    ],
)  # fmt: skip
def test_label_studio_that_cannot_be(images: Path, tmp_path: Path, shape: Any, said: str) -> None:
    with pytest.raises(BldaError, match=said):
        labels(images, studio(tmp_path, [], [shape]))


def test_other_exports_of_label_studio(images: Path, tmp_path: Path) -> None:
    (tmp_path / "min.json").write_text(json.dumps([{"image": "a.jpg", "tag": []}]))
    with pytest.raises(BldaError, match=r"is no export of Label Studio as JSON: .* \(JSON-MIN and CSV are not read\)"):
        labels(images, tmp_path / "min.json")
    (tmp_path / "png").mkdir()
    Image.new("L", (40, 30)).save(tmp_path / "png" / "task-1-annotation-2-by-3-tag-road-0.png")
    with pytest.raises(BldaError, match=r"holds brush pictures of Label Studio, .*: export as JSON and give that file"):
        labels(images, tmp_path / "png")


def cvat_images(folder: Path, shapes: str, more: str = "") -> Path:
    text = '<image id="{}" name="{}" width="40" height="30">{}</image>'
    inner = text.format(0, "b.png", shapes) + text.format(1, "east/a.jpg", "")
    (folder / "annotations.xml").write_text(f'<?xml version="1.0"?><annotations>{inner}{more}</annotations>')
    return folder / "annotations.xml"


def test_cvat_for_images(images: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    source = cvat_images(
        tmp_path / "export",
        '<polygon label="road" points="0.0,10.0;40.0,10.0;40.0,30.0;0.0,30.0" z_order="2"></polygon>'
        '<box label="sky" xtl="0" ytl="0" xbr="40" ybr="20" z_order="1"/>'
        '<mask label="traffic sign" rle="1, 2, 3" left="5" top="26" width="2" height="3" z_order="3"/>'
        '<ellipse label="dog" cx="3" cy="3" rx="2" ry="2"/>',
    )
    for given in (source, source.parent):
        b, a = labels(images, given)
        expected = np.full((30, 40), 2)
        expected[10:] = 0
        expected[26, 6] = expected[27, 5] = 1
        np.testing.assert_array_equal(b, expected)
        assert (a == -1).all()
    assert reader(images, source).unmatched == ("dog",)


@pytest.mark.parametrize(
    ("shapes", "more", "said"),
    [
        ("", "<track/>", 'is no file of CVAT for images .* export it as "Segmentation mask 1.1"'),
        ('<polygon label="road" points="1,2;x"/>', "", "cannot be read as a file of CVAT for images"),
        ('<polygon label="road"/>', "", "cannot be read as a file of CVAT for images"),
        ('<points label="road" points="1,2"/>', "", "shape 1 of b is a points of 1 points, which covers no area"),
        ('<mask label="road" rle="1, 2" left="0" top="0" width="2" height="3"/>', "", "runs that do not add up to its"),
        ('<mask label="road" rle="0, 6" left="39" top="0" width="2" height="3"/>', "", "or a box outside the image"),
        ("<", "", "cannot be read as a file of CVAT for images"),
    ],
)
def test_cvat_files_that_do_not_fit(images: Path, tmp_path: Path, shapes: str, more: str, said: str) -> None:
    with pytest.raises(BldaError, match=said):
        labels(images, cvat_images(tmp_path, shapes, more))


def test_a_packed_export_is_to_be_unpacked(images: Path, tmp_path: Path) -> None:
    (tmp_path / "few.zip").write_bytes(b"PK")
    with pytest.raises(BldaError, match=r"few.zip is packed: give the unpacked folder"):
        labels(images, tmp_path / "few.zip")


def test_a_folder_with_the_only_file(images: Path, tmp_path: Path) -> None:
    whole = (7, 3, {"size": [30, 40], "counts": [0, 1200]})
    (tmp_path / "export").mkdir()
    assert (labels(images, coco(tmp_path / "export", whole).parent)[0] == 0).all()
