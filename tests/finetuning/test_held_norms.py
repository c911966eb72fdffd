"""Whether averages of batch norms are kept in training, as told by what source crops cost before it."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blda_cli.core.norms import MixedNorms
from blda_cli.data.images import find_images
from blda_cli.data.labels import label_reader
from blda_cli.errors import BldaError
from blda_cli.finetuning.data.labelled import Labelled, without_labels
from blda_cli.finetuning.networks.norms import mixed_norms, prepare_norms, synchronised
from blda_cli.finetuning.settings import Settings
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model

NETWORK = """
import torch
from torch import nn


class Pooled(nn.Sequential):
    # Normalises the image's mean, too, of which a single image has but one.
    def forward(self, images):
        mean = self[0](images.mean(dim=(2, 3), keepdim=True))
        return self[1](self[0](images)) + 0 * mean[:, :1]


def pooled():
    return Pooled(*make())


def plain():
    return make()[1]


def make():
    norm, bright = nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(0.1)
    with torch.no_grad():
        bright.weight.copy_(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))
        bright.bias.zero_()
    return nn.Sequential(norm, bright)
"""
TOML = '[segmenter]\nkind = "python"\nfactory = "brightnet:make"\n\n[classes]\nnames = ["dark", "bright"]\n'
SIZE = 20, 24


@pytest.fixture(params=["alike", "of one class each"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Dark and bright halves, or dark images and bright ones, whose own averages tell nothing of which they are."""
    generator = np.random.default_rng(0)
    for number in range(7):
        labels = np.zeros(SIZE, np.uint8)
        if request.param == "alike":
            labels[:, SIZE[1] // 2 :] = 1
        else:
            labels[:] = number % 2
        pixels = np.where(labels == 1, 215, 40)[..., None] + generator.normal(0, 8, (*SIZE, 3))
        for kind, values in (("images", pixels), ("labels", labels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / kind / f"{number}.png")
    (tmp_path / "brightnet.py").write_text(NETWORK)
    (tmp_path / "net.toml").write_text(TOML)
    return str(request.param)


def prepared(folder: Path, norms: str, batch_size: int = 1) -> tuple[bool, NetworkSegmenter]:
    segmenter = load_segmenter(parse_model(str(folder / "net.toml")), torch.device("cpu"))
    assert isinstance(segmenter, NetworkSegmenter)
    files = find_images(folder / "images")
    labels = label_reader(files, str(folder / "labels"), segmenter.classes, encoding="ids")
    values = {"training.norms": norms, "training.crop": (16, 16), "training.batch_size": batch_size}
    settings = Settings().with_values(values, "test")
    return prepare_norms(segmenter, settings, Labelled(files, labels), files, SilentMonitor()) != "batch", segmenter


def test_averages_are_kept_where_those_of_crops_cost_much(images: str, tmp_path: Path) -> None:
    holds, segmenter = prepared(tmp_path, "auto")
    assert holds == (images == "of one class each")
    assert ("norms" in segmenter.identity) == holds
    assert any("statistics of 7 target images" in note for note in segmenter.notes) == holds
    mean = segmenter.module.state_dict()["0.running_mean"]
    assert bool((mean == 0.5).all()) != holds


def test_larger_batches_cost_less(images: str, tmp_path: Path) -> None:
    """The seven images together have the averages that would be kept."""
    assert not prepared(tmp_path, "auto", batch_size=7)[0]


def test_averages_are_kept_where_a_network_fails_by_the_batch(images: str, tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(TOML.replace("brightnet:make", "brightnet:pooled"))
    assert prepared(tmp_path, "auto")[0]
    assert not prepared(tmp_path, "auto", batch_size=7)[0]


def test_one_process_that_finds_harm_decides_for_all(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GPUs that round differently, processes may find different costs on the same crops."""
    alone, _ = prepared(tmp_path, "auto")
    found = []

    def maximum(own: torch.Tensor) -> torch.Tensor:
        found.append(bool(own))
        return torch.ones_like(own)

    monkeypatch.setattr("blda_cli.finetuning.networks.norms.all_maximum", maximum)
    assert prepared(tmp_path, "auto")[0]
    assert found == [alone]


@pytest.mark.parametrize(("norms", "told"), [("auto", True), ("batch", True), ("target", False), ("source", False)])
def test_processes_without_cuda_are_told_that_each_has_its_own_norms(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norms: str, told: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr(SilentMonitor, "say", lambda _, line: said.append(line))
    prepared(tmp_path, norms)
    assert not any("number of processes" in line for line in said)
    monkeypatch.setenv("WORLD_SIZE", "2")
    prepared(tmp_path, norms)
    assert any("number of processes" in line for line in said) == told


def mixed(folder: Path, monkeypatch: pytest.MonkeyPatch, described: float | None = None, **given: Any) -> Any:
    """Norms and weight of a run's settings, where 0.7 is found without labels."""
    found = lambda *_, **__: MixedNorms(0.7)  # noqa: E731
    monkeypatch.setattr("blda_cli.finetuning.networks.norms.choose_weight", found)
    segmenter = load_segmenter(parse_model(str(folder / "net.toml")), torch.device("cpu"))
    assert isinstance(segmenter, NetworkSegmenter)
    settings = Settings().with_values({f"training.{name}": value for name, value in given.items()}, "test")
    chosen, mix = mixed_norms(segmenter, settings, described, find_images(folder / "images"), SilentMonitor())
    if chosen.training.norms == "instance":
        assert mix is not None
        assert mix.weight == chosen.training.norm_weight
    return chosen.training.norms, chosen.training.norm_weight


@pytest.mark.parametrize("images", ["alike"], indirect=True)
def test_the_weight_of_mixed_norms(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mixed(tmp_path, monkeypatch) == ("instance", 0.7)
    assert mixed(tmp_path, monkeypatch, norms="instance") == ("instance", 0.7)
    assert mixed(tmp_path, monkeypatch, 0.6) == ("instance", 0.6)
    assert mixed(tmp_path, monkeypatch, 0.6, norm_weight=0.8) == ("instance", 0.8)
    assert mixed(tmp_path, monkeypatch, norm_weight=1.0) == ("auto", 1.0)
    for norms in ("batch", "target", "source"):
        assert mixed(tmp_path, monkeypatch, 0.6, norms=norms) == (norms, None)
        with pytest.raises(BldaError, match=f"--norm-weight is for --norms instance, not {norms}"):
            mixed(tmp_path, monkeypatch, norms=norms, norm_weight=0.8)


@pytest.mark.parametrize("images", ["alike"], indirect=True)
def test_norms_that_cannot_be_mixed(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.toml").write_text(TOML.replace("[segmenter]", "[segmenter]\nadapted_norms = true"))
    assert mixed(tmp_path, monkeypatch) == ("auto", None)
    (tmp_path / "net.toml").write_text(TOML.replace("brightnet:make", "brightnet:plain"))
    assert mixed(tmp_path, monkeypatch, 0.6) == ("auto", None)
    settings = Settings().with_values({"training.norm_weight": 0.8, "training.norms": "instance"}, "test")
    segmenter = load_segmenter(parse_model(str(tmp_path / "net.toml")), torch.device("cpu"))
    assert isinstance(segmenter, NetworkSegmenter)
    files = find_images(tmp_path / "images")
    with pytest.raises(BldaError, match="no batch norms whose statistics could be mixed"):
        prepare_norms(segmenter, settings, without_labels(files), files, SilentMonitor())


def test_a_choice_needs_no_look(images: str, tmp_path: Path) -> None:
    for norms, holds, changed in (("batch", False, False), ("source", True, False), ("target", True, True)):
        held, segmenter = prepared(tmp_path, norms)
        assert held == holds
        assert ("norms" in segmenter.identity) == changed


class NormAndActivation(nn.BatchNorm2d):
    """As in timm: a batch norm whose forward also activates."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).relu()


def test_batch_norms_are_synchronised_but_for_those_that_also_activate() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.GroupNorm(2, 4))
    network.get_buffer("0.running_mean").fill_(0.5)
    converted = synchronised(network)
    assert [type(layer) for layer in converted.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)] == [
        nn.SyncBatchNorm
    ] * 2
    assert converted.get_buffer("0.running_mean").tolist() == [0.5] * 3
    assert synchronised(converted).get_submodule("0") is converted.get_submodule("0")
    with pytest.raises(BldaError, match=r"body\.1, a NormAndActivation, does more .* --norms target"):
        synchronised(nn.Sequential(OrderedDict(body=nn.Sequential(nn.Conv2d(3, 4, 1), NormAndActivation(4)))))
