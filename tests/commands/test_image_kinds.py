"""The same pixels give the same results, whichever kind of file they come in."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import h5py
import numpy as np
import pytest
from PIL import Image

from blda_cli.data import images
from blda_cli.data.pixels import PixelFormat
from blda_cli.data.source import ImageSource

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene


@dataclass(frozen=True)
class Stack(ImageSource):
    """A made-up kind: all images of a folder in one archive."""

    suffixes = frozenset({".stack"})

    @classmethod
    def found_in(cls, path: Path, key: str, pixels: PixelFormat) -> list[Self]:
        with np.load(path) as archive:
            return [cls(path, name, name, pixels) for name in archive.files]

    def size(self) -> tuple[int, int]:
        return self.read().shape[:2]

    def seen(self) -> np.ndarray:
        with np.load(self.path) as archive:
            return np.asarray(archive[self.part])


@pytest.fixture
def stacked(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scene's images in one file."""
    module = types.ModuleType("blda_cli.data.stacks")
    module.Stack = Stack  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(images, "KINDS", [*images.KINDS, "stacks:Stack"])
    path = tmp_path / "all.stack"
    with path.open("wb") as file:
        np.savez(file, **{key: np.array(Image.open(scene.images / f"{key}.png")) for key in scene.keys})  # type: ignore[arg-type]
    return path


def arrays(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    for name in ("progress/stamps", "provenance"):
        del found[name]
    return found


def test_a_new_kind_goes_through_every_command(
    run: Run, scene: Scene, stacked: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    results = []
    for name, source in (("png", scene.images), ("stack", stacked)):
        where = tmp_path / name
        options = ["--model", scene.model, "--images", source, "--device", "cpu"]
        run("collect-stats", *options, "--labels", scene.labels, "--output", where / "s.h5")
        run("align", *options, "--stats", where / "s.h5", "--output", where / "aligned")
        run("report", "--stats", where / "s.h5", "--aligned", where / "aligned", "--labels", scene.labels,
            "--output", where / "report")  # fmt: skip
        predictions = {key: data for key, data in tree(where / "aligned").items() if key.endswith(".png")}
        page = (where / "report" / "report.html").read_text()
        results.append((arrays(where / "s.h5"), predictions, page.count("data:image/webp")))
    (png, png_predictions, pictures), (stack, stack_predictions, same_pictures) = results
    assert png.keys() == stack.keys()
    for name in png:
        np.testing.assert_array_equal(png[name], stack[name], err_msg=name)
    assert png_predictions == stack_predictions
    assert pictures == same_pictures > 0
    record = json.loads((tmp_path / "stack" / "aligned" / "run.json").read_text())
    assert record["images"][scene.keys[0]] == f"{stacked}#{scene.keys[0]}"


BANDS = """
[preprocessing]
bands = [3, "b1", 5]
range = [0, 65535]
"""


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_bands_of_a_raster_are_what_the_png_holds(
    run: Run, scene: Scene, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
    for key in scene.keys:
        rgb = np.array(Image.open(scene.images / f"{key}.png")).astype(np.uint16) * 257
        bands = np.stack([rgb[..., 1], rgb[..., 0] // 3, rgb[..., 0], rgb[..., 1] + 9, rgb[..., 2], rgb[..., 2]])
        path = tmp_path / "rasters" / f"{key}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = {"height": bands.shape[1], "width": bands.shape[2]}
        with rasterio.open(path, "w", driver="GTiff", count=6, dtype="uint16", **size) as raster:
            raster.write(bands)
            raster.descriptions = [f"b{number}" for number in range(1, 7)]
    results = []
    for name, model, source in (
        ("png", scene.model, scene.images),
        ("tif", scene.describe("bands.toml", more=BANDS), tmp_path / "rasters"),
    ):
        where = tmp_path / name
        options = ["--model", model, "--images", source, "--device", "cpu"]
        run("collect-stats", *options, "--labels", scene.labels, "--output", where / "s.h5")
        run("align", *options, "--stats", where / "s.h5", "--output", where / "aligned")
        run("report", "--stats", where / "s.h5", "--aligned", where / "aligned", "--output", where / "report")
        predictions = {key: data for key, data in tree(where / "aligned").items() if key.endswith(".png")}
        page = (where / "report" / "report.html").read_text()
        results.append((arrays(where / "s.h5"), predictions, page.count("data:image/webp")))
    (png, png_predictions, pictures), (tif, tif_predictions, same_pictures) = results
    for name in png.keys() - {"model"}:
        np.testing.assert_array_equal(png[name], tif[name], err_msg=name)
    assert png_predictions == tif_predictions
    assert pictures == same_pictures > 0
    run("finetune", "--model", scene.describe("bands.toml", more=BANDS), "--source-images", tmp_path / "rasters",
        "--source-labels", scene.labels, "--target-images", tmp_path / "rasters", "--output", tmp_path / "run",
        "--iterations", "1", "--crop", "16x16", "--method", "dacs", "--device", "cpu")  # fmt: skip


def test_a_video_is_its_frames(
    run: Run, refused: Callable[..., str], scene: Scene, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    av = pytest.importorskip("av", reason="the extra video is not installed")
    drive = tmp_path / "videos" / "drive.mkv"
    drive.parent.mkdir()
    with av.open(str(drive), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for key in scene.keys * 3:
            picture = Image.open(scene.images / f"{key}.png").resize((64, 48))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    (tmp_path / "frames" / "drive").mkdir(parents=True)
    with av.open(str(drive)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            frame.to_image().save(tmp_path / "frames" / "drive" / f"{number:06}.png")
    results = []
    for name, half in (("frames", ("--every", "2")), ("videos", ("--fps", "5"))):
        options = ["--model", scene.model, "--images", tmp_path / name, "--device", "cpu", *half]
        run("collect-stats", *options, "--output", tmp_path / f"{name}.h5")
        align = ["align", *options, "--stats", tmp_path / f"{name}.h5", "--output", tmp_path / f"aligned-{name}"]
        run(*align)
        predictions = {key: data for key, data in tree(tmp_path / f"aligned-{name}").items() if key.endswith(".png")}
        results.append((arrays(tmp_path / f"{name}.h5"), predictions))
    (frames, frame_predictions), (video, video_predictions) = results
    for name in frames:
        np.testing.assert_array_equal(frames[name], video[name], err_msg=name)
    assert len(frame_predictions) == 2 * 9
    assert frame_predictions == video_predictions
    run("report", "--stats", tmp_path / "videos.h5", "--aligned", tmp_path / "aligned-videos",
        "--output", tmp_path / "report")  # fmt: skip
    assert "data:image/webp" in (tmp_path / "report" / "report.html").read_text()
    drive.write_bytes(b"no video")
    assert "drive.mkv cannot be read as a video" in refused("collect-stats", *options, "--output", tmp_path / "t.h5")


def test_a_network_of_other_bands_is_named(refused: Callable[..., str], scene: Scene, tmp_path: Path) -> None:
    model = scene.describe("two.toml", more="[preprocessing]\nbands = [1, 2]\n")
    options = ["--model", model, "--images", scene.images, "--device", "cpu"]
    said = refused("collect-stats", *options, "--output", tmp_path / "s.h5")
    assert said.startswith("the network's first layer head takes 3 channels, but would be given 2: name its 3 bands")


def test_a_run_goes_on_unless_the_file_has_changed(
    run: Run, refused: Callable[..., str], scene: Scene, stacked: Path, tmp_path: Path
) -> None:
    options = ["--model", scene.model, "--images", stacked, "--device", "cpu", "--batch-size", "1"]
    stats, bad = tmp_path / "s.h5", scene.labels / f"{scene.keys[3]}.png"
    label = bad.read_bytes()
    bad.write_bytes(label[:40])
    collect = ["collect-stats", *options, "--labels", scene.labels, "--output", stats]
    refused(*collect)
    bad.write_bytes(label)
    with stacked.open("ab") as file:
        file.write(b"\0")
    assert f"{stacked}#{scene.keys[0]} or its label changed since the interrupted run" in refused(*collect)


def test_training_draws_from_a_new_kind(run: Run, scene: Scene, stacked: Path, tmp_path: Path) -> None:
    result = run(
        "finetune", "--model", scene.model, "--source-images", stacked, "--source-labels", scene.labels,
        "--target-images", stacked, "--output", tmp_path / "run", "--iterations", "1", "--crop", "16x16",
        "--method", "dacs", "--device", "cpu", "--json",
    )  # fmt: skip
    assert json.loads(result.stdout)["output"] == str(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert f"{stacked}#{scene.keys[0]}" in record["data"]


def test_bits_that_nothing_says_are_named_and_recorded(run: Run, scene: Scene, tmp_path: Path) -> None:
    from blda_cli.store.statistics import read_statistics

    folder = tmp_path / "twelve"
    folder.mkdir()
    for name in ("a", "b"):
        values = np.random.default_rng(0).integers(0, 4096, (24, 32)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{name}.png")
    options = ["--images", folder, "--device", "cpu", "--output", tmp_path / "s.h5", "--overwrite"]
    told = run("collect-stats", "--model", scene.model, *options)
    assert "values use 12 of 16 bits, so that they look dark: bits = 12 under [preprocessing]" in told.stderr
    assert read_statistics(tmp_path / "s.h5").provenance.bits == 12
    said = scene.describe("bits.toml", more="\n[preprocessing]\nbits = 12\n")
    told = run("collect-stats", "--model", said, *options)
    assert "of 16 bits" not in told.stderr
    held = read_statistics(tmp_path / "s.h5")
    assert held.provenance.bits is None
    assert held.model["preprocessing"]["bits"] == 12


@pytest.mark.parametrize("norms", ["auto", "instance"])
def test_a_classifier_of_pictures_with_transparent_pixels(run: Run, tmp_path: Path, norms: str) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "whole.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n    return nn.Sequential("
        "nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))\n"
    )
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        pixels = generator.integers(0, 256, (20, 30, 4)).astype(np.uint8)
        pixels[:5, :, 3] = 0
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "truth.csv").write_text("a,0\nb,1\nc,2\n")
    given = ["--model", f"{tmp_path / 'whole.py'}:make", "--images", tmp_path / "images"]
    run("check", *given)
    run("collect-stats", *given, "--labels", tmp_path / "truth.csv", "--norms", norms, "--output", tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5") as file:
        assert file.attrs["pixels"] == 3
    run("align", *given, "--stats", tmp_path / "s.h5", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 4
