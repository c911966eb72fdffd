"""Mistakes of users end in one line, exit code 1 or 2, no traceback and no output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

Refused = Callable[..., str]
Tree = Callable[[Path], dict[str, bytes]]
Change = Callable[["Scene"], list[str]]


def rewrite(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def first_image(scene: Scene) -> Path:
    return scene.images / "east" / "001.png"


def cut_image(scene: Scene) -> list[str]:
    path = first_image(scene)
    path.write_bytes(path.read_bytes()[:-300])
    return scene.options()


def no_image(scene: Scene) -> list[str]:
    first_image(scene).write_text("not a picture")
    return scene.options()


def empty_image(scene: Scene) -> list[str]:
    first_image(scene).write_bytes(b"")
    return scene.options()


def two_of_one_key(scene: Scene) -> list[str]:
    Image.open(first_image(scene)).save(first_image(scene).with_suffix(".jpg"))
    return scene.options()


def wrong_label_size(scene: Scene) -> list[str]:
    rewrite(scene.labels / "east" / "001.png", np.zeros((9, 9), np.uint8))
    return scene.options("--labels", str(scene.labels))


def strange_label(scene: Scene) -> list[str]:
    path = scene.labels / "east" / "001.png"
    rewrite(path, np.full_like(np.array(Image.open(path)), 77))
    return scene.options("--labels", str(scene.labels))


def missing_label(scene: Scene) -> list[str]:
    (scene.labels / "east" / "001.png").unlink()
    return scene.options("--labels", str(scene.labels))


def toml(**change: str) -> Change:
    def describe(scene: Scene) -> list[str]:
        return scene.options(model=scene.describe("other.toml", **change))

    return describe


def images(source: str) -> Change:
    return lambda scene: [*scene.options(), "--images", str(scene.root / source)]


def model(text: str) -> Change:
    return lambda scene: scene.options(model=text.replace("ROOT", str(scene.root)))


def written(name: str, text: str, change: Change) -> Change:
    def write(scene: Scene) -> list[str]:
        (scene.root / name).write_text(text)
        return change(scene)

    return write


def logits(array: np.ndarray, *, name: str = "001.npy") -> Change:
    def save(scene: Scene) -> list[str]:
        folder = scene.root / "logits"
        folder.mkdir()
        for path in scene.images.rglob("*.png"):
            np.save(folder / f"{path.stem}.npy", np.random.default_rng(0).normal(size=(4, 48, 64)).astype(np.float32))
        np.save(folder / name, array, allow_pickle=True)
        return scene.options(model=f"logits:{folder}")

    return save


BAD: dict[str, tuple[Change, str]] = {
    "cut image": (cut_image, "001.png cannot be read as an image"),
    "text for an image": (no_image, "001.png is not an image"),
    "empty image": (empty_image, "001.png is not an image"),
    "two images of one name": (two_of_one_key, "would both be called east/001"),
    "no such images": (images("none"), "none does not exist"),
    "folder without images": (images("labels.h5"), "does not exist"),
    "empty list of images": (written("list.txt", "", images("list.txt")), "holds no images"),
    "list of images that are not there": (written("list.txt", "a.png\n", images("list.txt")), "line 1"),
    "label of another size": (wrong_label_size, "9x9 but its image"),
    "label outside the classes": (strange_label, "holds the value 77"),
    "missing label": (missing_label, "no label found for"),
    "no such labels": (lambda scene: scene.options("--labels", "none"), "none does not exist"),
    "no such encoding": (
        lambda scene: scene.options("--labels", str(scene.labels), "--label-encoding", "x"),
        "no label encoding 'x'",
    ),
    "no such TOML": (model("ROOT/none.toml"), "none.toml: no such file"),
    "broken TOML": (written("x.toml", "[segmenter", model("ROOT/x.toml")), "not TOML"),
    "unknown TOML key": (toml(more="\n[preprocessing]\nmeen = [0, 0, 0]\n"), "unknown key preprocessing.meen"),
    "unknown TOML table": (toml(more="\n[clases]\n"), "unknown key clases"),  # codespell:ignore
    "no such module": (toml(factory="nowhere:make"), "no module 'nowhere'"),
    "no such factory": (toml(factory="tiny:build"), "no callable 'build'"),
    "factory that fails": (toml(arguments="sharpnes = 1"), "tiny:make fails"),
    "too many channels": (toml(arguments="outputs = 5"), "gives 5 channels, but 4 classes are named"),
    "too few channels": (toml(arguments="outputs = 3"), "gives 3 channels, but 4 classes are named"),
    "non-finite logits": (toml(factory="tiny:broken"), "the logits are not finite"),
    "no such weights": (lambda scene: scene.options("--weights", "none.pth"), "none.pth: no such weights file"),
    "no model at all": (model("whatever"), "no other form of a model"),
    "a file that is not there": (model("frames.h5"), "no other form of a model"),
    "a factory after a dot": (model("torch.nn.Conv2d"), "do you mean torch.nn:Conv2d?"),
    "no such logits": (model("logits:ROOT/none"), "none: no such folder of logits"),
    "pickled logits": (logits(np.array([object()])), "001.npy is pickled"),
    "non-finite ready-made logits": (logits(np.full((4, 40, 56), np.inf, np.float32)), "001.npy: the logits are not"),
    "ready-made logits of other classes": (logits(np.zeros((6, 40, 56), np.float32)), "001.npy: the model gives 6"),
    "ready-made class ids": (logits(np.zeros((4, 40, 56), np.int64)), "class ids, not logits"),
    "no such device": (lambda scene: [*scene.options(), "--device", "gpu"], "--device gpu: there is no such device"),
}

OF_LABELS = (
    "label of another size",
    "label outside the classes",
    "missing label",
    "no such labels",
    "no such encoding",
)


@pytest.mark.parametrize("mistake", BAD)
def test_collect_stats(refused: Refused, scene: Scene, tree: Tree, mistake: str) -> None:
    change, message = BAD[mistake]
    options = change(scene)
    before = tree(scene.root)
    assert message in refused("collect-stats", *options, "--output", scene.root / "s.h5", "--quiet")
    made = tree(scene.root).keys() - before.keys()
    # what was counted before is kept to go on from, but nothing has the output's name
    assert {name for name in made if not name.endswith((".pyc", "s.h5.partial"))} == set()


@pytest.mark.parametrize("mistake", [name for name, (change, _) in BAD.items() if name not in OF_LABELS])
def test_align(run: Run, refused: Refused, scene: Scene, tree: Tree, mistake: str) -> None:
    change, message = BAD[mistake]
    options = change(scene)
    assert message in refused("align", *options, "--output", scene.root / "a", "--quiet")
    assert not (scene.root / "a").exists()
    assert not (scene.root / "a.h5").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--tau", "nan"],
        ["--tau", "inf"],
        ["--tau", "much"],
        ["--method", "magic"],
        ["--slide", "64"],
        ["--slide", "0x64"],
        ["--stride", "4x4"],
        ["--scales", "0.5,nan"],
        ["--scales", ""],
        ["--batch-size", "0"],
        ["--workers", "0"],
        ["--on-error", "ignore"],
        ["--unheard-of"],
    ],
)
def test_wrong_usage_of_align(refused: Refused, scene: Scene, options: list[str]) -> None:
    said = refused("align", *scene.options(*options), "--output", scene.root / "a", code=2)
    assert options[0] in said
    assert not (scene.root / "a").exists()


@pytest.mark.parametrize(
    "options", [["--bins", "100"], ["--bins", "2"], ["--label-source", "ground_truth"], ["--label-source", "x"]]
)
def test_wrong_usage_of_collect_stats(refused: Refused, scene: Scene, options: list[str]) -> None:
    assert options[0] in refused("collect-stats", *scene.options(*options), "--output", scene.root / "s.h5", code=2)
    assert not (scene.root / "s.h5").exists()


def test_what_must_be_given(refused: Refused, scene: Scene) -> None:
    assert "--output" in refused("align", *scene.options(), code=2)
    assert "--images" in refused("collect-stats", "--model", scene.model, "--output", "s.h5", code=2)
    assert "No such command" in refused("colect-stats", code=2)


@pytest.mark.parametrize("output", ["file.txt/s.h5", "images", ".", "/proc/s.h5"])
def test_output_that_cannot_be_written_is_refused_before_the_work(
    refused: Refused, scene: Scene, tree: Tree, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (scene.root / "file.txt").write_text("x")
    monkeypatch.chdir(scene.root)
    monkeypatch.setenv("TINY_SIGNAL", "9@1")  # it dies when the network is run
    before = tree(scene.root)
    for overwrite in ([], ["--overwrite"]):
        said = refused("collect-stats", *scene.options(*overwrite), "--output", output)
        assert "cannot be written" in said or "give the name of a file to write" in said
    monkeypatch.delenv("TINY_SIGNAL")
    assert {name for name in tree(scene.root) if "__pycache__" not in name} == {
        name for name in before if "__pycache__" not in name
    }


@pytest.mark.parametrize("output", ["file.txt", "file.txt/a", "/proc/a", "images", "."])
def test_folder_that_cannot_be_written_is_refused(
    run: Run, refused: Refused, scene: Scene, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (scene.root / "file.txt").write_text("x")
    stats = scene.root / "s.h5"
    run("collect-stats", *scene.options(), "--output", stats, "--quiet")
    monkeypatch.chdir(scene.root)
    monkeypatch.setenv("TINY_SIGNAL", "9@1")
    for overwrite in ([], ["--overwrite"]):
        said = refused("align", *scene.options(*overwrite), "--stats", stats, "--output", output)
        assert "cannot be written" in said or "holds other things" in said or "is no folder" in said
    assert len(scene.keys) == 6
    assert (scene.root / "file.txt").read_text() == "x"


def test_statistics_that_are_none(run: Run, refused: Refused, scene: Scene) -> None:
    stats, output = scene.root / "s.h5", scene.root / "a"
    assert "no such statistics file" in refused("align", *scene.options(), "--stats", stats, "--output", output)
    run("collect-stats", *scene.options(), "--output", stats, "--quiet")
    stats.write_bytes(stats.read_bytes()[:-2000])
    assert "it may be truncated" in refused("align", *scene.options(), "--stats", stats, "--output", output)
    stats.write_text("x")
    assert "no HDF5 file" in refused("align", *scene.options(), "--stats", stats, "--output", output)
    assert "no HDF5 file" in refused("align", *scene.options(), "--output", output, "--stats", stats, "--force")


def test_debug_shows_the_traceback(run: Run, scene: Scene) -> None:
    from click.testing import CliRunner

    from blda_cli.commands import cli

    result = CliRunner().invoke(cli, ["--debug", "collect-stats", *scene.options(model="x"), "--output", "s.h5"])
    assert type(result.exception).__name__ == "BldaError"
