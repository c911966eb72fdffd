"""Passes replayed as CUDA graphs against ordinary ones, on a CUDA device."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blda_cli.data.images import find_images
from blda_cli.segmenters.graphed_passes import GraphedPasses
from blda_cli.segmenters.network import NetworkSegmenter, network_segmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import NetworkSection, PreprocessingSection, SegmenterSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GPU = torch.device("cuda")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(16)
        norm.running_mean, norm.running_var = torch.rand(16), torch.rand(16) + 0.5
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), norm, nn.ReLU(), nn.Conv2d(16, 5, 3, 1, 1))
        self.calls = [0]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.calls[0] += 1
        scores: Tensor = self.layers(images)
        return scores


class Waits(Network):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (2.0 if float(images.mean()) > 0 else 1.0)


class BringsNumbers(Network):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * torch.tensor([1.5], device=images.device)


class Draws(Network):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 0 * torch.rand(1, device=images.device)


def inputs(count: int, size: tuple[int, int] = (64, 96)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, *size, generator=generator).to(GPU) for _ in range(count)]


@pytest.mark.parametrize("amp", [False, True])
def test_replays_give_what_ordinary_passes_give(amp: bool) -> None:
    network, passes = Network().to(GPU), GraphedPasses()
    twin = copy.deepcopy(network)
    results, expected = [], []
    for pair in zip(inputs(10), inputs(10, (96, 64)), strict=True):
        with torch.no_grad(), torch.autocast("cuda", torch.float16, enabled=amp):
            for images in pair:
                results.append(passes(network, images, network))
                expected.append(twin(images))
        for one in (network, twin):  # in place: a graph sees it
            one.layers[1].running_mean.mul_(1.01)  # type: ignore[operator]
    assert passes.refused is None
    assert network.calls[0] == 2 * (2 + 1 + 2)
    for one_result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one_result, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "why"), [(Waits, "waits"), (BringsNumbers, "brings"), (Draws, "random")])
def test_what_a_graph_does_not_replay_is_found_before_it_is_captured(kind: type[Network], why: str) -> None:
    network, passes = kind().to(GPU), GraphedPasses()
    with torch.no_grad():
        for images in inputs(6):
            torch.testing.assert_close(passes(network, images, network), network(images))
    assert why in str(passes.refused)
    assert network.calls[0] == 12


def segmenter() -> NetworkSegmenter:
    spec = SegmenterSpec(NetworkSection("python"), PreprocessingSection(multiple_of=32))
    return network_segmenter(spec, Network().to(GPU), GPU, {"kind": "python"})


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize(
    "options",
    [
        InferenceOptions(),
        InferenceOptions(amp=True),
        InferenceOptions(scales=(0.5, 1.0, 1.5), flip=True),
        InferenceOptions(slide=(32, 32), stride=(16, 16)),
    ],
)
def test_a_pass_over_images_gives_what_it_gives_without_graphs(
    tmp_path: Path, options: InferenceOptions, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    for number in range(18):
        pixels = generator.integers(10 * number, 10 * number + 60, (50, 70, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    found = []
    for graphs in ("", "off"):
        monkeypatch.setenv("BLDA_GRAPHS", graphs)
        made = segmenter()
        made.mix_norms(weight)
        logits = []
        for batch in made.stream(find_images(tmp_path), options, ahead=True):
            with batch.aside():
                logits.append(batch.logits.cpu())
        found.append(logits)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)


def test_memory_is_given_back() -> None:
    made = segmenter()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with made.repeating(), torch.no_grad():
        for images in inputs(8, (1024, 1024)):
            made.logits(images.mul(30).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
        assert made._graphed is not None
        assert made._graphed._graphs == 1
        del images
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before <= 1 << 27  # one pass takes twice that
