"""``Alignment.module``: the network with the correction in it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blda_cli
from blda_cli.core.choices import LogitSpace
from blda_cli.core.corrections import (
    Correction,
    LinearCorrection,
    LocationCorrection,
    OffsetCorrection,
    QuantileCorrection,
    SpatialCorrection,
)
from blda_cli.core.norms import MixedNorms, Norms
from blda_cli.segmenters.outputs import find_scores, log_probabilities
from tests.export.networks import Pooled, randomised

Networks = Callable[[str], nn.Module]
OFFSETS = OffsetCorrection(torch.tensor([0.7, -1.3, 0.0, 1.5, -0.4]))
torch.manual_seed(0)
OTHERS: dict[str, Correction] = {
    "location": LocationCorrection(torch.randn(5, 5)),
    "location, far apart": LocationCorrection(torch.randn(5, 5) * 60),
    "quantile": QuantileCorrection(torch.randn(5, 5, 16).cumsum(dim=2), 4.0, LogitSpace.RAW),
    "quantile, centred": QuantileCorrection(torch.randn(5, 5, 16).cumsum(dim=2), 4.0, LogitSpace.CENTRED),
    "linear": LinearCorrection(torch.randn(5, 5) / 3, torch.randn(5)),
    "spatial": SpatialCorrection(torch.randn(5), torch.rand(5, 3, 4), 0.8),
    "spatial without strength": SpatialCorrection(torch.randn(5), torch.zeros(5, 3, 4), 0.0),
}


def alignment(correction: Correction, norms: Norms | MixedNorms | None = None) -> blda_cli.Alignment:
    from blda_cli.core.methods import chosen_settings
    from blda_cli.data.classes import numbered_classes

    return blda_cli.Alignment(chosen_settings({"tau": 1.0}), numbered_classes(5), correction, norms)


def predictions(scores: Any) -> Tensor:
    return find_scores(scores).argmax(dim=1)


@pytest.mark.parametrize(
    "name", ["bias", "no bias", "upsampled", "transposed", "normed", "two heads", "half the sum", "classifier"]
)
def test_an_offset_per_class_costs_no_module(networks: Networks, name: str) -> None:
    network, images = networks(name), torch.rand(2, 3, 64, 48)
    before = copy.deepcopy(network.state_dict())
    corrected = alignment(OFFSETS).module(network)
    assert type(corrected) is type(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        output, found = network(images), corrected(images)
    expected = alignment(OFFSETS).predict(find_scores(output))
    assert torch.equal(predictions(found), expected)
    assert not torch.equal(predictions(output), expected)
    if name == "two heads":
        assert torch.equal(found["aux"], output["aux"])


def test_offsets_are_added_where_no_layer_can_take_them(headed: Callable[..., nn.Module]) -> None:
    network = headed(nn.Conv2d(8, 5, 1), lambda scores: scores.clamp(-3, 3))
    images = torch.rand(2, 3, 64, 48)
    corrected = alignment(OFFSETS).module(network)
    assert isinstance(corrected.network, type(network))
    with torch.no_grad():
        torch.testing.assert_close(corrected(images), network(images) + OFFSETS.offsets.view(1, 5, 1, 1))


@pytest.mark.parametrize("name", OTHERS)
def test_other_corrections_work_on_scores_of_the_images_size(networks: Networks, name: str) -> None:
    network, images = networks("two heads"), torch.rand(2, 3, 64, 48)
    corrected = alignment(OTHERS[name]).module(network)
    with torch.no_grad():
        output, logits = corrected(images), F.interpolate(network(images)["out"], (64, 48), mode="bilinear")
    found = F.interpolate(output["out"], (64, 48), mode="bilinear")
    assert bool(torch.isfinite(found).all())
    expected = alignment(OTHERS[name]).predict(logits)
    assert float((predictions(found) == expected).double().mean()) > 0.9999
    assert not torch.equal(logits.argmax(dim=1), expected)


@pytest.mark.parametrize("name", ["offsets", "location"])
def test_probabilities_are_corrected_as_their_logarithms(headed: Callable[..., nn.Module], name: str) -> None:
    correction = {"offsets": OFFSETS, **OTHERS}[name]
    network = headed(nn.Conv2d(8, 5, 1), lambda scores: scores.softmax(dim=1))
    images = torch.rand(2, 3, 64, 48)
    corrected = alignment(correction).module(network, probabilities=True)
    with torch.no_grad():
        resized = F.interpolate(network(images), (64, 48), mode="bilinear")
        found = F.interpolate(corrected(images), (64, 48), mode="bilinear")
    assert torch.equal(predictions(found), alignment(correction).predict(log_probabilities(resized)))
    if name == "offsets":
        assert float(found.detach().min()) >= 0
        assert float(found.detach().max()) <= 1


def test_what_a_network_returns_keeps_its_form(headed: Callable[..., nn.Module]) -> None:
    transformers = pytest.importorskip("transformers")
    images = torch.rand(1, 3, 32, 32)

    def semantic(scores: Tensor) -> Any:
        return transformers.modeling_outputs.SemanticSegmenterOutput(logits=scores.tanh(), loss=scores.sum())

    wrapped: dict[Any, Callable[[Tensor], Any]] = {
        tuple: lambda scores: (scores.tanh(), "more"),
        list: lambda scores: [scores.tanh(), scores[..., ::2, ::2]],
        dict: lambda scores: {"aux": scores, "out": [scores.tanh()]},
        transformers.modeling_outputs.SemanticSegmenterOutput: semantic,
    }
    for form, after in wrapped.items():
        network = headed(nn.Conv2d(8, 5, 1), after)
        output: Any = network(images)
        corrected: Any = alignment(OFFSETS).module(network)(images)
        assert type(corrected) is form
        assert len(corrected) == len(output)
        difference = find_scores(corrected) - find_scores(output)
        torch.testing.assert_close(
            difference, OFFSETS.offsets.view(1, 5, 1, 1).expand_as(difference), atol=1e-6, rtol=0
        )
        if hasattr(corrected, "logits"):
            assert corrected.logits is corrected["logits"]
            assert not torch.equal(corrected.logits, output.logits)


def test_norm_statistics_go_into_the_copy(networks: Networks) -> None:
    network = networks("bias")
    averages = {"body.norm.running_mean": torch.full((8,), 0.3), "body.norm.running_var": torch.full((8,), 2.0)}
    corrected = alignment(OFFSETS, Norms(averages, images=4, source_images=8)).module(network)
    assert corrected.state_dict()["body.norm.running_mean"].tolist() == pytest.approx([0.3] * 8)
    assert not torch.equal(network.state_dict()["body.norm.running_mean"], averages["body.norm.running_mean"])
    with pytest.raises(blda_cli.BldaError, match="do not fit the network: it has no elsewhere"):
        alignment(OFFSETS, Norms({"elsewhere.running_mean": torch.zeros(8)}, 4, 8)).module(network)


@pytest.mark.parametrize("size", [(160, 192), (24, 32)])  # of the smaller no norm sees enough positions
def test_norms_mix_in_each_images_own_statistics(size: tuple[int, int]) -> None:
    torch.manual_seed(3)
    network = randomised(Pooled())
    images = torch.rand(3, 3, *size) * torch.tensor([0.2, 1, 3]).view(3, 1, 1, 1)
    corrected = alignment(OFFSETS, MixedNorms(0.7)).module(network)
    assert corrected.state_dict().keys() == network.state_dict().keys()
    with torch.no_grad():
        found, plain = corrected(images), network(images)
        with blda_cli.InstanceNorms(network, 0.7):
            expected = network(images) + OFFSETS.offsets.view(1, 5, 1, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.allclose(found, plain + OFFSETS.offsets.view(1, 5, 1, 1), atol=1e-3) == (size == (24, 32))
    compiled = torch.compile(corrected, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), found)


def test_mixing_stops_in_training() -> None:
    torch.manual_seed(3)
    network = randomised(Pooled())
    corrected = alignment(OFFSETS, MixedNorms(0.7)).module(network.train())
    images = torch.rand(2, 3, 64, 64)
    difference = corrected(images) - network(images)
    torch.testing.assert_close(difference, OFFSETS.offsets.view(1, 5, 1, 1).expand_as(difference), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["offsets", "location", "quantile", "linear", "spatial"])
def test_it_compiles_and_loads_its_state(networks: Networks, name: str) -> None:
    corrected = alignment({"offsets": OFFSETS, **OTHERS}[name]).module(networks("upsampled"))
    images = torch.rand(2, 3, 32, 48)
    expected = corrected(images)
    compiled = torch.compile(corrected, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    other = alignment({"offsets": OFFSETS, **OTHERS}[name]).module(networks("upsampled"))
    for value in other.state_dict().values():
        value.zero_()
    other.load_state_dict(corrected.state_dict())
    torch.testing.assert_close(other(images), expected)
    corrected(images).sum().backward()
    assert all(parameter.grad is not None for parameter in corrected.parameters())


def test_it_trains_under_ddp(networks: Networks, tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        corrected = alignment(OTHERS["location"]).module(networks("upsampled").train())
        parallel = nn.parallel.DistributedDataParallel(corrected)
        parallel(torch.rand(2, 3, 32, 48)).sum().backward()
        assert corrected.training
        assert all(module.training for module in corrected.modules())
    finally:
        torch.distributed.destroy_process_group()


def test_a_network_that_does_not_fit_is_refused(networks: Networks) -> None:
    with pytest.raises(blda_cli.BldaError, match="gives 5 channels, the correction is for 2 classes"):
        blda_cli.Alignment(alignment(OFFSETS).settings, blda_cli.data.classes.numbered_classes(2), OFFSETS).module(
            networks("bias")
        )
    with pytest.raises(blda_cli.BldaError, match=r"fails on an input of shape \[1, 3, 256, 320\]"):
        alignment(OFFSETS).module(nn.Sequential(nn.Conv2d(4, 5, 1)))
