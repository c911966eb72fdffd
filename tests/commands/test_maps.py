"""Maps: run, counted and predicted part by part, without seams, as one GeoTIFF."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from PIL import Image

from blda_cli.data import divided_images, raster_images
from blda_cli.segmenters import network

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")

# A network that sees 5x5 pixels and the place in its window, so that what is run where shows.
NETWORK = """
import torch
from torch import nn


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Conv2d(4, 8, 5, padding=2)
        self.head = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            grey = self.head(self.body(torch.full((1, 4, 9, 9), 0.45)).relu())
        self.middle = grey[:, :, 4:5, 4:5]

    def forward(self, images):
        ramp = torch.linspace(-1, 1, images.shape[-1])
        scores = self.head(self.body(images).relu())
        return 4 * (scores - self.middle) + 0.3 * ramp
"""

TOML = """
[segmenter]
kind = "python"
factory = "wide:Wide"
[preprocessing]
bands = [3, 2, 1, 4]
range = [0, 4095]
[classes]
names = ["road", "tree", "car", "sky"]
[labels]
encoding = "ids"
"""

SLIDE = ["--slide", "32x32", "--stride", "24x24"]


@pytest.fixture
def land(tmp_path: Path) -> Path:
    """A map of 150 rows and 100 columns, 4 bands of 12 bits, its labels, and a model."""
    from rasterio.transform import from_origin

    generator = np.random.default_rng(4)
    labels = generator.choice(4, (15, 10)).repeat(10, axis=0).repeat(10, axis=1).astype(np.uint8)
    bands = generator.integers(0, 3000, (4, 150, 100)).astype(np.uint16) + 200 * labels
    bands[:, :40, :30] = 65535
    profile = {
        "driver": "GTiff", "height": 150, "width": 100, "crs": "EPSG:32633", "transform": from_origin(5e5, 4e6, 10, 10),
    }  # fmt: skip
    for folder in ("maps", "labels"):
        (tmp_path / folder).mkdir()
    with rasterio.open(tmp_path / "maps" / "land.tif", "w", count=4, dtype="uint16", nodata=65535, **profile) as raster:
        raster.write(bands)
    with rasterio.open(tmp_path / "labels" / "land.tif", "w", count=1, dtype="uint8", **profile) as raster:
        raster.write(labels, 1)
    (tmp_path / "wide.py").write_text(NETWORK)
    (tmp_path / "wide.toml").write_text(TOML)
    return tmp_path


def options(land: Path, *more: str) -> list[str]:
    model, maps = str(land / "wide.toml"), str(land / "maps")
    return ["--model", model, "--images", maps, "--device", "cpu", *SLIDE, *more]


def in_parts(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Divide the test's small images, too."""
    monkeypatch.setattr(divided_images, "BLOCK", block)
    monkeypatch.setattr(divided_images, "LARGE", 1000)


def cells(path: Path) -> tuple[np.ndarray, int]:
    with h5py.File(path) as file:
        return file["cells/pseudo/counts"][()], int(file.attrs["pixels"])


def predicted(folder: Path) -> np.ndarray:
    with rasterio.open(folder / "predictions" / "land.tif") as predictions:
        values: np.ndarray = predictions.read(1)
    return values


def test_parts_are_the_whole(run: Run, land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a map is cut into parts, the statistics and the predictions are the same, and nodata is neither."""
    results = []
    for block in (64, None):
        with monkeypatch.context() as patch:
            if block:
                in_parts(patch, block)
            stats, output = land / f"{block}.h5", land / f"aligned-{block}"
            run("collect-stats", *options(land), "--labels", land / "labels", "--output", stats)
            run("align", *options(land), "--stats", stats, "--output", output, "--tau", "0.5")
        assert [path.name for path in (output / "predictions").iterdir()] == ["land.tif"]
        with rasterio.open(output / "predictions" / "land.tif") as predictions:
            results.append((*cells(stats), predictions.read(1)))
    (parts, pixels, predicted), (whole, same_pixels, same_predicted) = results
    np.testing.assert_array_equal(parts, whole)
    assert pixels == same_pixels == 150 * 100 - 40 * 30
    np.testing.assert_array_equal(predicted, same_predicted)
    assert (predicted[:40, :30] == 255).all()
    assert (predicted == 255).sum() == 40 * 30
    record = json.loads((land / "aligned-64" / "run.json").read_text())
    assert sum(record["pixels_after"]) == pixels
    assert list(record["images"])[:3] == ["land/000-000", "land/000-001", "land/001-000"]


def test_the_prediction_is_a_map(run: Run, land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(monkeypatch, 64)
    run("collect-stats", *options(land), "--labels", land / "labels", "--output", land / "s.h5")
    run("align", *options(land), "--stats", land / "s.h5", "--output", land / "aligned", "--tau", "0.5",
        "--confidence", "--overlay", "2")  # fmt: skip
    assert len(list((land / "aligned" / "overlays").rglob("*.jpg"))) == 2
    with rasterio.open(land / "aligned" / "confidence" / "land.tif") as confidence:
        assert (confidence.dtypes[0], confidence.shape) == ("uint8", (150, 100))
        assert np.ptp(confidence.read(1)) > 50
        without_data = np.zeros((150, 100), dtype=bool)
        without_data[:40, :30] = True
        np.testing.assert_array_equal(confidence.read(1) == 0, without_data)
    for kind in ("predictions", "argmax"):
        with (
            rasterio.open(land / "aligned" / kind / "land.tif") as predictions,
            rasterio.open(land / "maps" / "land.tif") as source,
        ):
            assert (predictions.crs, predictions.transform) == (source.crs, source.transform)
            assert (predictions.shape, predictions.nodata) == (source.shape, 255)
            assert predictions.tags(1)["class_2"] == "car"
            assert len({predictions.colormap(1)[value] for value in range(4)}) == 4
    report = ["report", "--stats", land / "s.h5", "--aligned", land / "aligned"]
    run(*report, "--labels", land / "labels", "--output", land / "report")
    content = json.loads((land / "report" / "report.json").read_text())
    assert (land / "report" / "report.html").read_text().count("data:image/webp") > 4
    # What the report reads back of the parts is what lies in the GeoTIFF.
    with rasterio.open(land / "aligned" / "predictions" / "land.tif") as predictions:
        predicted = predictions.read(1)
    with rasterio.open(land / "labels" / "land.tif") as labels:
        pairs = (4 * labels.read(1) + predicted)[predicted != 255]
    np.testing.assert_array_equal(
        content["confusion"]["runs"]["aligned"], np.bincount(pairs, minlength=16).reshape(4, 4)
    )


def test_windows_leave_no_seams(land: Path) -> None:
    """Where windows overlap, the nearer one's middle counts more: the result has no steps at their edges."""
    import torch

    from blda_cli.segmenters.inference import slide

    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    images = torch.zeros(1, 1, 32, 104)
    smooth = slide(lambda _: ramp, images, (32, 32), (24, 24))[0, 0, 16]
    # Where a window begins the mean of the two that lie there would fall by half of what divides them, 1.55 / 2.
    assert smooth.diff().abs().max() < 0.35
    part = slide(lambda _: ramp, images, (32, 32), (24, 24), (5, 30, 20, 40))[0, 0]
    torch.testing.assert_close(part[11], smooth[30:70], rtol=0, atol=0)
    assert part.shape == (20, 40)


def test_a_stopped_run_goes_on_by_parts(
    run: Run, refused: Callable[..., str], land: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its norms are those of the whole image all the same."""
    with_norms(land)
    in_parts(monkeypatch, 64)
    run("collect-stats", *options(land), "--norm-weight", "0.5", "--output", land / "s.h5")
    run("align", *options(land), "--stats", land / "s.h5", "--output", land / "whole")
    calls = 0
    read = raster_images.RasterImage.read

    def stopped(self: raster_images.RasterImage) -> np.ndarray:
        nonlocal calls
        calls += self.window is None
        if calls > 4:
            from blda_cli.errors import BldaError

            raise BldaError("stopped")
        return read(self)

    monkeypatch.setattr(raster_images.RasterImage, "read", stopped)
    align = ["align", *options(land), "--stats", land / "s.h5", "--output", land / "again", "--workers", "1"]
    refused(*align)
    monkeypatch.setattr(raster_images.RasterImage, "read", read)
    assert "of 6" in run(*align).stderr
    first, second = (land / name / "predictions" / "land.tif" for name in ("whole", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_labels_of_a_map(run: Run, refused: Callable[..., str], land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(monkeypatch, 64)
    with rasterio.open(land / "labels" / "land.tif", "r+") as labels:
        values = labels.read(1)
        values[140:] = 77
        labels.nodata = 77
        labels.write(values, 1)
    run("collect-stats", *options(land), "--labels", land / "labels", "--output", land / "s.h5")
    with h5py.File(land / "s.h5") as file:
        counted = file["confusion"][()].sum(axis=1)
    values[:40, :30] = 77
    np.testing.assert_array_equal(counted, [(values == index).sum() for index in range(4)])
    Image.fromarray(values[:100]).save(land / "labels" / "land.tif")
    said = refused("collect-stats", *options(land), "--labels", land / "labels", "--output", land / "t.h5")
    assert "is 100x100 but its image" in said
    assert "is 100x150" in said


def test_a_truncated_map_is_refused(refused: Callable[..., str], land: Path) -> None:
    path = land / "maps" / "land.tif"
    path.write_bytes(path.read_bytes()[:20_000])
    assert "land.tif cannot be read as a raster" in refused("collect-stats", *options(land), "--output", land / "s.h5")


def test_an_eight_bit_map_is_what_the_png_of_its_pixels_is(run: Run, scene: Scene, tmp_path: Path) -> None:
    key = scene.keys[0]
    pixels = np.array(Image.open(scene.images / f"{key}.png"))
    (tmp_path / "png").mkdir()
    Image.fromarray(pixels).save(tmp_path / "png" / "x.png")
    height, width = pixels.shape[:2]
    with rasterio.open(
        tmp_path / "x.tif", "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", crs="EPSG:4326"
    ) as raster:
        raster.write(pixels.transpose(2, 0, 1))
    found = []
    for name, source in (("png", tmp_path / "png"), ("tif", tmp_path / "x.tif")):
        run("collect-stats", "--model", scene.model, "--images", source, "--device", "cpu",
            "--output", tmp_path / f"{name}.h5")  # fmt: skip
        found.append(cells(tmp_path / f"{name}.h5"))
    np.testing.assert_array_equal(found[0][0], found[1][0])


def with_norms(land: Path) -> None:
    """Give the network batch norms, of which the second gets what the first makes of a window."""
    body = "nn.Conv2d(4, 8, 5, padding=2)"
    normed = f"nn.Sequential(nn.BatchNorm2d(4), {body}, nn.BatchNorm2d(8))"
    (land / "wide.py").write_text(NETWORK.replace(body, normed))


def test_norms_of_parts_are_those_of_the_whole_image(run: Run, land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is cut, stopped or shared among jobs; and as where it is run whole, in windows."""
    with_norms(land)
    monkeypatch.setattr(network, "_WHOLE_PIXELS", 1000)
    given = options(land, "--norms", "instance", "--norm-weight", "0.5")
    results = []
    for block in (64, 2048, None):
        with monkeypatch.context() as patch:
            if block:
                in_parts(patch, block)
            stats, output = land / f"{block}.h5", land / f"aligned-{block}"
            run("collect-stats", *given, "--output", stats)
            run("align", *options(land), "--stats", stats, "--output", output, "--tau", "0.5")
            results.append((cells(stats)[0], predicted(output)))
    for found, classes in results[1:]:
        np.testing.assert_array_equal(found, results[0][0])
        np.testing.assert_array_equal(classes, results[0][1])
    run("collect-stats", *options(land), "--norms", "source", "--output", land / "plain.h5")
    assert not np.array_equal(cells(land / "plain.h5")[0], results[0][0])
    in_parts(monkeypatch, 64)
    shards = [land / "shard1", land / "shard2"]
    align = ["align", *options(land), "--stats", land / "64.h5", "--tau", "0.5"]
    for number, shard in enumerate(shards, start=1):
        run(*align, "--shard", f"{number}/2", "--output", shard)
    run("merge", *shards, "--output", land / "merged")
    np.testing.assert_array_equal(predicted(land / "merged"), results[0][1])


def test_the_weight_of_norms_is_chosen_on_parts(run: Run, land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same one however the image is cut."""
    with_norms(land)
    found = []
    for block in (64, 2048):
        in_parts(monkeypatch, block)
        given = options(land, "--slide", "75x60", "--stride", "75x60", "--labels", str(land / "labels"))
        said = run("collect-stats", *given, "--output", land / f"{block}.h5").stderr
        assert "the classes of an image and of its smaller copy share" in said
        with h5py.File(land / f"{block}.h5") as file:
            found.append((file["cells/pseudo/counts"][()], json.loads(file.attrs["model"])["norms"]))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_windows_of_large_images_are_said_where_none_are_asked_for(
    run: Run, land: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_parts(monkeypatch, 64)
    remark = "run in windows of 512x512: --slide HxW sets another size"
    whole = [word for word in options(land) if word not in SLIDE]
    assert remark in run("collect-stats", *whole, "--output", land / "s.h5").stderr
    assert remark not in run("align", *whole, "--stats", land / "s.h5", "--output", land / "out").stderr
    assert remark not in run("collect-stats", *options(land), "--output", land / "t.h5").stderr


def test_small_images_beside_large_ones_run_as_they_do_alone(land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from blda_cli.data.images import find_images
    from blda_cli.segmenters import base, load_segmenter
    from blda_cli.segmenters.options import InferenceOptions
    from blda_cli.segmenters.spec import parse_model

    in_parts(monkeypatch, 64)
    monkeypatch.setattr(base, "PART_WINDOW", (16, 16))
    generator = np.random.default_rng(0)
    (land / "mixed").mkdir()
    for name, size in (("large", (100, 80)), ("small", (20, 30))):
        np.save(land / "mixed" / f"{name}.npy", generator.integers(0, 4096, (*size, 4)).astype(np.uint16))
    spec = parse_model(str(land / "wide.toml"))
    segmenter = load_segmenter(spec, torch.device("cpu"))
    images = find_images(land / "mixed", spec.preprocessing.pixels)
    *parts, beside = segmenter.stream(images, InferenceOptions())
    (alone,) = segmenter.stream(images[-1:], InferenceOptions())
    assert len(parts) == 4
    torch.testing.assert_close(beside.logits, alone.logits, rtol=0, atol=0)


def test_parts_without_data_say_nothing_about_norms(land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blda_cli.data.images import find_images
    from blda_cli.data.pixels import PixelFormat
    from blda_cli.segmenters.norms import enough_for_norms

    in_parts(monkeypatch, 30)
    parts = find_images(land / "maps", PixelFormat((1,), (0, 4095)))
    assert len(parts) == 20
    assert [part.key for part in enough_for_norms(parts)] == [part.key for part in parts[1:]]  # of the second, a part
    assert enough_for_norms(parts[:1]) == parts[:1]


@pytest.mark.parametrize("block", [64, 2048])
def test_a_mask_of_a_map(
    run: Run, refused: Callable[..., str], land: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_parts(monkeypatch, block)
    mask = np.full((150, 100), 9, np.uint8)
    mask[:, 90:] = 0
    (land / "masks").mkdir()
    Image.fromarray(mask).save(land / "masks" / "land.png")
    masked = ["--valid-mask", str(land / "masks")]
    run("collect-stats", *options(land, *masked), "--output", land / "s.h5")
    assert cells(land / "s.h5")[1] == 150 * 90 - 40 * 30
    run("align", *options(land, *masked), "--stats", land / "s.h5", "--output", land / "aligned")
    with rasterio.open(land / "aligned" / "predictions" / "land.tif") as predictions:
        assert (predictions.read(1)[:, 90:] == 255).all()
    Image.fromarray(mask[1:]).save(land / "masks" / "land.png")
    said = refused("collect-stats", *options(land, *masked), "--output", land / "t.h5")
    assert "land.png is 100x149 but its image" in said
    Image.fromarray(mask).save(land / "masks" / "other.png")
    (land / "masks" / "land.png").unlink()
    assert "no mask found for" in refused("collect-stats", *options(land, *masked), "--output", land / "t.h5")


def test_a_mask_of_pictures(run: Run, refused: Callable[..., str], scene: Scene, tmp_path: Path) -> None:
    kept = 0
    for key in scene.keys:
        width, height = Image.open(scene.images / f"{key}.png").size
        mask = np.zeros((height, width), bool)
        mask[5:, :-7] = True
        kept += int(mask.sum())
        path = tmp_path / "masks" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    given = scene.options("--valid-mask", str(tmp_path / "masks"), "--batch-size", "2")
    run("collect-stats", *given, "--labels", scene.labels, "--output", tmp_path / "s.h5")
    assert cells(tmp_path / "s.h5")[1] == kept
    with h5py.File(tmp_path / "s.h5") as file:
        truth = sum((np.asarray(Image.open(scene.labels / f"{key}.png"))[5:, :-7] < 255).sum() for key in scene.keys)
        assert file["confusion"][()].sum() == truth
    run("align", *given, "--stats", tmp_path / "s.h5", "--output", tmp_path / "aligned")
    for key in scene.keys:
        predicted = np.asarray(Image.open(tmp_path / "aligned" / "predictions" / f"{key}.png"))
        assert (predicted[:5] == 255).all()
        assert (predicted[:, -7:] == 255).all()
        assert (predicted[5:, :-7] < 4).all()
    Image.new("1", (3, 3)).save(path)
    assert f"{path} is 3x3 but its image" in refused("collect-stats", *given, "--output", tmp_path / "t.h5")


def test_views_do_not_depend_on_the_parts(run: Run, land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for block in (64, 2048):
        in_parts(monkeypatch, block)
        run("collect-stats", *options(land), "--flip", "--scales", "0.75,1", "--output", land / f"{block}.h5")
        found.append(cells(land / f"{block}.h5")[0])
    np.testing.assert_array_equal(found[0], found[1])
    run("collect-stats", *options(land), "--output", land / "plain.h5")
    assert not np.array_equal(found[0], cells(land / "plain.h5")[0])


def test_shards_of_a_map_are_put_together(run: Run, land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(monkeypatch, 64)
    run("collect-stats", *options(land), "--output", land / "s.h5")
    align = ["align", *options(land), "--stats", land / "s.h5", "--tau", "0.5", "--confidence"]
    run(*align, "--output", land / "whole")
    parts = [land / f"part{number}" for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        run(*align, "--shard", f"{number}/2", "--output", part)
    run("merge", *parts, "--output", land / "merged")
    for kind in ("predictions", "argmax", "confidence"):
        whole, merged = (land / name / kind / "land.tif" for name in ("whole", "merged"))
        assert whole.read_bytes() == merged.read_bytes()
        assert [path.name for path in merged.parent.iterdir()] == ["land.tif"]


def test_shards_of_a_large_picture_of_wide_ids(run: Run, land: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PNGs of 16 bits, as of more than 254 classes."""
    in_parts(monkeypatch, 64)
    np.save(land / "land.npy", np.random.default_rng(0).integers(0, 4096, (100, 80, 4)).astype(np.uint16))
    given = options(land, "--images", str(land / "land.npy"))
    run("collect-stats", *given, "--output", land / "s.h5")
    whole = np.full((100, 80), 65535, dtype=np.uint16)
    parts = [land / f"part{number}" for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        run("align", *given, "--stats", land / "s.h5", "--shard", f"{number}/2", "--output", part)
        record = json.loads((part / "run.json").read_text())
        (part / "run.json").write_text(json.dumps({**record, "ids": [1000, 1001, 1002, 1003]}))
        for kind in ("argmax", "predictions"):
            with Image.open(part / kind / "land.png") as picture:
                narrow = np.asarray(picture)
            wide = np.where(narrow == 255, 65535, narrow + np.uint16(1000)).astype(np.uint16)
            Image.fromarray(wide).save(part / kind / "land.png")
        whole = np.where(wide == 65535, whole, wide)
    run("merge", *parts, "--output", land / "merged")
    with Image.open(land / "merged" / "predictions" / "land.png") as merged:
        np.testing.assert_array_equal(np.asarray(merged), whole)
    assert whole.max() < 65535


@pytest.mark.parametrize("suffix", ["png", "tif", "npz"])
def test_large_pictures_are_run_in_the_same_windows(
    run: Run, land: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file holds its pixels, a large image is counted alike, and predicted in a file of its own."""
    generator = np.random.default_rng(5)
    pixels = generator.integers(0, 256, (100, 150, 3)).astype(np.uint8)
    labels = generator.integers(0, 4, (100, 150)).astype(np.uint8)
    places = {name: land / name for name in ("large", "truth")}
    for place in places.values():
        place.mkdir()
    Image.fromarray(labels).save(places["truth"] / "x.png")
    if suffix == "npz":
        np.savez(places["large"] / "x.npz", image=pixels.transpose(2, 0, 1))
    else:
        Image.fromarray(pixels).save(places["large"] / f"x.{suffix}")
    (land / "rgb.toml").write_text(TOML.replace("bands = [3, 2, 1, 4]\nrange = [0, 4095]\n", ""))
    (land / "wide.py").write_text(
        NETWORK.replace("nn.Conv2d(4,", "nn.Conv2d(3,").replace("(1, 4, 9, 9)", "(1, 3, 9, 9)")
    )
    given = ["--model", land / "rgb.toml", "--images", places["large"], "--device", "cpu", *SLIDE]
    run("collect-stats", *given, "--labels", places["truth"], "--output", land / "whole.h5")
    run("align", *given, "--stats", land / "whole.h5", "--output", land / "whole")
    in_parts(monkeypatch, 64)
    run("collect-stats", *given, "--labels", places["truth"], "--output", land / "s.h5")
    with h5py.File(land / "s.h5") as parts, h5py.File(land / "whole.h5") as whole:
        for name in ("cells/pseudo/counts", "cells/ground_truth/counts", "confusion"):
            np.testing.assert_array_equal(parts[name][()], whole[name][()])
    run("align", *given, "--stats", land / "s.h5", "--output", land / "parts", "--confidence")
    name = "x.tif" if suffix == "tif" else "x.png"
    for kind in ("predictions", "argmax", "confidence"):
        (found,) = (path for path in (land / "parts" / kind).rglob("*") if path.is_file())
        assert found.name == name
    with (
        Image.open(land / "parts" / "predictions" / name) as one,
        Image.open(land / "whole" / "predictions" / "x.png") as other,
    ):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        if suffix != "tif":
            assert (one.getpalette() or [])[:12] == (other.getpalette() or [])[:12] != []
    run("report", "--stats", land / "s.h5", "--aligned", land / "parts", "--labels", places["truth"],
        "--output", land / "report")  # fmt: skip
    content = json.loads((land / "report" / "report.json").read_text())
    with Image.open(land / "parts" / "predictions" / name) as predicted:
        pairs = np.bincount((4 * labels + np.asarray(predicted)).ravel(), minlength=16).reshape(4, 4)
    np.testing.assert_array_equal(content["confusion"]["runs"]["parts"], pairs)


@pytest.mark.parametrize("method", ["dacs", "cbst"])
def test_training_on_parts_of_a_map(
    run: Run, refused: Callable[..., str], land: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops are drawn from parts; where nodata or a mask says so, pixels of the target get no label."""
    with_norms(land)
    in_parts(monkeypatch, 64)
    (land / "masks").mkdir()
    mask = np.full((150, 100), 9, np.uint8)
    mask[:, 90:] = 0
    Image.fromarray(mask).save(land / "masks" / "land.png")
    given = [
        "--model", land / "wide.toml", "--source-images", land / "maps", "--source-labels", land / "labels",
        "--target-images", land / "maps", "--valid-mask", land / "masks", "--val-images", land / "maps",
        "--val-labels", land / "labels", "--crop", "20x24", "--method", method, "--device", "cpu",
        *(["--norms", "source"] if method == "dacs" else ["--norms", "instance"]),
    ]  # fmt: skip
    rounds = ["--rounds", "1"] if method == "cbst" else []
    run("finetune", *given, *rounds, "--iterations", "2", "--output", land / "run")
    record = json.loads((land / "run" / "run.json").read_text())
    assert f"{land}/maps/land.tif#1-0" in record["data"]
    if method == "cbst":
        (labels,) = (land / "run" / "pseudo_labels").rglob("000-000.png")
        assert (np.asarray(Image.open(labels))[:40, :30] == 255).all()
        (labels,) = (land / "run" / "pseudo_labels").rglob("000-001.png")
        assert (np.asarray(Image.open(labels))[:, 26:] == 255).all()
        assert (np.asarray(Image.open(labels)) < 4).any()
    assert "a crop of 50x24 is larger than" in refused("finetune", *given, "--crop", "50x24", "--output", land / "r2")


@pytest.mark.parametrize("method", ["cag", "cbst-sp"])
def test_methods_that_are_for_whole_images(
    refused: Callable[..., str], land: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of a part have features each, where CAG-UDA's centroids are of whole images, as spatial priors are."""
    in_parts(monkeypatch, 64)
    message = refused(
        "finetune", "--model", land / "wide.toml", "--source-images", land / "maps", "--source-labels",
        land / "labels", "--target-images", land / "maps", "--crop", "20x24", "--method", method, "--device", "cpu",
        "--norms", "source", "--iterations", "2", "--rounds", "1", "--output", land / "run",
    )  # fmt: skip
    assert f"--method {method} needs whole images, and {land}/maps/land.tif is run in parts: cut it" in message


@pytest.mark.parametrize(
    ("option", "more"),
    [("--spatial-priors", ("s.h5", "--method", "class-confidence")), ("--annotations", ("labelme",))],
)
def test_options_that_are_for_whole_images(
    run: Run,
    refused: Callable[..., str],
    land: Path,
    option: str,
    more: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(land)
    run("collect-stats", *options(land), "--labels", land / "labels", "--output", land / "s.h5")
    align = ["align", *options(land), "--stats", land / "s.h5", option, *more]
    run(*align, "--output", land / "whole")
    in_parts(monkeypatch, 64)
    said = refused(*align, "--output", land / "parts")
    assert f"{option} needs whole images, and " in said
