"""docs/images.md, followed line by line: bands, depths, maps, video and annotation tools through every command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from draw import DUSK, draw_scene
from PIL import Image
from torch import nn

from tests.pages import ROOT, follow

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
av = pytest.importorskip("av", reason="the extra video is not installed")

STREETS = ROOT / "examples" / "streets"


def network(folder: Path, name: str, bands: int, classes: int) -> None:
    """A network of a few layers and random weights, as NAME.py and NAME.pth."""
    layers = f"nn.Conv2d({bands}, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, {classes}, 1)"
    (folder / f"{name}.py").write_text(
        f"from torch import nn\n\n\ndef network():\n    return nn.Sequential({layers})\n"
    )
    torch.manual_seed(1)
    made = nn.Sequential(nn.Conv2d(bands, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1))
    torch.save(made.state_dict(), folder / f"{name}.pth")


def slides(folder: Path) -> None:
    network(folder, "cells", 3, 2)
    (folder / "slides").mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 4096, (40, 60)).astype(np.uint16)
        Image.fromarray(values).save(folder / "slides" / f"{number}.png")


def maps(folder: Path) -> None:
    from rasterio.transform import from_origin

    network(folder, "land", 6, 4)
    (folder / "maps").mkdir()
    pixels = np.random.default_rng(0).integers(1, 10_000, (12, 120, 90)).astype(np.uint16)
    pixels[:, :20] = 0
    with rasterio.open(
        folder / "maps" / "scene.tif", "w", driver="GTiff", height=120, width=90, count=12, dtype="uint16", nodata=0,
        crs="EPSG:32633", transform=from_origin(5e5, 4e6, 10, 10),
    ) as raster:  # fmt: skip
        raster.write(pixels)


def drive(folder: Path) -> None:
    """A minute of one frame a second."""
    with av.open(str(folder / "drive.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        for index in range(60):
            pixels = np.roll(draw_scene(DUSK, (7, index // 20))[0], 2 * index, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def few(folder: Path) -> None:
    """Two images, whose labels CVAT exported as COCO: the road, in runs."""
    regions, images = [], []
    for name in ("frames", "few"):
        (folder / name).mkdir()
    for index in range(4):
        pixels, classes = draw_scene(DUSK, (7, index))
        Image.fromarray(pixels).save(folder / "frames" / f"{index}.png")
        if index < 2:
            Image.fromarray(pixels).save(folder / "few" / f"{index}.png")
            flat = (classes == 3).T.ravel()
            edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
            runs = np.diff([0, *edges, flat.size][: len(edges) + 1] + ([flat.size] if edges[-1] != flat.size else []))
            size = {"height": classes.shape[0], "width": classes.shape[1]}
            images.append({"id": index, "file_name": f"few/{index}.png", **size})
            shape = {"counts": [int(run) for run in runs], "size": list(classes.shape)}
            regions.append({"image_id": index, "category_id": 1, "segmentation": shape})
    content = {"images": images, "annotations": regions, "categories": [{"id": 1, "name": "road"}]}
    (folder / "few.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_images_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("streetnet.py", "streetnet.pth"):
        shutil.copy(STREETS / name, tmp_path)
    shutil.copy(STREETS / "streets.toml", tmp_path / "net.toml")
    for prepare in (slides, maps, drive, few):
        prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert follow(ROOT / "docs" / "images.md", {}) >= 18
    for name, images in (("cells", 3), ("land", 1), ("drive", 60), ("few", 2)):
        assert json.loads((tmp_path / f"report-{name}" / "report.json").read_text())["images"] == images
        assert (tmp_path / f"check-{name}" / "check.html").is_file()
    with rasterio.open(tmp_path / "aligned-land" / "predictions" / "scene.tif") as predicted:
        assert (predicted.crs.to_epsg(), predicted.nodata) == (32633, 255)
        assert (predicted.read(1)[:20] == 255).all()
        assert (predicted.read(1)[20:] < 4).all()
    with av.open(str(tmp_path / "corrected.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 60
    assert len(list((tmp_path / "aligned" / "confidence").iterdir())) == 4
    assert (tmp_path / "drafts" / "annotations" / "labelmap.txt").is_file()
    confusion = np.array(json.loads((tmp_path / "report-few" / "report.json").read_text())["confusion"]["before"])
    assert confusion.sum() == confusion[3].sum() > 100  # only the road is labelled
