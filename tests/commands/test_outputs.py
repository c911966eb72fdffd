"""What `blda align` writes beside the predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from tests.commands.conftest import Run, Scene


@pytest.fixture
def stats(run: Run, scene: Scene, tmp_path: Path) -> Path:
    run("collect-stats", *scene.options(), "--labels", scene.labels, "--output", tmp_path / "s.h5")
    return tmp_path / "s.h5"


def test_confidence_is_the_winning_score(run: Run, scene: Scene, stats: Path, tmp_path: Path) -> None:
    output = tmp_path / "aligned"
    run("align", *scene.options(), "--stats", stats, "--output", output, "--confidence", "--save-scores")
    for key in scene.keys:
        with h5py.File(output / "scores" / f"{key}.h5") as file:
            winning = np.exp(file["scores"][()].astype(np.float64)).max(axis=0)
        confidence = np.asarray(Image.open(output / "confidence" / f"{key}.png"))
        assert confidence.dtype == np.uint8
        np.testing.assert_allclose(confidence, 255 * winning, atol=0.7)  # half precision, and rounding
        assert np.ptp(confidence) > 30


def test_what_is_not_sure_is_rejected(run: Run, scene: Scene, stats: Path, tmp_path: Path) -> None:
    options = [*scene.options(), "--stats", stats, "--tau", "0.5"]
    run("align", *options, "--output", tmp_path / "all", "--confidence")
    run("align", *options, "--output", tmp_path / "sure", "--reject", "0.7")
    rejected = 0
    for key in scene.keys:
        whole, sure = (
            np.asarray(Image.open(tmp_path / name / "predictions" / f"{key}.png")) for name in ("all", "sure")
        )
        confidence = np.asarray(Image.open(tmp_path / "all" / "confidence" / f"{key}.png")) / 255
        clear = np.abs(confidence - 0.7) > 0.003
        np.testing.assert_array_equal(sure[clear], np.where(confidence >= 0.7, whole, 255)[clear])
        rejected += int((sure == 255).sum())
        before = np.asarray(Image.open(tmp_path / "sure" / "argmax" / f"{key}.png"))
        assert before.max() < 4
    record = json.loads((tmp_path / "sure" / "run.json").read_text())
    pixels = sum(np.asarray(Image.open(scene.labels / f"{key}.png")).size for key in scene.keys)
    assert record["pixels_rejected"] == rejected > 0
    assert sum(record["pixels_before"]) == sum(record["pixels_after"]) == pixels - rejected
    report = ["report", "--stats", stats, "--aligned", tmp_path / "sure", "--labels", scene.labels]
    run(*report, "--output", tmp_path / "report")
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert any("rejects" in remark for remark in content["remarks"])
    void = len(scene.keys) * 2  # labels without a class
    assert pixels - rejected - void <= np.sum(content["confusion"]["runs"]["sure"]) <= pixels - rejected


def test_an_interrupted_run_keeps_what_it_rejects(
    run: Run, refused: Callable[..., str], scene: Scene, stats: Path, tmp_path: Path
) -> None:
    options = [*scene.options(), "--stats", stats, "--output", tmp_path / "a", "--batch-size", "1", "--workers", "1"]
    bad = scene.images / f"{scene.keys[4]}.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:50])
    refused("align", *options, "--reject", "0.7")
    bad.write_bytes(whole)
    assert "differs in settings.reject" in refused("align", *options, "--reject", "0.6")
    run("align", *options, "--reject", "0.7")


def test_overlays(run: Run, scene: Scene, stats: Path, tmp_path: Path) -> None:
    options = [*scene.options(), "--stats", stats, "--tau", "0.5"]
    run("align", *options, "--output", tmp_path / "two", "--overlay", "2")
    assert len(list((tmp_path / "two" / "overlays").rglob("*.jpg"))) == 2
    run("align", *options, "--output", tmp_path / "all", "--overlay", "all")
    for key in scene.keys:
        picture = Image.open(tmp_path / "all" / "overlays" / f"{key}.jpg")
        width, height = Image.open(scene.images / f"{key}.png").size
        assert picture.width > 2 * width
        assert picture.height > height + 20


def test_an_overlay_shows_both_predictions() -> None:
    from blda_cli.data.classes import class_set
    from blda_cli.reporting.overlays import overlay

    classes = class_set(["red", "green"], [(255, 0, 0), (0, 255, 0)])
    picture = np.full((100, 200, 3), 128, np.uint8)
    before, after = np.zeros((100, 200), np.int64), np.ones((100, 200), np.int64)
    after[:, :50] = -1
    shown = np.asarray(overlay(picture, before, after, classes, ("argmax", "aligned"))).astype(int)
    top = (shown.shape[0] - 100) // 2
    left, right = shown[top : top + 60, 20:180], shown[top : top + 60, -120:-20]
    assert (left[..., 0] > left[..., 1] + 80).all()
    assert (right[..., 1] > right[..., 0] + 80).all()
    np.testing.assert_array_equal(shown[top : top + 60, -195:-155], 128)  # rejected: the image itself
    tall = np.zeros((3000, 10), np.int64)
    assert overlay(np.zeros((3000, 10, 3), np.uint8), tall, tall, classes, ("one", "other")).height < 1400


def test_a_video_of_the_predictions(
    run: Run, refused: Callable[..., str], scene: Scene, stats: Path, tmp_path: Path
) -> None:
    av = pytest.importorskip("av", reason="the extra video is not installed")
    options = [*scene.options(), "--stats", stats, "--output", tmp_path / "aligned"]
    run("align", *options, "--video", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].average_rate == 10
    assert len(frames) == len(scene.keys)


def test_reject_needs_a_share(refused: Callable[..., str], scene: Scene, stats: Path, tmp_path: Path) -> None:
    options = [*scene.options(), "--stats", stats, "--output", tmp_path / "a"]
    assert "1.5" in refused("align", *options, "--reject", "1.5", code=2)
    assert "all or a number" in refused("align", *options, "--overlay", "none", code=2)


@pytest.mark.parametrize("tool", ["cvat", "coco", "labelme"])
def test_annotations_there_and_back(run: Run, scene: Scene, stats: Path, tmp_path: Path, tool: str) -> None:
    """What is written for a tool is read as labels, and says what the predictions say."""
    options = [*scene.options(), "--stats", stats, "--output", tmp_path / "aligned", "--annotations", tool]
    run("align", *options)
    source = tmp_path / "aligned" / "annotations"
    if tool == "coco":
        source = source / "instances.json"
    run("collect-stats", *scene.options(), "--labels", source, "--output", tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5") as file:
        counted = file["confusion"][()].sum(axis=1)
    record = json.loads((tmp_path / "aligned" / "run.json").read_text())
    assert counted.tolist() == record["pixels_after"]
    run(
        "report",
        "--stats",
        stats,
        "--aligned",
        tmp_path / "aligned",
        "--labels",
        source,
        "--output",
        tmp_path / "report",
    )
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    confusion = np.array(content["confusion"]["runs"]["aligned"])
    assert np.trace(confusion) == confusion.sum() == sum(record["pixels_after"])
