"""The factories of segmentation_models_pytorch and torchvision, with the commands of docs/models.md."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from blda_cli.commands import cli
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.spec import parse_model
from blda_cli.store.statistics import read_statistics
from tests.pages import ROOT, commands

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def library(name: str) -> Any:
    """A library, if it is installed and works with the installed torch."""
    try:
        return pytest.importorskip(name)
    except RuntimeError as error:  # built for another torch
        pytest.skip(f"{name}: {error}")


def recipe(title: str) -> list[str]:
    """The words of the command under a heading."""
    found = re.search(rf"^### {title}\n.*?\n((?:    [^\n]*\n)+)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    (line,) = commands(re.sub("^    ", "", found[1], flags=re.MULTILINE))
    return shlex.split(line)[1:]


@pytest.fixture
def frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two frames of odd sizes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").mkdir()
    generator = np.random.default_rng(0)
    for number in range(2):
        pixels = generator.integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "frames" / f"{number}.png")
    return tmp_path


def run(words: list[str]) -> None:
    done = CliRunner().invoke(cli, [*words, "--device", "cpu"])
    assert done.exit_code == 0, done.output


def test_segmentation_models_pytorch(frames: Path) -> None:
    smp = library("segmentation_models_pytorch")
    network = smp.Unet("resnet18", encoder_weights=None, classes=19).eval()
    torch.save(network.state_dict(), "unet.pth")
    run([*recipe("segmentation_models_pytorch"), "--no-check", "--norms", "source"])
    assert read_statistics(Path("frames.h5")).statistics.pixels == 2 * 70 * 90
    segmenter = load_segmenter(parse_model("unet.toml"), torch.device("cpu"))
    images = torch.rand(1, 3, 64, 64)
    assert segmenter.module is not None
    torch.testing.assert_close(segmenter.module(images), network(images))
    run(["align", "--model", "unet.toml", "--images", "frames", "--stats", "frames.h5", "--output", "aligned"])
    assert np.array(Image.open(frames / "aligned" / "predictions" / "0.png")).shape == (70, 90)


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "lraspp_mobilenet_v3_large"])
def test_torchvision(frames: Path, name: str) -> None:
    models = library("torchvision").models.segmentation
    extra = {"aux_loss": True} if "deeplab" in name else {}
    network = getattr(models, name)(weights_backbone=None, num_classes=21, **extra).eval()
    torch.save(network.state_dict(), "deeplab.pth")
    words = [word.replace("deeplabv3_resnet50", name) for word in recipe("torchvision")]
    words = words if extra else [word.replace(", aux_loss = true", "") for word in words]
    run([*words, "--no-check", "--norms", "source"])
    assert read_statistics(Path("frames.h5")).statistics.pixels == 2 * 70 * 90
    segmenter = load_segmenter(parse_model("deeplab.toml"), torch.device("cpu"))
    images = torch.rand(1, 3, 64, 64)
    assert segmenter.module is not None
    torch.testing.assert_close(segmenter.module(images)["out"], network(images)["out"])


def test_none_as_an_argument(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n"
        "def make(pretrained='imagenet', head='conv'):\n"
        "    assert (pretrained, head) == (None, 'none')\n"
        "    return nn.Conv2d(3, 2, 1)\n"
    )
    (tmp_path / "net.toml").write_text(
        '[segmenter]\nkind = "python"\nfactory = "net:make"\narguments = {pretrained = "None", head = "none"}\n'
        '[classes]\nnames = ["a", "b"]\n'
    )
    assert load_segmenter(parse_model(str(tmp_path / "net.toml")), torch.device("cpu")).module is not None
