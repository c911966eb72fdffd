"""``--norms``: what batch norms normalise by, from the pass over the images to everything that is given the file."""

from __future__ import annotations

import json
import signal
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from blda_cli.core.norms import SHIFTED, MixedNorms, Norms, hellinger
from blda_cli.reporting.words import percent
from blda_cli.segmenters import load_segmenter, norm_choice
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.segmenters.spec import parse_model
from blda_cli.store.statistics import read_statistics

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

Refused = Callable[..., str]
Process = Callable[..., "subprocess.CompletedProcess[str]"]
Torchrun = Callable[..., "subprocess.CompletedProcess[str]"]

NETWORK = """
from pathlib import Path

import torch
from torch import nn

from tiny import Nearest


def make():
    norm = nn.BatchNorm2d(3)
    norm.running_mean, norm.running_var = torch.tensor([0.3, 0.5, 0.2]), torch.tensor([0.5, 0.02, 0.1])
    return nn.Sequential(norm, Nearest(sharpness=0.5, bias=0.1))
"""


@pytest.fixture
def normed(scene: Scene) -> str:
    """A network with a batch norm, as ``--model``."""
    (scene.root / "normed.py").write_text(NETWORK)
    return scene.describe("normed.toml", factory="normed:make")


@pytest.fixture
def stats(run: Run, scene: Scene, normed: str) -> Path:
    path = scene.root / "stats.h5"
    run("collect-stats", *scene.options("--norms", "target", model=normed), "--output", path)
    return path


def counts(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        found: np.ndarray = file["cells/pseudo/counts"][()]
    return found


def test_the_file_keeps_what_the_network_had(run: Run, scene: Scene, normed: str) -> None:
    path, source = scene.root / "s.h5", scene.root / "source.h5"
    said = run("collect-stats", *scene.options("--norms", "target", model=normed), "--output", path)
    assert "batch norms: statistics of 6 target images, the network's own counting as 8\n" in said.stderr
    run("collect-stats", *scene.options("--norms", "source", model=normed), "--output", source)
    assert read_statistics(source).norms is None
    assert "norms" not in read_statistics(source).model
    content = read_statistics(path)
    assert isinstance(content.norms, Norms)
    assert content.model["norms"] == content.norms.identity
    pixels = np.concatenate([np.array(Image.open(image)).reshape(-1, 3) for image in scene.images.rglob("*.png")]) / 255
    for name, own, target in (
        ("0.running_mean", [0.3, 0.5, 0.2], pixels.mean(axis=0)),
        ("0.running_var", [0.5, 0.02, 0.1], pixels.var(axis=0, ddof=1)),
    ):
        np.testing.assert_allclose(content.norms.averages[name], (8 * np.array(own) + 6 * target) / 14, rtol=1e-5)
    assert (counts(path) != counts(source)).any()


def test_align_runs_the_network_with_the_norms_of_its_statistics(
    run: Run, scene: Scene, normed: str, stats: Path
) -> None:
    said = run("align", *scene.options(model=normed), "--stats", stats, "--output", scene.root / "a")
    assert "batch norms" not in said.stderr  # collect-stats said it
    norms = read_statistics(stats).norms
    assert isinstance(norms, Norms)
    own, by_hand = (load_segmenter(parse_model(normed), torch.device("cpu")).module for _ in range(2))
    by_hand.load_state_dict(norms.averages, strict=False)
    changed = 0
    for key in scene.keys:
        pixels = torch.from_numpy(np.array(Image.open(scene.images / f"{key}.png"))).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            expected, before = by_hand(pixels).argmax(dim=1)[0].numpy(), own(pixels).argmax(dim=1)[0].numpy()
        np.testing.assert_array_equal(np.array(Image.open(scene.root / "a" / "argmax" / f"{key}.png")), expected)
        changed += (expected != before).sum()
    assert changed > 0
    # Without statistics they are collected first, with the same norms.
    run("align", *scene.options("--norms", "target", model=normed), "--output", scene.root / "b")
    np.testing.assert_array_equal(counts(scene.root / "b.h5"), counts(stats))
    for key in scene.keys:
        picture = f"predictions/{key}.png"
        assert (scene.root / "a" / picture).read_bytes() == (scene.root / "b" / picture).read_bytes()


def test_networks_with_other_norms_are_told_apart(
    run: Run, refused: Refused, scene: Scene, normed: str, stats: Path
) -> None:
    labelled = scene.root / "labelled.h5"
    options = scene.options(model=normed)
    run("collect-stats", *options, "--labels", scene.labels, "--norms", "source", "--output", labelled)
    arguments = ["align", *options, "--stats", stats, "--method", "supervised", "--labelled", labelled]
    assert "it differs in norms" in refused(*arguments, "--output", scene.root / "a")
    # With the norms of the other file the two are of one network.
    run("collect-stats", *options, "--labels", scene.labels, "--norms", stats, "--output", labelled, "--overwrite")
    assert read_statistics(labelled).model == read_statistics(stats).model
    np.testing.assert_array_equal(counts(labelled), counts(stats))
    message = refused("align", *options, "--stats", stats, "--norms", "source", "--output", scene.root / "a", code=2)
    assert "--stats brings its own" in message
    run("collect-stats", *options, "--output", scene.root / "b.h5")
    message = refused("align", *options, "--norms", "target", "--output", scene.root / "b")
    assert (
        message == f"{scene.root / 'b.h5'} is there, but was not collected with --norms target: --overwrite replaces it"
    )


def test_halves_add_up_with_one_file_s_norms(
    run: Run, refused: Refused, scene: Scene, normed: str, stats: Path
) -> None:
    def half(name: str, side: str, norms: str | Path) -> Path:
        path = scene.root / f"{name}.h5"
        arguments = ["--model", normed, "--images", f"{scene.images}/{side}/*.png", "--device", "cpu"]
        run("collect-stats", *arguments, "--norms", norms, "--output", path)
        return path

    one, other = half("one", "east", "target"), half("other", "west", "target")
    assert "they differ in norms.digest" in refused("merge", one, other, "--output", scene.root / "all.h5")
    one, other = half("one with all", "east", stats), half("other with all", "west", stats)
    run("merge", one, other, "--output", scene.root / "all.h5")
    merged, whole = read_statistics(scene.root / "all.h5"), read_statistics(stats)
    assert merged.norms is not None
    assert merged.norms.identity == merged.model["norms"] == whole.model["norms"]
    np.testing.assert_array_equal(counts(scene.root / "all.h5"), counts(stats))


def test_a_sum_lies_as_far_from_home_as_its_parts(run: Run, scene: Scene, normed: str) -> None:
    shifts, paths = [], [scene.root / f"{name}.h5" for name in ("east", "west", "all")]
    for path, images in zip(paths, ("east/001.png", "west/*.png"), strict=False):
        run(
            "collect-stats",
            "--model",
            normed,
            "--images",
            f"{scene.images}/{images}",
            "--device",
            "cpu",
            "--norms",
            "source",
            "--output",
            path,
        )
        shifts.append(read_statistics(path).provenance.norm_distance or 0.0)
    run("merge", *paths[:2], "--output", paths[2])
    merged = read_statistics(paths[2])
    assert merged.norms_shifted
    assert merged.statistics.images == 4
    assert merged.provenance.norm_distance == pytest.approx((shifts[0] + 3 * shifts[1]) / 4)
    assert shifts[0] != pytest.approx(shifts[1], rel=1e-3)


def test_a_run_that_was_stopped_goes_on_with_its_norms(
    process: Process, run: Run, refused: Refused, scene: Scene, normed: str, stats: Path
) -> None:
    output = scene.root / "s.h5"
    options = scene.options(model=normed)
    # Six images are averaged, and two counted.
    env = {"TINY_SIGNAL": f"{int(signal.SIGINT)}@8"}
    done = process("collect-stats", *options, "--norms", "target", "--output", output, "--quiet", "--no-check", env=env)
    assert done.returncode == 130, done.stderr
    assert 'differs in norms ("target" and "source")' in refused(
        "collect-stats", *options, "--norms", "source", "--output", output
    )
    assert "going on after 2 of 6" in run("collect-stats", *options, "--norms", "target", "--output", output).stderr
    np.testing.assert_array_equal(counts(output), counts(stats))
    assert read_statistics(output).model == read_statistics(stats).model
    assert not list(scene.root.glob("*.partial"))


def test_norms_are_watched_in_the_pass_that_counts(
    process: Process, run: Run, torchrun: Torchrun, scene: Scene, normed: str
) -> None:
    whole, output = scene.root / "whole.h5", scene.root / "s.h5"
    options = scene.options("--norms", "source", model=normed)
    run("collect-stats", *options, "--output", whole)
    shift = read_statistics(whole).provenance.norm_distance or 0.0
    assert shift > SHIFTED
    # Seven calls of the network: six images counted, none run before.
    env = {"TINY_SIGNAL": f"{int(signal.SIGINT)}@7"}
    assert process("collect-stats", *options, "--output", output, "--no-check", env=env).returncode == 0
    assert read_statistics(output).provenance.norm_distance == shift
    # A run that was stopped sees all of them all the same.
    env = {"TINY_SIGNAL": f"{int(signal.SIGINT)}@3"}
    output = scene.root / "stopped.h5"
    done = process("collect-stats", *options, "--output", output, "--quiet", "--no-check", env=env)
    assert done.returncode == 130, done.stderr
    assert "going on after 3 of 6" in run("collect-stats", *options, "--output", output).stderr
    assert read_statistics(output).provenance.norm_distance == pytest.approx(shift, rel=1e-9)
    assert read_statistics(output).images == read_statistics(whole).images
    np.testing.assert_array_equal(counts(output), counts(whole))
    # The first of several processes watches its share.
    assert torchrun("collect-stats", *options, "--output", output, "--overwrite").returncode == 0
    assert read_statistics(output).norms_shifted
    np.testing.assert_array_equal(counts(output), counts(whole))


def test_norms_as_trained_are_watched_whatever_says_so(run: Run, scene: Scene, normed: str) -> None:
    """A weight of 1 is the network as it was trained, whose norms may lie far from those of the images."""
    found = []
    for number, given in enumerate((["--norms", "source"], ["--norm-weight", "1"])):
        output = scene.root / f"{number}.h5"
        run("collect-stats", *scene.options(*given, model=normed), "--output", output)
        found.append(read_statistics(output).provenance.norm_distance)
    assert found[0] is not None
    assert found[0] > SHIFTED
    assert found[1] == found[0]


def test_images_come_in_their_order_whichever_were_watched(run: Run, scene: Scene, normed: str, tmp_path: Path) -> None:
    images, output = tmp_path / "twenty", tmp_path / "s.h5"
    images.mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 9 * number, 250 - number)).save(images / f"{number:02}.png")
    options = ["--norms", "source", "--device", "cpu"]
    run("collect-stats", "--model", normed, "--images", images, *options, "--output", output)
    content = read_statistics(output)
    assert content.images == [f"{number:02}" for number in range(20)]
    assert content.statistics.images == 20
    # Every third image is watched: mean and variance per channel, by hand.
    pixels = np.array([(number, 9 * number, 250 - number) for number in range(0, 20, 3)]) / 255
    source = torch.tensor([0.3, 0.5, 0.2]).double(), torch.tensor([0.5, 0.02, 0.1]).double()
    target = torch.from_numpy(pixels.mean(axis=0)), torch.from_numpy(pixels.var(axis=0))
    assert content.provenance.norm_distance == pytest.approx(hellinger(*source, *target).mean().item(), rel=0.01)


def test_two_processes_have_one_network(torchrun: Torchrun, scene: Scene, normed: str, stats: Path) -> None:
    output = scene.root / "s.h5"
    done = torchrun("collect-stats", *scene.options("--norms", "target", model=normed), "--output", output)
    assert done.returncode == 0, done.stderr
    assert read_statistics(output).model == read_statistics(stats).model
    np.testing.assert_array_equal(counts(output), counts(stats))


def test_auto_mixes_norms_by_the_weight_that_it_finds(run: Run, refused: Refused, scene: Scene, normed: str) -> None:
    auto, given, source = (scene.root / f"{name}.h5" for name in ("auto", "given", "source"))
    options = scene.options(model=normed)
    said = run("collect-stats", *options, "--output", auto).stderr  # the default
    content = read_statistics(auto)
    assert isinstance(content.norms, MixedNorms)
    assert (content.norms.weight, content.norms.images) == (0.5, 6)
    assert content.model["norms"] == {"weight": 0.5}
    shared = content.norms.information  # by which it is chosen
    assert shared[0.5] > shared[1.0]
    assert f"weight 0.5: the classes of an image and of its smaller copy share {shared[0.5]:.3f} nats of" in said
    # What the network's own statistics are like is known all the same, and no sign of another domain any more.
    assert (content.provenance.norm_distance or 0.0) > SHIFTED
    assert not content.norms_shifted
    # Everything after uses it; so does a run that is told the weight, and a description that has it.
    run("align", *options, "--stats", auto, "--output", scene.root / "a", "--method", "none")
    run("collect-stats", *options, "--norms", "instance", "--norm-weight", 0.5, "--output", given)
    np.testing.assert_array_equal(counts(given), counts(auto))
    described = scene.root / "described.toml"
    described.write_text(Path(normed).read_text().replace("[segmenter]", "[segmenter]\nnorm_weight = 0.5"))
    run("align", *scene.options(model=str(described)), "--output", scene.root / "b", "--method", "none")
    np.testing.assert_array_equal(counts(scene.root / "b.h5"), counts(auto))
    changed, as_trained = 0, []
    for key in scene.keys:
        pixels = np.array(Image.open(scene.images / f"{key}.png")).astype(np.float64) / 255
        mean = 0.5 * (np.array([0.3, 0.5, 0.2]) + pixels.mean(axis=(0, 1)))
        norm = (pixels - mean) / np.sqrt(0.5 * (np.array([0.5, 0.02, 0.1]) + pixels.var(axis=(0, 1))) + 1e-5)
        segmenter = load_segmenter(parse_model(normed), torch.device("cpu"))
        with torch.no_grad():
            after = segmenter.module[1](torch.from_numpy(norm).permute(2, 0, 1)[None].float())  # type: ignore[index]
            before = segmenter.module(torch.from_numpy(pixels).permute(2, 0, 1)[None].float()).argmax(dim=1)[0].numpy()
        expected = after.argmax(dim=1)[0].numpy()
        for folder in ("a", "b"):
            np.testing.assert_array_equal(np.array(Image.open(scene.root / folder / "argmax" / f"{key}.png")), expected)
        changed += (expected != before).sum()
        as_trained.append(before.ravel())
    assert changed > 0
    share = changed / sum(map(len, as_trained))
    assert content.norms.changed[1.0] == 0
    assert content.norms.changed[0.5] == pytest.approx(share, abs=1e-3)
    assert f"as trained, {share:.0%} of the pixels change class (6 images)" in said
    # The report shows three steps: as it came, with norms, aligned.
    report = json.loads(
        run("report", "--stats", auto, "--aligned", scene.root / "a", "--json", "--output", scene.root / "r").stdout
    )
    came, mixed, aligned = report["steps"]
    assert (came, mixed, aligned) == ("as it came (6 images)", "with norms", "a")
    first = np.bincount(np.concatenate(as_trained), minlength=4) / sum(map(len, as_trained))
    np.testing.assert_allclose(report["steps"][came], first, atol=1e-3)
    np.testing.assert_allclose(report["steps"][mixed], [each["before"]["share"] for each in report["classes"]])
    assert any("batch norms: mixed with each image's own statistics, weight 0.5" in one for one in report["remarks"])
    page = (scene.root / "r" / "report.html").read_text()
    assert "Step by step" in page
    assert report["norms_changed"] == content.norms.changed[0.5]
    assert f"the norms change the class of {percent(report['norms_changed'])} of the pixels" in page
    assert report["first_scores"] == {}
    # With labels, it also shows scores of the first two steps; of a weight that is given, too.
    truth = np.concatenate([np.array(Image.open(scene.labels / f"{key}.png")).ravel() for key in scene.keys])
    for name, norms in (("auto", ["auto"]), ("instance", ["instance", "--norm-weight", 0.5])):
        labelled = ["--labels", scene.labels, "--norms", *norms, "--output", scene.root / f"labelled-{name}.h5"]
        run("collect-stats", *options, *labelled)
        report = json.loads(
            run("report", "--stats", labelled[-1], "--json", "--output", scene.root / f"r-{name}").stdout
        )
        assert list(report["steps"]) == ["as it came (6 images)", "with norms"]
        first, second = report["first_scores"].values()
        right = (np.concatenate(as_trained) == truth)[truth < 4].mean()
        assert first["pixel_accuracy"] == pytest.approx(right, abs=1e-4)
        assert second == pytest.approx(report["overall"]["before"])
    # Statistics of the network as it was trained are of another network, and say how to have them alike.
    run("collect-stats", *options, "--norms", "source", "--labels", scene.labels, "--output", source)
    arguments = ["align", *options, "--stats", auto, "--method", "supervised", "--labelled", source]
    message = refused(*arguments, "--output", scene.root / "c")
    assert "it differs in norms" in message
    assert f"collect it with --norms {auto}" in message
    for norms in (["--norms", "instance", "--norm-weight", "0.7"], ["--norms", "target"]):
        message = refused("align", *options, *norms, "--output", scene.root / "auto")
        assert f"auto.h5 is there, but was not collected with {norms[0]} {norms[1]}: --overwrite" in message
    message = refused("collect-stats", *options, "--norms", "target", "--norm-weight", 0.5, "--output", given, code=2)
    assert "--norm-weight is for --norms instance, not target" in message


def test_statistics_of_the_network_as_trained_point_to_mixed_norms(run: Run, scene: Scene, normed: str) -> None:
    source = scene.root / "source.h5"
    options = scene.options("--norms", "source", model=normed)
    hint = "statistics collected with --norms auto may bring more"
    assert hint in run("collect-stats", *options, "--output", source).stderr
    said = run("align", *scene.options(model=normed), "--stats", source, "--output", scene.root / "a").stderr
    assert hint not in said  # once is enough; the verdict names it as evidence
    assert said.count("batch norm statistics of these images differ from the network's") == 1
    step = json.loads(run("report", "--stats", source, "--json", "--output", scene.root / "r").stdout)["next_steps"][0]
    model = f"--model {normed} --images {scene.images} --device cpu"
    assert step["command"] == f"blda collect-stats {model} --norms auto --output auto-norms.h5"


def test_auto_leaves_a_network_in_domain_as_trained(run: Run, scene: Scene, normed: str) -> None:
    home, source = scene.root / "home.h5", scene.root / "source.h5"
    pixels = np.concatenate([np.array(Image.open(image)).reshape(-1, 3) for image in scene.images.rglob("*.png")]) / 255
    code = (scene.root / "normed.py").read_text()
    code = code.replace("[0.3, 0.5, 0.2]", str(pixels.mean(axis=0).tolist()))
    (scene.root / "normed.py").write_text(code.replace("[0.5, 0.02, 0.1]", str(pixels.var(axis=0).tolist())))
    said = run("collect-stats", *scene.options(model=normed), "--output", home).stderr
    assert "batch norms: as trained: " in said
    assert "no other weight is clearly ahead (6 images)" in said
    content = read_statistics(home)
    assert isinstance(content.norms, MixedNorms)
    assert content.norms.weight == 1
    assert not content.norms_shifted
    # It is the network as it was trained, so the two files go together.
    run("collect-stats", *scene.options("--norms", "source", model=normed), "--output", source)
    assert content.model == read_statistics(source).model
    np.testing.assert_array_equal(counts(home), counts(source))


def test_shards_and_processes_choose_one_weight(run: Run, torchrun: Torchrun, scene: Scene, normed: str) -> None:
    """All choose it on all images, whichever they count."""
    whole, both, merged = (scene.root / f"{name}.h5" for name in ("whole", "both", "merged"))
    parts = [scene.root / f"part{number}.h5" for number in (1, 2)]
    options = scene.options(model=normed)
    run("collect-stats", *options, "--output", whole)
    for number, path in enumerate(parts, 1):
        run("collect-stats", *options, "--shard", f"{number}/2", "--output", path)
    run("merge", *parts, "--output", merged)
    assert torchrun("collect-stats", *options, "--output", both).returncode == 0
    for path in (merged, both):
        np.testing.assert_array_equal(counts(path), counts(whole))
        assert read_statistics(path).norms == read_statistics(whole).norms


def test_models_that_cannot_or_need_not(run: Run, refused: Refused, scene: Scene, stats: Path) -> None:
    output = scene.root / "s.h5"
    said = run("collect-stats", *scene.options("--norms", "target"), "--output", output)
    assert "the network has no batch norms that could take the target's statistics\n" in said.stderr
    output.unlink()
    torch.jit.script(nn.Conv2d(3, 4, 1)).save(scene.root / "net.ts")
    for norms in ("target", str(stats)):
        message = refused(
            "collect-stats", *scene.options("--norms", norms, model=str(scene.root / "net.ts")), "--output", output
        )
        assert message.startswith("a model of kind torchscript cannot be trained, nor its norms changed")
    assert not list(scene.root.glob("s.h5*"))
    for norms in ("source", "auto"):
        arguments = scene.options("--norms", norms, model=str(scene.root / "net.ts"))
        run("collect-stats", *arguments, "--output", output, "--overwrite")


def test_strong_is_norms_views_and_a_strength_for_both_commands(
    run: Run, refused: Refused, scene: Scene, normed: str, tmp_path: Path
) -> None:
    options, strong = scene.options(model=normed), ["--preset", "strong"]
    said = run("collect-stats", *options, *strong, "--output", tmp_path / "s.h5").stderr
    assert "--preset strong: 10 views of each image, 11.2 times the pixels of one\n" in said
    content = read_statistics(tmp_path / "s.h5")
    assert (
        content.model["inference"] | {"scales": [0.5, 0.75, 1.0, 1.25, 1.5], "flip": True} == content.model["inference"]
    )
    assert isinstance(content.norms, MixedNorms)
    assert content.norms.weight == 0.7  # single views have 0.5
    run("align", *options, *strong, "--stats", tmp_path / "s.h5", "--output", tmp_path / "a")
    alone = run("align", *options, *strong, "--overlay", 1, "--output", tmp_path / "b")  # alone it does both
    assert "labels of a few images or training may bring more, the report says how:" in alone.stderr
    assert "with norms" in alone.stdout
    assert "of the pixels changed, the norms not counted; blda" in alone.stdout
    np.testing.assert_array_equal(counts(tmp_path / "b.h5"), counts(tmp_path / "s.h5"))
    message = refused("align", *options, "--stats", tmp_path / "s.h5", "--output", tmp_path / "c")
    assert "it differs in inference.scales" in message
    assert "give --preset strong as it was collected with, or --force" in message
    # Single options override it; what a network has no norms for is left out, and said to be.
    said = run("align", *scene.options("--scales", "1.0"), *strong, "--tau", 0.2, "--output", tmp_path / "d").stderr
    assert "2 views of each image, 2.0 times" in said
    assert "--preset strong: norms are left out, as the network has no batch norms" in said
    record = json.loads((tmp_path / "d" / "run.json").read_text())
    assert record["settings"]["tau"] == 0.2
    assert record["model"]["inference"]["flip"] is True


def test_strong_drops_enlarged_views_that_tell_less(
    run: Run, scene: Scene, normed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What collect-stats chose holds for all that uses its statistics; align alone chooses the same."""
    options, strong = scene.options(model=normed), ["--preset", "strong"]
    chosen: list[int] = []

    def telling(*_: object) -> tuple[float, ...]:
        chosen.append(1)
        return 0.5, 1.0

    monkeypatch.setattr(norm_choice, "_telling_scales", telling)
    said = run("collect-stats", *options, *strong, "--output", tmp_path / "s.h5").stderr
    assert "views: only the scales 0.5, 1 are averaged, as larger images tell less: 2.5 times the pixels of" in said
    content = read_statistics(tmp_path / "s.h5")
    assert isinstance(content.norms, MixedNorms)
    assert content.norms.scales == (0.5, 1.0)
    said = run("align", *options, *strong, "--stats", tmp_path / "s.h5", "--output", tmp_path / "a").stderr
    assert chosen == [1]
    assert "views: only" not in said
    assert "--preset strong: 4 views of each image, 2.5 times the pixels of one\n" in said
    run("align", *options, *strong, "--output", tmp_path / "b")
    for name in "ab":
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record["model"]["inference"]["scales"] == [0.5, 1.0]
    by_hand = ["--scales", "0.5,1.0", "--flip", "--norm-weight", content.norms.weight]
    run("collect-stats", *options, *by_hand, "--output", tmp_path / "hand.h5")
    for name in ("b", "hand"):
        np.testing.assert_array_equal(counts(tmp_path / f"{name}.h5"), counts(tmp_path / "s.h5"))
    # Scales that are given stay.
    run("collect-stats", *options, *strong, "--scales", "0.5,1.5", "--output", tmp_path / "given.h5")
    assert read_statistics(tmp_path / "given.h5").model["inference"]["scales"] == [0.5, 1.5]
    assert len(chosen) == 2
    # A file's norms come with their scales; a weight in a model's description leaves the scales to be chosen.
    further = tmp_path / "further.h5"
    run("collect-stats", *options, *strong, "--norms", tmp_path / "s.h5", "--output", further)
    assert len(chosen) == 2
    toml = Path(normed)
    toml.write_text(toml.read_text().replace("[segmenter]", "[segmenter]\nnorm_weight = 0.6"))
    run("collect-stats", *options, *strong, "--output", tmp_path / "described.h5")
    assert len(chosen) == 3
    for path, weight in ((further, content.norms.weight), (tmp_path / "described.h5", 0.6)):
        other = read_statistics(path)
        assert isinstance(other.norms, MixedNorms)
        assert (other.norms.weight, other.norms.scales) == (weight, (0.5, 1.0))
        assert other.model["inference"]["scales"] == [0.5, 1.0]


def test_a_network_that_mixes_its_norms_is_trained_labels_and_is_written(
    run: Run, scene: Scene, normed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed_with: list[float] = []

    class Noted(InstanceNorms):
        def __init__(self, network: nn.Module, weight: float) -> None:
            super().__init__(network, weight)
            mixed_with.append(weight)

    monkeypatch.setattr("blda_cli.finetuning.trainer.InstanceNorms", Noted)
    run(
        *("finetune", "--model", normed, "--method", "dacs", "--iterations", 2, "--crop", 32, "--batch-size", 1),
        *("--source-images", scene.root / "images", "--source-labels", scene.root / "labels"),
        *("--target-images", scene.root / "images", "--output", tmp_path / "run", "--learning-rate", "1e-9"),
        *("--norm-weight", 0.5),
    )
    assert mixed_with == [0.5] * 3  # the student, and the teacher in both steps
    described = tomllib.loads((tmp_path / "run" / "model.toml").read_text())["segmenter"]
    assert described["norm_weight"] == 0.5
    assert not described.get("adapted_norms", False)
    # What is written is the network with the weight, and every command runs it so.
    assert read_statistics(tmp_path / "run" / "statistics.h5").model["norms"] == {"weight": 0.5}
    options = ["--model", tmp_path / "run" / "model.toml", "--images", scene.images, "--device", "cpu"]
    run("collect-stats", *options, "--output", tmp_path / "s.h5")
    assert read_statistics(tmp_path / "s.h5").norms == MixedNorms(0.5)


@pytest.mark.parametrize("adapted", [True, False])
def test_norms_that_training_adapted_are_no_sign_of_another_domain(
    run: Run, scene: Scene, normed: str, tmp_path: Path, adapted: bool
) -> None:
    run(
        *("finetune", "--model", normed, "--method", "source", "--iterations", 1, "--crop", 32, "--batch-size", 1),
        *("--source-images", scene.root / "images", "--source-labels", scene.root / "labels"),
        *("--target-images", scene.root / "images", "--output", tmp_path / "run", "--learning-rate", "1e-9"),
        *(("--norms", "batch") if adapted else ("--norms", "source", "--no-target-norms")),
    )
    model = tmp_path / "run" / "model.toml"
    assert tomllib.loads(model.read_text())["segmenter"].get("adapted_norms", False) is adapted
    run("collect-stats", *scene.options("--norms", "source", model=str(model)), "--output", tmp_path / "s.h5")
    assert read_statistics(tmp_path / "s.h5").norms_shifted is not adapted


def test_a_remark_is_made_once(run: Run, scene: Scene, normed: str) -> None:
    (scene.images / "notes.txt").write_text("")
    parts, stats = [scene.root / "1.h5", scene.root / "2.h5"], scene.root / "s.h5"
    options = scene.options("--norms", "instance", model=normed)
    mixed, left_out = "batch norms: mixed with each image", "left out, as no images"
    for number, part in enumerate(parts, start=1):
        said = run("collect-stats", *options, "--shard", f"{number}/2", "--output", part).stderr
        assert mixed in said
    run("merge", *parts, "--output", stats)
    options = scene.options(model=normed)
    for given in (parts[0], stats):
        said = run("align", *options, "--stats", given, "--output", scene.root / "a", "--overwrite").stderr
        assert mixed not in said
        assert left_out not in said
        arguments = ["--stats", given, "--aligned", scene.root / "a", "--output", scene.root / "r", "--overwrite"]
        assert mixed not in run("report", *arguments).output
        assert mixed in (scene.root / "r" / "report.html").read_text()
        said = run(
            "export", *options, "--stats", given, "--format", "pt2", "--output", scene.root / "e", "--overwrite"
        ).stderr
        assert mixed not in said
    said = run("align", *options, "--norms", "instance", "--output", scene.root / "own").stderr
    assert mixed in said
    (scene.images / "more.txt").write_text("")
    said = run("align", *options, "--stats", stats, "--output", scene.root / "b").stderr
    assert "2 files" in said  # a remark that was not made then
