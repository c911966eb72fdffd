from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

Refused = Callable[..., str]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything that is counted or fitted in a file of statistics."""
    found: dict[str, np.ndarray] = {}

    def add(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and name != "provenance":
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(add)
        for name in ("model", "classes", "palette", "images", "pixels", "complete", "logit_space"):
            found[f"@{name}"] = file.attrs[name]
    return found


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = arrays(one), arrays(other)
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


@pytest.fixture
def whole(run: Run, scene: Scene) -> Path:
    """Statistics of all images with their labels, counted without a break."""
    run("collect-stats", *scene.options(), "--labels", scene.labels, "--output", scene.root / "whole.h5")
    return scene.root / "whole.h5"


def test_counts_of_all_sources(whole: Path, scene: Scene) -> None:
    pixels = 3 * (48 * 64 + 40 * 56)
    with h5py.File(whole) as file:
        assert set(file["cells"]) == {"ground_truth", "pseudo"}
        assert file.attrs["images"] == 6
        assert file.attrs["pixels"] == pixels
        assert file["cells/ground_truth/counts"][:, 0].sum() == pixels - 6 * 2
        assert file["confusion"][()].sum() == pixels - 6 * 2
        assert file["cells/pseudo/counts"][:, 0].sum() == pixels
        assert [key.decode() for key in file["progress/images"]] == scene.keys
        model = json.loads(file.attrs["model"])
        assert model["factory"] == "tiny:make"
        assert model["weights"].startswith("sha256:")
        provenance = json.loads(file["provenance"][()])
        assert provenance["labels"] == {"source": str(scene.labels), "encoding": "ids", "ignore": None}
        assert {"command", "date", "versions", "source"} <= provenance.keys()
    assert sorted(path.name for path in scene.root.glob("*whole*")) == ["whole.h5"]


def test_label_sources_are_those_asked_for(run: Run, scene: Scene) -> None:
    output = scene.root / "s.h5"
    run("collect-stats", *scene.options("--label-source", "soft"), "--output", output)
    with h5py.File(output) as file:
        assert set(file["cells"]) == {"soft"}
        assert "confusion" not in file


def test_what_is_said(run: Run, scene: Scene) -> None:
    from blda_cli.pipelines.doubts import UNSAID

    output = scene.root / "s.h5"
    result = run("collect-stats", *scene.options("--labels", str(scene.labels)), "--output", output)
    assert result.stdout == (
        f"{output}: 6 images, 15,936 pixels, 0 skipped, 4 classes, labels from ground_truth, pseudo\n"
    )
    assert result.stderr == f"{UNSAID}\nlabels: ids; 0.1% of the pixels have no class\n"


def test_json_and_quiet(run: Run, scene: Scene) -> None:
    arguments = ["collect-stats", *scene.options("--labels", str(scene.labels)), "--output", scene.root / "s.h5"]
    result = run(*arguments, "--json", "--quiet")
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert said["images"] == 6
    assert said["skipped"] == 0
    assert said["label_sources"] == ["ground_truth", "pseudo"]
    assert sum(said["predicted_share"].values()) == pytest.approx(1)
    assert list(said["predicted_share"]) == ["road", "tree", "car", "sky"]


def test_labels_that_are_all_ignored(run: Run, scene: Scene) -> None:
    for path in scene.labels.rglob("*.png"):
        Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)
    result = run("collect-stats", *scene.options("--labels", str(scene.labels)), "--output", scene.root / "s.h5")
    assert "100.0% of the pixels have no class" in result.stderr


def test_batches_and_workers_change_nothing(run: Run, scene: Scene, whole: Path) -> None:
    arguments = ["collect-stats", *scene.options("--labels", str(scene.labels)), "--batch-size", 3, "--workers", 4]
    run(*arguments, "--output", scene.root / "other.h5")
    assert_same(scene.root / "other.h5", whole)


def test_existing_output_is_kept_without_overwrite(run: Run, refused: Refused, scene: Scene) -> None:
    output = scene.root / "s.h5"
    output.write_text("precious")
    arguments = ["collect-stats", *scene.options(), "--output", output]
    assert refused(*arguments) == f"{output} exists already: --overwrite replaces it"
    assert "no statistics file" in refused(*arguments, "--overwrite")
    assert output.read_text() == "precious"
    output.unlink()
    run(*arguments)
    assert refused(*arguments) == f"{output} exists already: --overwrite replaces it"
    run(*arguments, "--overwrite")
    assert arrays(output)["@images"] == 6


def interrupted(run: Run, arguments: list[Any], call: int) -> None:
    result = run(*arguments, code=130, env={"TINY_SIGNAL": f"{int(signal.SIGINT)}@{call}"})
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "blda: interrupted; what was done is kept: the same command, without --overwrite, goes on from there"
    )


def test_a_run_goes_on_after_interruptions(run: Run, scene: Scene, whole: Path) -> None:
    output = scene.root / "s.h5"
    arguments = ["collect-stats", *scene.options("--labels", str(scene.labels)), "--output", output]
    interrupted(run, arguments, 2)
    assert not output.exists()
    assert arrays(scene.root / "s.h5.partial")["@images"] == 2
    assert not arrays(scene.root / "s.h5.partial")["@complete"]
    interrupted(run, arguments, 1)
    result = run(*arguments)
    assert "counting: going on after 3 of 6 images" in result.stderr
    assert_same(output, whole)
    assert not (scene.root / "s.h5.partial").exists()


def test_an_interrupted_overwrite_keeps_the_old_file_and_goes_on(run: Run, scene: Scene, whole: Path) -> None:
    output = scene.root / "s.h5"
    arguments = ["collect-stats", *scene.options("--labels", str(scene.labels)), "--output", output]
    run("collect-stats", *scene.options(), "--output", output)
    old = output.read_bytes()
    interrupted(run, [*arguments, "--overwrite"], 2)
    assert output.read_bytes() == old
    assert "going on after 2 of 6" in run(*arguments).stderr
    assert_same(output, whole)


def test_overwrite_starts_anew(run: Run, scene: Scene, whole: Path) -> None:
    output = scene.root / "s.h5"
    arguments = ["collect-stats", *scene.options("--labels", str(scene.labels)), "--output", output]
    interrupted(run, arguments, 2)
    assert "going on" not in run(*arguments, "--overwrite").stderr
    assert_same(output, whole)
    assert not (scene.root / "s.h5.partial").exists()


def test_a_run_goes_on_after_an_image_that_could_not_be_read(
    run: Run, refused: Refused, scene: Scene, whole: Path
) -> None:
    output = scene.root / "s.h5"
    arguments = ["collect-stats", *scene.options("--labels", str(scene.labels)), "--output", output]
    bad = scene.images / "west" / "000.png"
    data, changed = bad.read_bytes(), bad.stat().st_mtime_ns
    bad.write_bytes(data[: len(data) // 2])
    assert str(bad) in refused(*arguments)
    assert arrays(scene.root / "s.h5.partial")["@images"] == 3
    bad.write_bytes(data)
    os.utime(bad, ns=(changed, changed))
    assert "going on after 3 of 6" in run(*arguments).stderr
    assert_same(output, whole)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["--ignore-label", "3"], "labels.ignore (null and 3)"),
        (["--flip"], "inference.flip"),
        (["--bins", "64"], "bins"),
        (["--logit-space", "centred"], "logit space"),
        (["--label-source", "soft"], "label sources"),
    ],
)
def test_what_was_counted_otherwise_is_not_gone_on_with(
    run: Run, refused: Refused, scene: Scene, change: list[str], difference: str
) -> None:
    arguments = ["collect-stats", *scene.options(), "--labels", scene.labels, "--output", scene.root / "s.h5"]
    interrupted(run, arguments, 2)
    message = refused(*arguments, *change, "--quiet")
    assert f"differs in {difference}" in message
    assert message.endswith("--overwrite starts anew")


def test_other_images_or_weights_are_not_gone_on_with(run: Run, refused: Refused, scene: Scene) -> None:
    arguments = ["collect-stats", *scene.options(), "--output", scene.root / "s.h5"]
    interrupted(run, arguments, 2)
    fewer = [*arguments, "--images", scene.images / "west"]
    assert "differs in source" in refused(*fewer)
    first = scene.images / "east" / "001.png"
    first.rename(scene.root / "away.png")
    assert "differs in the images" in refused(*arguments)
    (scene.root / "away.png").rename(first)
    other = scene.describe("other.toml", arguments="bias = 0.5")
    assert "differs in arguments.bias (null and 0.5)" in refused(*arguments, "--model", other)


def test_bad_images_are_counted_and_named(run: Run, scene: Scene) -> None:
    cut, text = scene.images / "west/002.png", scene.images / "east/003.png"
    cut.write_bytes(cut.read_bytes()[:200])
    text.write_text("no picture")
    output = scene.root / "s.h5"
    result = run("collect-stats", *scene.options("--on-error", "skip"), "--output", output, "--quiet")
    assert "4 images" in result.stdout
    assert "2 skipped" in result.stdout
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["skipped east/003", "skipped west/002"]
    assert str(cut) in lines[1]
    with h5py.File(output) as file:
        assert set(json.loads(file["provenance"][()])["skipped"]) == {"east/003", "west/002"}
        assert b"west/002" not in file["progress/images"][()]
    said = run("collect-stats", *scene.options("--on-error", "skip", "--json"), "--output", scene.root / "t.h5")
    assert json.loads(said.stdout)["skipped"] == 2


def test_the_next_command_of_a_report_runs_as_it_is_given(run: Run, scene: Scene) -> None:
    images = scene.images.rename(scene.root / "some images")
    stats = scene.root / "my stats.h5"
    how = ("--slide", "20x24", "--scales", "0.5,1", "--flip", "--batch-size", 2)
    run("collect-stats", "--model", scene.model, "--images", images, "--device", "cpu", *how, "--output", stats)
    report = json.loads(run("report", "--stats", stats, "--json", "--output", scene.root / "report").stdout)
    command = shlex.split(report["next_steps"][0]["command"])
    assert command[1:] == [
        *("align", "--model", scene.model, "--images", str(images), "--slide", "20x24", "--scales", "0.5,1.0"),
        *("--flip", "--batch-size", "2", "--device", "cpu", "--stats", str(stats), "--output", "aligned"),
    ]
    run(*command[1:-1], scene.root / "aligned")
    aligned = json.loads((scene.root / "aligned" / "run.json").read_text())
    assert aligned["model"]["inference"] == {"slide": [20, 24], "stride": [13, 16], "scales": [0.5, 1.0], "flip": True}


def test_nothing_but_bad_images(refused: Refused, scene: Scene) -> None:
    for path in scene.images.rglob("*.png"):
        path.write_text("no picture")
    message = refused("collect-stats", *scene.options("--on-error", "skip"), "--output", scene.root / "s.h5")
    assert message.startswith("no image could be read, so there is nothing to count; the first: ")
    assert not list(scene.root.glob("*s.h5*"))


def test_what_is_kept_every_now_and_then(run: Run, scene: Scene, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blda_cli.pipelines import collect
    from blda_cli.store.statistics import write_statistics

    kept: list[int] = []
    monkeypatch.setattr(collect, "CHECKPOINT_SECONDS", 0.0)

    def write(path: Path, content: Any) -> None:
        write_statistics(path, content)
        if path.name.endswith(".partial"):
            kept.append(content.statistics.images)

    monkeypatch.setattr(collect, "write_statistics", write)
    run("collect-stats", *scene.options("--labels", str(scene.labels)), "--output", scene.root / "s.h5")
    assert kept == [1, 2, 3, 4, 5, 6]
    assert_same(scene.root / "s.h5", whole)


def test_each_subfolder_has_a_file_of_its_own(run: Run, refused: Refused, scene: Scene) -> None:
    """The same counts as of the subfolder alone, labels and all."""
    folders = sorted({key.split("/")[0] for key in scene.keys})
    assert len(folders) == 2
    how = ["--model", scene.model, "--device", "cpu"]
    run("collect-stats", *scene.options(), "--labels", scene.labels, "--by", "folder", "--output", scene.root / "s.h5")
    assert not (scene.root / "s.h5").exists()
    for name in folders:
        images, labels = scene.images / name, scene.labels / name
        run(
            "collect-stats",
            *how,
            "--images",
            images,
            "--labels",
            labels,
            "--output",
            scene.root / "alone.h5",
            "--overwrite",
        )
        assert_same(scene.root / f"s-{name}.h5", scene.root / "alone.h5")
    said = refused("collect-stats", *how, "--images", scene.images / folders[0], "--by", "folder", "--output", "x.h5")
    assert "needs all images in subfolders" in said
