from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from blda_cli.core.choices import LabelSource
from blda_cli.core.fitting import Evidence, resolve_strength
from blda_cli.core.methods import AlignmentSettings
from blda_cli.store.statistics import read_statistics

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

Refused = Callable[..., str]
Tree = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def stats(run: Run, scene: Scene) -> Path:
    """Statistics of the scene, with its labels."""
    path = scene.root / "stats.h5"
    run("collect-stats", *scene.options(), "--labels", scene.labels, "--output", path, "--quiet")
    return path


@pytest.fixture
def aligned(run: Run, scene: Scene, stats: Path) -> Path:
    """Predictions with the default settings."""
    run("align", *scene.options(), "--stats", stats, "--output", scene.root / "aligned")
    return scene.root / "aligned"


def ids(folder: Path, kind: str = "predictions") -> dict[str, np.ndarray]:
    """Class ids of every picture."""
    root = folder / kind
    return {
        path.relative_to(root).with_suffix("").as_posix(): np.array(Image.open(path)) for path in root.rglob("*.png")
    }


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def logits(scene: Scene, key: str) -> torch.Tensor:
    """The network's own, ``[1, 4, H, W]``."""
    from blda_cli.data.pillow_images import PillowImage
    from blda_cli.segmenters import load_segmenter
    from blda_cli.segmenters.options import InferenceOptions
    from blda_cli.segmenters.spec import parse_model

    segmenter = load_segmenter(parse_model(scene.model), torch.device("cpu"))
    file = PillowImage(scene.images / f"{key}.png", key)
    return next(iter(segmenter.stream([file], InferenceOptions()))).logits


def test_pictures_lie_in_the_images_tree_with_a_palette(aligned: Path, scene: Scene) -> None:
    names = {path.relative_to(aligned).as_posix() for path in aligned.rglob("*") if path.is_file()}
    assert names == {"run.json"} | {f"{kind}/{key}.png" for kind in ("predictions", "argmax") for key in scene.keys}
    palette = record(aligned)["palette"]
    for key in scene.keys:
        before = logits(scene, key).argmax(dim=1)[0].numpy()
        np.testing.assert_array_equal(np.array(Image.open(aligned / "argmax" / f"{key}.png")), before)
        with Image.open(aligned / "predictions" / f"{key}.png") as picture:
            after = np.array(picture)
            assert after.max() < 4
            np.testing.assert_array_equal(np.array(picture.convert("RGB")), np.array(palette)[after])
    assert any((ids(aligned)[key] != ids(aligned, "argmax")[key]).any() for key in scene.keys)


def test_the_biased_class_loses_and_accuracy_gains(run: Run, scene: Scene, stats: Path) -> None:
    aligned = scene.root / "aligned"
    run("align", *scene.options("--shift", "two-pass", "--tau", "1"), "--stats", stats, "--output", aligned)
    said = record(aligned)
    assert said["pixels_before"][0] > said["pixels_after"][0]
    before, after = ids(aligned, "argmax"), ids(aligned)
    labels = {key: np.array(Image.open(scene.labels / f"{key}.png")) for key in scene.keys}

    def mean_accuracy(found: dict[str, np.ndarray]) -> float:
        hits = [
            np.concatenate([(found[key] == label)[labels[key] == label] for key in scene.keys]).mean()
            for label in range(4)
        ]
        return float(np.mean(hits))

    assert mean_accuracy(after) > mean_accuracy(before) + 0.02


def test_record_says_how_the_folder_was_made(aligned: Path, scene: Scene, stats: Path) -> None:
    said = record(aligned)
    counted = read_statistics(stats).statistics
    strength = resolve_strength(AlignmentSettings(), Evidence(counted, counted.cells[LabelSource.PSEUDO]))
    assert 0 < strength < 1
    assert said["format"] == "blda-predictions"
    assert said["classes"] == ["road", "tree", "car", "sky"]
    assert said["ids"] == [0, 1, 2, 3]
    assert said["images"] == {key: str(scene.images / f"{key}.png") for key in scene.keys}
    assert said["model"]["weights"].startswith("sha256:")
    assert said["model"]["inference"] == {"slide": None, "stride": None, "scales": [1.0], "flip": False}
    assert said["statistics"]["file"] == str(stats)
    assert said["statistics"]["sha256"] == f"sha256:{hashlib.sha256(stats.read_bytes()).hexdigest()}"
    assert {name: said["settings"][name] for name in ("method", "shift", "tau", "label_source")} == {
        "method": "blda",
        "shift": "negative",
        "tau": strength,
        "label_source": "pseudo",
    }
    assert said["provenance"]["command"].startswith("blda")
    assert {"blda", "torch"} <= said["provenance"]["versions"].keys()
    before, after = ids(aligned, "argmax"), ids(aligned)
    counts = [int(sum((found == label).sum() for found in before.values())) for label in range(4)]
    assert said["pixels_before"] == counts
    assert said["changed"] == {key: (before[key] != after[key]).mean() for key in scene.keys}
    assert said["pixels_changed"] == sum((before[key] != after[key]).sum() for key in scene.keys)


def test_what_is_said(run: Run, scene: Scene, stats: Path) -> None:
    result = run("align", *scene.options(), "--stats", stats, "--output", scene.root / "a")
    gap, more, command = result.stderr.splitlines()
    assert re.search(
        r"/a: 6 images, [\d.]+% of the pixels changed; blda negative, τ [\d.]+; out of domain$", result.stdout
    )
    assert re.fullmatch(r"These images are out of domain \(.* of the pixels are contested, .*\): .*", gap)
    assert more.endswith("the report says how:")
    assert command == f"  blda report --stats {stats} --aligned {scene.root / 'a'} --output report"
    said = record(scene.root / "a")
    for name, before, after in zip(said["classes"], said["pixels_before"], said["pixels_after"], strict=True):
        line = next(line for line in result.stdout.splitlines() if name in line)
        assert f"{before / 15936:.2%}" in line
        assert f"{after / 15936:.2%}" in line
    assert f"6 images, {said['pixels_changed'] / 15936:.1%} of the pixels changed" in result.stdout

    arguments = [*scene.options(), "--stats", stats, "--output", scene.root / "b", "--json", "--quiet"]
    result = run("align", *arguments)
    assert result.stderr == ""
    summary = json.loads(result.stdout)
    assert summary["images"] == 6
    assert summary["changed"] == pytest.approx(said["pixels_changed"] / 15936)
    assert (summary["method"], summary["shift"], summary["verdict"]) == ("blda", "negative", "out of domain")
    assert summary["strength"] == said["settings"]["tau"] > 0
    report = run("report", "--stats", stats, "--json", "--output", scene.root / "r")
    assert summary["evidence"] == said["evidence"] == json.loads(report.stdout)["domain_gap"]

    result = run("align", *arguments[:-1], "--tau", 0.5, "--overwrite")
    given = json.loads(result.stdout)
    assert (given["strength"], given["verdict"], given["evidence"]) == (0.5, None, None)
    result = run("align", *arguments[:-2], "--method", "prior-shift", "--overwrite")
    assert re.search(r"; prior-shift.*[^;]*$", result.stdout)
    assert "domain" not in result.stdout
    assert sum(shares["share_after"] for shares in summary["classes"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "options", [["--tau", "0"], ["--method", "none"], ["--tau", "0", "--shift", "quantile"], ["--tau", "-0.0"]]
)
def test_no_correction_is_argmax(run: Run, scene: Scene, stats: Path, options: list[str]) -> None:
    output = scene.root / "a"
    result = run("align", *scene.options(*options), "--stats", stats, "--output", output)
    assert "nothing is corrected" in result.stderr
    before, after = ids(output, "argmax"), ids(output)
    assert all((before[key] == after[key]).all() for key in scene.keys)
    assert record(output)["pixels_changed"] == 0


@pytest.mark.parametrize("method", ["logit-adjust", "prior-shift", "class-confidence"])
def test_other_methods(run: Run, scene: Scene, stats: Path, method: str) -> None:
    run("align", *scene.options("--method", method), "--stats", stats, "--output", scene.root / "a")
    assert record(scene.root / "a")["settings"]["method"] == method
    assert record(scene.root / "a")["pixels_changed"] > 0


def test_spatial_priors(run: Run, refused: Refused, scene: Scene, stats: Path) -> None:
    rule = scene.options("--method", "class-confidence")
    run("align", *rule, "--stats", stats, "--output", scene.root / "a")
    run("align", *rule, "--stats", stats, "--spatial-priors", stats, "--output", scene.root / "b")
    said = record(scene.root / "b")["statistics"]
    assert said["spatial_priors"] == str(stats)
    assert said["spatial_priors_sha256"] == said["sha256"]
    without, with_priors = ids(scene.root / "a"), ids(scene.root / "b")
    labels = {key: np.array(Image.open(scene.labels / f"{key}.png")) for key in scene.keys}
    right = [sum((found[key] == labels[key]).sum() for key in scene.keys) for found in (without, with_priors)]
    assert right[1] > right[0]  # the priors are the frames' own here

    unlabelled = scene.root / "unlabelled.h5"
    run("collect-stats", *scene.options(), "--output", unlabelled, "--quiet")
    arguments = [*rule, "--stats", stats, "--output", scene.root / "c", "--spatial-priors"]
    assert "does not tell where classes lie" in refused("align", *arguments, unlabelled)
    with h5py.File(unlabelled, "a") as old:
        old.attrs["format_version"] = 1
        del old["sample/positions"]
    without_positions = [*rule, "--stats", unlabelled, "--output", scene.root / "c", "--spatial-priors", stats]
    assert "collect them anew" in refused("align", *without_positions)
    assert "give --method class-confidence" in refused(
        "align", *scene.options(), "--spatial-priors", stats, "--output", "d", code=2
    )


def test_published_preset_and_what_overrides_it(run: Run, scene: Scene, stats: Path) -> None:
    run("align", *scene.options("--preset", "published"), "--stats", stats, "--output", scene.root / "a")
    settings = record(scene.root / "a")["settings"]
    assert (settings["shift"], settings["density"], settings["tails"], settings["tau"]) == (
        *("quantile", "mixture", "clamp"),
        0.2,
    )
    more = scene.options("--preset", "published", "--tau", "1", "--density", "empirical")
    run("align", *more, "--stats", stats, "--output", scene.root / "b")
    settings = record(scene.root / "b")["settings"]
    assert (settings["density"], settings["tails"], settings["tau"]) == ("empirical", "clamp", 1.0)


def test_scores(run: Run, scene: Scene, stats: Path) -> None:
    output = scene.root / "a"
    run("align", *scene.options("--save-scores", "--method", "none"), "--stats", stats, "--output", output)
    for key in scene.keys:
        with h5py.File(output / "scores" / f"{key}.h5") as file:
            scores = file["scores"][:]
            assert scores.dtype == np.float16
            np.testing.assert_allclose(scores, logits(scene, key).log_softmax(dim=1)[0], atol=5e-3, rtol=1e-3)
    run("align", *scene.options("--save-scores"), "--stats", stats, "--output", scene.root / "b")
    for key, after in ids(scene.root / "b").items():
        with h5py.File(scene.root / "b" / "scores" / f"{key}.h5") as file:
            scores = file["scores"][:].astype(np.float32)
        own = np.take_along_axis(scores, after[None].astype(int), axis=0)[0]
        assert (scores.max(axis=0) - own).max() < 0.02


def test_original_ids(run: Run, scene: Scene) -> None:
    names = ["road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"]
    names += ["terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    model = scene.describe("city.toml", arguments="outputs = 19", names=names)
    stats = scene.root / "s.h5"
    run("collect-stats", *scene.options("--label-source", "pseudo", "--bins", "16", model=model), "--output", stats)
    run("align", *scene.options(model=model), "--stats", stats, "--output", scene.root / "a")
    run("align", *scene.options("--ids", model=model), "--stats", stats, "--output", scene.root / "b")
    original = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])
    for key, found in ids(scene.root / "b").items():
        np.testing.assert_array_equal(found, original[ids(scene.root / "a")[key]])
    assert record(scene.root / "b")["ids"] == original.tolist()


def test_statistics_are_collected_first_where_none_are_given(run: Run, scene: Scene, aligned: Path) -> None:
    output = scene.root / "a"
    result = run("align", *scene.options(), "--output", output)
    assert f"no --stats given: statistics are collected first, as {output}.h5" in result.stderr
    for key, found in ids(aligned).items():
        np.testing.assert_array_equal(found, ids(output)[key])


def test_statistics_of_an_earlier_run_are_used_again(run: Run, scene: Scene) -> None:
    output = scene.root / "a"
    run("collect-stats", *scene.options(), "--output", scene.root / "a.h5")
    before = (scene.root / "a.h5").read_bytes()
    result = run("align", *scene.options(), "--output", output)
    assert f"no --stats given: {output}.h5 is used, which is there" in result.stderr
    assert (scene.root / "a.h5").read_bytes() == before


def test_anchors_of_another_domain(run: Run, scene: Scene, stats: Path, drawn: Callable[..., None]) -> None:
    drawn(scene.root / "other", 4, [(48, 64)], seed=5)
    for path in (scene.root / "other" / "images").rglob("*.png"):
        Image.fromarray((np.array(Image.open(path)) * 0.6).astype(np.uint8)).save(path)
    anchors = scene.root / "anchors.h5"
    options = ["--model", scene.model, "--images", scene.root / "other" / "images", "--device", "cpu"]
    run("collect-stats", *options, "--output", anchors)
    how = scene.options("--shift", "quantile", "--tau", "0.5")
    run("align", *how, "--stats", stats, "--output", scene.root / "own")
    run("align", *how, "--stats", stats, "--reference", stats, "--output", scene.root / "same")
    run("align", *how, "--stats", stats, "--anchors", anchors, "--output", scene.root / "other-anchors")
    own, same, other = (ids(scene.root / name) for name in ("own", "same", "other-anchors"))
    assert all((own[key] == same[key]).all() for key in scene.keys)
    assert any((own[key] != other[key]).any() for key in scene.keys)
    assert record(scene.root / "other-anchors")["statistics"]["reference"] == str(anchors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--density", "mixture"], "give --shift quantile"),
        (["--tails", "clamp", "--shift", "location"], "give --shift quantile"),
        (["--reference", "STATS", "--tau", "0.3"], "--reference does nothing with --method blda --shift negative"),
        (["--anchors", "STATS", "--method", "supervised"], "--reference does nothing with --method supervised"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    refused: Refused, scene: Scene, stats: Path, options: list[str], message: str
) -> None:
    options = [str(stats) if option == "STATS" else option for option in options]
    said = refused("align", *scene.options(*options), "--stats", stats, "--output", scene.root / "a", code=2)
    assert message in said
    assert not (scene.root / "a").exists()


def test_statistics_of_another_model_are_refused_unless_forced(
    run: Run, refused: Refused, scene: Scene, stats: Path
) -> None:
    output = scene.root / "a"
    names = ["road", "tree", "car", "lake"]
    others = {
        scene.describe("bias.toml", arguments="bias = 0.5"): "arguments.bias (null and 0.5)",
        scene.describe("names.toml", names=names): "classes",
        scene.describe("scaled.toml", more="\n[preprocessing]\nscale = 255.0\n"): "preprocessing.scale",
    }
    for model, difference in others.items():
        said = refused("align", *scene.options(model=model), "--stats", stats, "--output", output)
        assert f"{stats} was made with another model or preprocessing: it differs in {difference}" in said
        assert said.endswith("--force")
        assert not output.exists()
    said = refused("align", *scene.options("--flip"), "--stats", stats, "--output", output)
    assert "differs in inference.flip (false and true)" in said
    for model in others:
        run("align", *scene.options("--force", "--overwrite", model=model), "--stats", stats, "--output", output)


def test_statistics_of_another_number_of_classes_cannot_be_forced(refused: Refused, scene: Scene, stats: Path) -> None:
    model = scene.describe("five.toml", arguments="outputs = 5", names=["a", "b", "c", "d", "e"])
    said = refused("align", *scene.options("--force", model=model), "--stats", stats, "--output", scene.root / "a")
    assert f"{stats} is of 4 classes, the model has 5" in said


def test_label_source_that_was_not_counted(run: Run, refused: Refused, scene: Scene) -> None:
    stats, output = scene.root / "s.h5", scene.root / "a"
    run("collect-stats", *scene.options("--label-source", "soft"), "--output", stats)
    said = refused("align", *scene.options(), "--stats", stats, "--output", output)
    assert said == "--label-source pseudo: the statistics hold only soft; collect that source too"
    said = refused("align", *scene.options("--label-source", "ground_truth"), "--output", output, code=2)
    assert said == "Error: --label-source ground_truth needs --stats collected with --labels"
    assert not output.exists()
    # Statistics that are collected on the way count what is asked for.
    run("align", *scene.options("--label-source", "soft", "--tau", "1"), "--output", output)
    with h5py.File(f"{output}.h5") as file:
        assert set(file["cells"]) == {"pseudo", "soft"}


def test_too_few_pixels_correct_nothing(run: Run, scene: Scene) -> None:
    options = ["--model", scene.model, "--images", scene.images / "west" / "000.png", "--device", "cpu"]
    run("collect-stats", *options, "--output", scene.root / "s.h5")
    with h5py.File(scene.root / "s.h5") as file:
        assert (file["cells/pseudo/counts"][:, 0].sum(axis=1) < 500).any()
    small = scene.root / "small"
    small.mkdir()
    Image.open(scene.images / "west" / "000.png").crop((0, 0, 20, 20)).save(small / "x.png")
    options = ["--model", scene.model, "--images", small, "--device", "cpu"]
    for form in ("two-pass", "balanced", "location", "quantile"):
        run("align", *options, "--shift", form, "--output", scene.root / form)
        assert record(scene.root / form)["pixels_changed"] == 0


def test_folders_are_not_written_over(run: Run, refused: Refused, scene: Scene, stats: Path, tree: Tree) -> None:
    output = scene.root / "a"
    arguments = ["align", *scene.options(), "--stats", stats, "--output", output]
    run(*arguments)
    before = tree(output)
    assert "holds predictions already: --overwrite replaces them" in refused(*arguments, "--tau", "0.5", "--quiet")
    assert "holds predictions already" in refused("align", *scene.options(), "--output", output)
    assert not (scene.root / "a.h5").exists()  # said before statistics are collected
    assert tree(output) == before
    (output / "argmax" / "stale.png").write_bytes(b"")
    run(*arguments, "--overwrite", "--tau", "0.5")
    assert record(output)["settings"]["tau"] == 0.5
    assert tree(output).keys() == before.keys()


@pytest.mark.parametrize("name", ["notes.txt", "predictions/mine.png", "scores/a.h5", "run.json.bak"])
def test_folders_of_others_are_never_touched(
    refused: Refused, scene: Scene, stats: Path, tree: Tree, name: str
) -> None:
    output = scene.root / "a"
    (output / name).parent.mkdir(parents=True)
    (output / name).write_text("precious")
    arguments = ["align", *scene.options(), "--stats", stats, "--output", output]
    assert "holds other things" in refused(*arguments)
    assert "holds other things" in refused(*arguments, "--overwrite")
    assert tree(output) == {name: b"precious"}


def interrupted(run: Run, arguments: list[Any], call: int) -> None:
    result = run(*arguments, code=130, env={"TINY_SIGNAL": f"{int(signal.SIGINT)}@{call}"})
    assert result.stderr.splitlines()[-1].startswith("blda: interrupted; what was done is kept")


def without_provenance(folder: Path) -> dict[str, Any]:
    said = record(folder)
    del said["provenance"], said["stamps"]  # of files that a test writes anew
    return said


def test_a_run_goes_on_after_interruptions(run: Run, refused: Refused, scene: Scene, stats: Path, tree: Tree) -> None:
    arguments = ["align", *scene.options("--save-scores"), "--stats", stats, "--output"]
    run(*arguments, scene.root / "whole")
    output = scene.root / "a"
    interrupted(run, [*arguments, output], 2)
    assert not (output / "run.json").exists()
    assert (output / ".partial" / "run.json.partial").exists()
    said = refused(*arguments, output, "--tau", "0.5", "--quiet")
    assert re.search(r"differs in settings.tau \(0\.\d+ and 0\.5\)", said)
    interrupted(run, [*arguments, output], 1)
    assert "aligning: going on after 3 of 6 images" in run(*arguments, output).stderr
    one, other = tree(output), tree(scene.root / "whole")
    del one["run.json"], other["run.json"]
    assert one == other
    assert without_provenance(output) == without_provenance(scene.root / "whole")


def test_a_run_goes_on_after_an_image_that_could_not_be_read(
    run: Run, refused: Refused, scene: Scene, stats: Path, aligned: Path
) -> None:
    output = scene.root / "a"
    arguments = ["align", *scene.options(), "--stats", stats, "--output", output]
    bad = scene.images / "west" / "000.png"
    data = bad.read_bytes()
    bad.write_bytes(data[: len(data) // 2])
    assert str(bad) in refused(*arguments)
    bad.write_bytes(data)
    assert "going on after 3 of 6" in run(*arguments).stderr
    assert without_provenance(output) == without_provenance(aligned)


def test_nothing_is_left_where_nothing_was_done(refused: Refused, scene: Scene, stats: Path) -> None:
    first = scene.images / "east" / "001.png"
    first.write_bytes(first.read_bytes()[:100])
    refused("align", *scene.options(), "--stats", stats, "--output", scene.root / "a")
    assert not (scene.root / "a").exists()
    for path in scene.images.rglob("*.png"):
        path.write_text("no picture")
    said = refused("align", *scene.options("--on-error", "skip"), "--stats", stats, "--output", scene.root / "a")
    assert said.startswith("no image could be read, so there is nothing to write; the first: ")
    assert not (scene.root / "a").exists()


def test_bad_images_are_counted_and_named(run: Run, scene: Scene, stats: Path) -> None:
    (scene.images / "west" / "002.png").write_text("no picture")
    output = scene.root / "a"
    result = run("align", *scene.options("--on-error", "skip"), "--stats", stats, "--output", output)
    assert "skipped west/002: " in result.stderr
    assert "5 images" in result.stdout
    assert list(record(output)["provenance"]["skipped"]) == ["west/002"]
    assert "west/002" not in ids(output)


def test_statistics_of_a_stopped_run_are_said_to_be_that(run: Run, scene: Scene, aligned: Path) -> None:
    arguments = ["collect-stats", *scene.options(), "--output", scene.root / "s.h5"]
    interrupted(run, arguments, 4)
    part = scene.root / "s.h5.partial"
    result = run("align", *scene.options(), "--stats", part, "--output", scene.root / "a")
    assert f"{part} is of an interrupted run: it counts 4 images" in result.stderr


def test_left_overs_of_a_killed_process_are_cleared_away(run: Run, scene: Scene, stats: Path, aligned: Path) -> None:
    output = scene.root / "a"
    arguments = ["align", *scene.options(), "--stats", stats, "--output", output]
    interrupted(run, arguments, 3)
    for name in (".run.json.partial.77.part", "predictions/west/.000.png.77.part", "run.json.0-of-2.partial"):
        (output / ".partial" / name).parent.mkdir(exist_ok=True)
        (output / ".partial" / name).write_text("{")
    run(*arguments)
    names = {path.relative_to(output) for path in output.rglob("*")}
    assert names == {path.relative_to(aligned) for path in aligned.rglob("*")}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk takes root")
def test_full_disk(run: Run, refused: Refused, scene: Scene, stats: Path, aligned: Path) -> None:
    disk = scene.root / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        arguments = ["align", *scene.options("--save-scores"), "--stats", stats, "--output", disk / "a"]
        assert "cannot be written: No space left on device" in refused(*arguments)
        assert not (disk / "a" / "run.json").exists()
        assert not list(disk.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        run(*arguments)
        assert record(disk / "a")["pixels_after"] == record(aligned)["pixels_after"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_predictions_do_not_go_among_the_images(refused: Refused, scene: Scene, stats: Path) -> None:
    output = scene.images / "aligned"
    said = refused("align", *scene.options(), "--stats", stats, "--output", output)
    assert "where its pictures would be taken for images" in said
    assert not output.exists()


def test_the_strength_is_found_without_labels(run: Run, scene: Scene, stats: Path) -> None:
    output = scene.root / "adjusted"
    run("align", *scene.options("--method", "logit-adjust"), "--stats", stats, "--output", output)
    tau = record(output)["settings"]["tau"]
    assert isinstance(tau, float)
    assert 0 <= tau <= 1.5


def test_a_few_labels_supervise_the_rest(run: Run, scene: Scene, stats: Path) -> None:
    unlabelled = scene.root / "unlabelled.h5"
    run("collect-stats", *scene.options(), "--output", unlabelled, "--quiet")
    options = scene.options("--method", "supervised", "--labelled", str(stats))
    run("align", *options, "--stats", unlabelled, "--output", scene.root / "a")
    held = record(scene.root / "a")
    assert held["settings"]["method"] == "supervised"
    assert held["statistics"]["labelled"] == str(stats)


def test_supervision_without_labels_is_refused(run: Run, refused: Refused, scene: Scene) -> None:
    unlabelled = scene.root / "unlabelled.h5"
    run("collect-stats", *scene.options(), "--output", unlabelled, "--quiet")
    options = scene.options("--method", "supervised")
    said = refused("align", *options, "--stats", unlabelled, "--output", scene.root / "a")
    assert "no labelled pixel" in said


def test_no_ratio_is_formed_of_a_few_pixels() -> None:
    from blda_cli.commands.align import _change

    assert [_change(*pair) for pair in ((0.2, 0.1), (0.001, 0.0), (1e-6, 4e-4), (1e-6, 1e-5), (0.0, 0.0))] == [
        *("×0.50", "×0.00", "new", "n/a", "n/a")
    ]


def test_of_many_classes_those_that_changed_most_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from blda_cli.commands.align import _show
    from blda_cli.store.predictions import RunRecord

    growth = [(index - 75) * 2 if index % 3 else 0 for index in range(150)]
    made = RunRecord(
        classes=[f"class {index}" for index in range(150)],
        palette=[],
        ids=[],
        model={},
        settings={"method": "none", "tau": 0.0},
        statistics={},
        images={},
        pixels_before=[1000] * 150,
        pixels_after=[1000 + more for more in growth],
        changed={"one": 0.5},
    )

    def classes(*, all_classes: bool) -> list[int]:
        _show(made, Path("aligned"), all_classes=all_classes)
        return [
            int(line.split()[1])
            for line in capsys.readouterr().out.splitlines()
            if line.startswith(" class ") and line.split()[1].isdigit()
        ]

    grown = sorted((index for index in range(150) if growth[index] > 0), reverse=True)
    shrunk = [index for index in range(150) if growth[index] < 0]
    assert classes(all_classes=False) == grown[:10] + shrunk[:10]
    assert classes(all_classes=True) == [*grown, *shrunk, *range(0, 150, 3)]
    made.pixels_after = made.pixels_before
    _show(made, Path("aligned"), all_classes=False)
    assert capsys.readouterr().out == "aligned: 1 images, 0.0% of the pixels changed; argmax\n"
    made.pixels_before = made.pixels_after = [0] * 150
    _show(made, Path("aligned"), all_classes=False)
    assert capsys.readouterr().out == "aligned: 1 images, no pixels\n"


def test_statistics_with_labels_say_what_labels_are_for(
    run: Run, refused: Refused, scene: Scene, stats: Path, aligned: Path
) -> None:
    report = ["report", "--stats", stats, "--output", scene.root / "r"]
    message = refused(*report, "--labels", scene.labels)
    assert message == f"{stats} was collected with labels and is scored against them: leave out --labels"
    assert json.loads(run(*report, "--json").stdout)["overall"]["before"]["mean_iou"] > 0
    said = json.loads(run(*report, "--aligned", aligned, "--json", "--overwrite").stdout)
    assert any(f"--labels {scene.labels} what was corrected is scored" in remark for remark in said["remarks"])
    said = json.loads(run(*report, "--aligned", aligned, "--labels", scene.labels, "--json", "--overwrite").stdout)
    assert not any("--labels" in remark for remark in said["remarks"])
