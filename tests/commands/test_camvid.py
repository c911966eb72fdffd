"""The commands on real frames: ESPNet, trained on Cityscapes, on CamVid at dusk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from blda_cli.core.confusion import ConfusionMatrix

if TYPE_CHECKING:
    from tests.commands.conftest import Run

MODEL = Path(__file__).parents[2] / "examples" / "espnet" / "espnet.toml"


@pytest.fixture
def options(shared_data: Path) -> list[Any]:
    weights = shared_data / "weights" / "espnet_cityscapes_p2_q8.pth"
    return ["--model", MODEL, "--weights", weights, "--device", "cpu"]


def scored(predictions: Path, labels: Path) -> tuple[float, float]:
    """Mean IoU and mean accuracy in %, pooled over the pixels of all pictures."""
    matrix = ConfusionMatrix(11)
    for path in sorted(predictions.rglob("*.png")):
        label = np.array(Image.open(labels / path.name))
        label[label == 11] = 255
        matrix.update(torch.from_numpy(label), torch.from_numpy(np.array(Image.open(path))))
    return 100 * matrix.mean_iou(), 100 * matrix.mean_accuracy()


def test_a_few_frames(run: Run, options: list[Any], shared_data: Path, tmp_path: Path) -> None:
    dusk = shared_data / "camvid" / "dusk"
    frames = sorted((dusk / "images").glob("*.png"))[::16]
    (tmp_path / "frames.txt").write_text("\n".join(map(str, frames)))
    options += ["--images", tmp_path / "frames.txt"]
    stats, output = tmp_path / "dusk.h5", tmp_path / "aligned"
    counted = ["--labels", dusk / "labels", "--bins", 256, "--norms", "source"]  # as trained
    run("collect-stats", *options, *counted, "--output", stats)
    with h5py.File(stats) as file:
        assert list(file.attrs["classes"])[:3] == ["sky", "building", "pole"]
        assert file["cells/pseudo/counts"].shape == (11, 11, 256)
        assert file.attrs["pixels"] == len(frames) * 480 * 360
        assert 0 < file["confusion"][()].sum() < file.attrs["pixels"]
    run("align", *options, "--stats", stats, "--output", output)
    assert json.loads((output / "run.json").read_text())["pixels_changed"] > 0
    before, after = (scored(output / kind, dusk / "labels") for kind in ("argmax", "predictions"))
    assert after[0] > before[0] + 2
    assert after[1] > before[1] + 5


@pytest.mark.slow
def test_plain_commands_mix_the_norms_first(run: Run, options: list[Any], shared_data: Path, tmp_path: Path) -> None:
    dusk = shared_data / "camvid" / "dusk"
    (tmp_path / "frames.txt").write_text("\n".join(map(str, sorted((dusk / "images").glob("*.png"))[::8])))
    options += ["--images", tmp_path / "frames.txt"]
    run("align", *options, "--output", tmp_path / "plain")
    before, after = (scored(tmp_path / "plain" / kind, dusk / "labels") for kind in ("argmax", "predictions"))
    assert before[0] > 33  # as trained 18
    assert before[1] > 45  # 29
    assert after[0] > before[0] - 0.5


@pytest.fixture(scope="module")
def aligned(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Aligns all 62 frames with some options and statistics that need no labels; gives the folder."""
    from click.testing import CliRunner

    from blda_cli.commands import cli

    folder = tmp_path_factory.mktemp("dusk")
    images, weights = shared_data / "camvid/dusk/images", shared_data / "weights/espnet_cityscapes_p2_q8.pth"
    options = ["--model", MODEL, "--weights", weights, "--images", images, "--device", "cpu", "--quiet"]

    def invoke(*arguments: Any) -> None:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output

    invoke("collect-stats", *options, "--norms", "source", "--output", folder / "dusk.h5")

    def align(name: str, *how: str) -> Path:
        invoke("align", *options, "--stats", folder / "dusk.h5", "--output", folder / name, *how)
        return folder / name

    return align


@pytest.mark.slow
def test_all_frames(aligned: Callable[..., Path], shared_data: Path) -> None:
    labels = shared_data / "camvid" / "dusk" / "labels"
    published = aligned("published", "--shift", "quantile", "--label-source", "pseudo", "--tau", "1")
    argmax = scored(published / "argmax", labels)
    assert argmax[0] == pytest.approx(17.8, abs=1)
    assert argmax[1] == pytest.approx(27.6, abs=1)
    for value, before in zip(scored(published / "predictions", labels), argmax, strict=True):
        assert value >= before + 2
    mean_iou, mean_accuracy = scored(aligned("default") / "predictions", labels)
    assert mean_iou >= argmax[0] + 4
    assert mean_accuracy >= argmax[1] + 6
    mean_iou, mean_accuracy = scored(aligned("full", "--shift", "two-pass", "--tau", "1") / "predictions", labels)
    assert mean_iou >= 25.0
    assert mean_accuracy >= 44.5
