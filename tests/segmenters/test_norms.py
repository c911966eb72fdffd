from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blda_cli.core.norms import SHIFTED, Norms, hellinger
from blda_cli.data import divided_images
from blda_cli.data.images import find_images
from blda_cli.data.pillow_images import PillowImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters.network import NetworkSegmenter, network_segmenter
from blda_cli.segmenters.norms import IMAGES, ObservedNorms, enough_for_norms, take_norms, use_norms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import parse_model


def segmenter_of(network: nn.Module) -> NetworkSegmenter:
    return network_segmenter(parse_model("a:b"), network, torch.device("cpu"), {"kind": "python"})


def two_norms() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, eps=1e-3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)
    )
    for norm in (network[1], network[4]):
        assert isinstance(norm, nn.BatchNorm2d)
        norm.running_mean, norm.running_var = torch.randn(len(norm.weight)), torch.rand(len(norm.weight)) + 0.5
    return network.eval()


def reference(network: nn.Sequential, files: list[ImageSource]) -> dict[str, np.ndarray]:
    """Float64, one image after another: what the norms see, each image normalised by its own averages on the way.

    The network's own averages count as eight images, the three of the test as three.
    """
    seen: dict[int, list[np.ndarray]] = {1: [], 4: []}
    layers: list[Any] = [layer.double() for layer in network]
    for file in files:
        values = torch.from_numpy(np.array(Image.open(file.path))).permute(2, 0, 1)[None].double() / 255
        for number, layer in enumerate(layers):
            if number in seen:
                flat = values[0].flatten(1).detach().numpy()
                seen[number].append(flat)
                mean, deviation = flat.mean(axis=1), np.sqrt(flat.var(axis=1) + layer.eps)
                normal = (flat - mean[:, None]) / deviation[:, None]
                values = torch.from_numpy(normal).reshape(values.shape)
                values = values * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)
            else:
                values = layer(values)
    expected = {}
    for number, parts in seen.items():
        together = np.concatenate(parts, axis=1)
        for name, target in (("running_mean", together.mean(axis=1)), ("running_var", together.var(axis=1, ddof=1))):
            source = getattr(network[number], name).numpy()
            expected[f"{number}.{name}"] = (8 * source + 3 * target) / 11
    return expected


def test_averages_are_those_of_all_pixels_of_all_images(images: list[ImageSource]) -> None:
    network = two_norms()
    segmenter = segmenter_of(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    norms = take_norms(segmenter, images, InferenceOptions(batch_size=2))
    assert norms is not None
    assert (norms.images, norms.source_images) == (3, 8)
    # Taking them leaves the network and its identity as they are.
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert "norms" not in segmenter.identity
    assert not any(layer._forward_pre_hooks for layer in network)
    expected = reference(network, images)
    assert norms.averages.keys() == expected.keys()
    for name, values in norms.averages.items():
        np.testing.assert_allclose(values.numpy(), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_segmenter_with_them_is_the_network_with_them_loaded_by_hand(
    images: list[ImageSource], pixels: Tensor
) -> None:
    segmenter = segmenter_of(two_norms())
    norms = take_norms(segmenter, images, InferenceOptions())
    assert norms is not None
    use_norms(segmenter, norms)
    by_hand = two_norms()
    by_hand.load_state_dict(norms.averages, strict=False)
    with torch.no_grad():
        scores = by_hand(pixels.permute(0, 3, 1, 2).float() / 255)
    expected = nn.functional.pad(scores, (1, 1, 1, 1), mode="replicate")  # its convolution is not padded
    torch.testing.assert_close(segmenter.logits(pixels), expected)
    assert segmenter.identity["norms"] == norms.identity
    assert norms.identity["images"] == 3
    assert "3 target images" in segmenter.notes[-1]
    use_norms(segmenter, norms)  # twice is as good as once
    assert len([note for note in segmenter.notes if "batch norms" in note]) == 1


def test_an_identity_tells_every_average() -> None:
    averages = {"a.running_mean": torch.zeros(3), "a.running_var": torch.ones(3)}
    one = Norms(averages, 5, 8).identity
    assert one == Norms(dict(reversed(averages.items())), 5, 8).identity
    assert one != Norms({**averages, "a.running_var": torch.tensor([1.0, 1, 1.0000001])}, 5, 8).identity
    assert one != Norms(averages, 6, 8).identity


class Pooled(nn.Module):
    """A norm behind global pooling, one that is never reached, and a frozen one of another library."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(3))
            self.register_buffer("running_var", torch.ones(3))

        def forward(self, values: Tensor) -> Tensor:
            mean, variance = (self.get_buffer(f"running_{kind}").view(1, -1, 1, 1) for kind in ("mean", "var"))
            return (values - mean) / (variance + 1e-5).sqrt()

    def __init__(self) -> None:
        super().__init__()
        self.frozen = Pooled.Frozen()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
        self.unused = nn.BatchNorm2d(3)
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.frozen(images) + self.pool(images))  # type: ignore[no-any-return]


def test_norms_of_every_sort(images: list[ImageSource], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blda_cli.segmenters.norms._ROWS", 1000)  # all of them
    segmenter = segmenter_of(Pooled().eval())
    norms = take_norms(segmenter, images, InferenceOptions())
    assert norms is not None
    observed = watched(segmenter, images, InferenceOptions())
    averages = {name: target for name, (_, target) in observed.averages().items()}
    means = np.stack([np.array(Image.open(file.path)).mean(axis=(0, 1)) / 255 for file in images])
    # Behind the pooling every image counts once, whatever its size.
    np.testing.assert_allclose(averages["pool.1"][0], means.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(averages["pool.1"][1], means.var(axis=0, ddof=1), rtol=1e-3)
    weights = [np.array(Image.open(file.path)).size for file in images]
    np.testing.assert_allclose(averages["frozen"][0], np.average(means, axis=0, weights=weights), rtol=1e-5)
    assert not any(name.startswith("unused") for name in norms.averages)
    # One image is one value there: the norm keeps its own.
    alone = take_norms(segmenter, images[:1], InferenceOptions())
    assert alone is not None
    assert not any(name.startswith("pool") for name in alone.averages)


def test_a_network_without_batch_norms_says_so(images: list[ImageSource]) -> None:
    segmenter = segmenter_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)).eval())
    norms = take_norms(segmenter, images, InferenceOptions())
    assert norms is None
    use_norms(segmenter, norms)
    assert "norms" not in segmenter.identity
    assert segmenter.notes[-1] == "the network has no batch norms that could take the target's statistics"


def test_norms_of_another_network_are_refused(images: list[ImageSource]) -> None:
    segmenter = segmenter_of(two_norms())
    norms = take_norms(segmenter, images, InferenceOptions())
    other = segmenter_of(nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)).eval())
    with pytest.raises(BldaError, match=r"do not fit the network: it has no 1\.running_mean of that size"):
        use_norms(other, norms)


def test_unreadable_images_count_nothing(images: list[ImageSource]) -> None:
    segmenter = segmenter_of(two_norms())
    images[0].path.write_text("no picture")
    with pytest.raises(BldaError, match="not an image"):
        take_norms(segmenter, images, InferenceOptions())
    norms = take_norms(segmenter, images, InferenceOptions(on_error="skip"))
    assert norms is not None
    assert norms.images == 2
    with pytest.raises(BldaError, match="no image could be read"):
        take_norms(segmenter, images[:1], InferenceOptions(on_error="skip"))


def test_enough_images_lie_evenly() -> None:
    files = [PillowImage(Path(f"{number}.png"), str(number)) for number in range(10 * IMAGES)]
    assert [file.key for file in enough_for_norms(files)] == [str(10 * number) for number in range(IMAGES)]
    assert list(enough_for_norms(files[:IMAGES])) == files[:IMAGES]
    assert len(enough_for_norms(files, 8)) == 8
    assert IMAGES // 2 <= len(enough_for_norms(files[: IMAGES + 1])) <= IMAGES


def test_the_source_keeps_half_at_least(images: list[ImageSource]) -> None:
    segmenter = segmenter_of(two_norms())
    for count, source_images in ((4, 8), (8, 8), (11, 11)):
        norms = take_norms(segmenter, (images * count)[:count], InferenceOptions())
        assert norms is not None
        assert (norms.images, norms.source_images) == (count, source_images)


def test_distance_of_two_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    means, variances = torch.randn(2, 50, generator=generator).double(), torch.rand(2, 50, generator=generator).double()
    variances = 0.1 + 3 * variances
    found = hellinger(means[0], variances[0], means[1], variances[1])
    values = np.linspace(-30, 30, 20001)
    for channel in range(50):
        one, other = (
            np.exp(-((values - mean[channel].item()) ** 2) / (2 * variance[channel].item()))
            / np.sqrt(2 * np.pi * variance[channel].item())
            for mean, variance in zip(means, variances, strict=True)
        )
        expected = 0.5 * ((np.sqrt(one) - np.sqrt(other)) ** 2).sum() * (values[1] - values[0])
        assert found[channel].item() == pytest.approx(expected, abs=1e-9)
    # Dead channels differ in nothing.
    assert hellinger(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1)).item() == 0


def watched(segmenter: NetworkSegmenter, files: list[ImageSource], options: InferenceOptions) -> ObservedNorms:
    with ObservedNorms(segmenter.module) as observed:
        for _ in segmenter.stream(files, options):
            pass
    return observed


def test_the_shift_is_the_mean_over_all_channels(images: list[ImageSource], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blda_cli.segmenters.norms._ROWS", 1000)  # all of them
    segmenter = segmenter_of(two_norms())
    own = {name: value.clone() for name, value in segmenter.module.state_dict().items()}
    observed = watched(segmenter, images, InferenceOptions(batch_size=2))
    # Watching changes nothing, while it lasts and afterwards.
    assert all(torch.equal(value, own[name]) for name, value in segmenter.module.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in segmenter.module.children())
    seen: dict[str, list[np.ndarray]] = {"1": [], "4": []}
    for file in images:
        values = torch.from_numpy(np.array(Image.open(file.path))).permute(2, 0, 1)[None].double() / 255
        for name, layer in two_norms().double().named_children():
            if name in seen:
                seen[name].append(values[0].flatten(1).detach().numpy())
            values = layer(values)
    distances = []
    for name, parts in seen.items():
        together = np.concatenate(parts, axis=1)
        source, target = observed.averages()[name]
        np.testing.assert_allclose(target[0], together.mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(target[1], together.var(axis=1, ddof=1), rtol=1e-5)
        assert torch.equal(source[0], own[f"{name}.running_mean"].double())
        distances.append(hellinger(*source, *target))
    assert observed.distance == pytest.approx(torch.cat(distances).mean().item(), rel=1e-6)
    assert observed.distance > SHIFTED
    for name, (_, target) in observed.averages().items():
        for kind, values in zip(("mean", "var"), target, strict=True):
            own[f"{name}.running_{kind}"] = values.float()
    at_home = two_norms()
    at_home.load_state_dict({name: own[name] for name in own if name.startswith("1.")}, strict=False)
    assert watched(segmenter_of(at_home), images, InferenceOptions()).distance < observed.distance


def test_large_maps_are_looked_at_in_part() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1)).eval()
    rows = torch.arange(130.0).view(1, 1, 130, 1).expand(2, 1, 130, 5)
    with ObservedNorms(network) as observed:
        network(rows)
    _, (mean, variance) = observed.averages()["0"]
    looked = np.repeat(np.arange(4, 130, 8), 10)  # 16 rows of them at least, fewer than 32, none at the border
    assert mean.item() == pytest.approx(looked.mean())
    assert variance.item() == pytest.approx(looked.var(ddof=1))


def test_a_network_in_training_mode_is_not_observed() -> None:
    """Its norms normalise by the batch, and running it would change their statistics."""
    network = two_norms().train()
    observed = ObservedNorms(network)
    with pytest.raises(BldaError, match=r"'1' is in training mode: call network\.eval\(\) first"):
        observed.__enter__()


def test_images_are_chosen_evenly_and_of_large_ones_other_parts_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos have as many parts each; their upper left ones alone would be sky."""
    for number in range(8):
        Image.new("RGB", (60, 90)).save(tmp_path / f"{number}.png")
    whole = find_images(tmp_path)
    assert enough_for_norms(whole, 4) == whole[::2]
    monkeypatch.setattr(divided_images, "BLOCK", 32)
    monkeypatch.setattr(divided_images, "LARGE", 1000)
    parts = find_images(tmp_path)
    assert len(parts) == 8 * 6
    chosen = enough_for_norms(parts, 8)
    assert len({part.path for part in chosen}) == 8
    assert len({part.part for part in chosen}) >= 5


@pytest.mark.parametrize("run", ["whole", "windows", "parts"])
def test_pixels_without_data_do_not_count(tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single transparent pixels, too: of an image of one colour the mean is that colour, and the variance 0."""
    pixels = np.full((40, 60, 4), 102, np.uint8)
    pixels[..., 3] = np.where(np.random.default_rng(0).random((40, 60)) < 0.1, 0, 255)
    pixels[25:, :20, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    if run == "parts":
        monkeypatch.setattr(divided_images, "BLOCK", 32)
        monkeypatch.setattr(divided_images, "LARGE", 1000)
    files = find_images(tmp_path)
    assert len(files) == (4 if run == "parts" else 1)
    segmenter = segmenter_of(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    options = InferenceOptions(slide=None if run == "whole" else (20, 24), flip=True)
    norms = take_norms(segmenter, files, options)
    assert norms is not None
    share = norms.images / (norms.images + norms.source_images)
    np.testing.assert_allclose(norms.averages["0.running_mean"], share * 102 / 255, rtol=1e-6)
    np.testing.assert_allclose(norms.averages["0.running_var"], 1 - share, rtol=1e-6)
    np.testing.assert_allclose(norms.averages["2.running_var"], 1 - share, rtol=1e-6)
    observed = ObservedNorms(segmenter.module)
    with segmenter.observed_by(observed):
        list(segmenter.stream(files, options))
    for _, (mean, variance) in observed.averages().values():
        np.testing.assert_allclose(variance, 0, atol=1e-9)
        assert len(mean) in (3, 4)
    np.testing.assert_allclose(observed.averages()["0"][1][0], 102 / 255, rtol=1e-6)
    plain = ObservedNorms(segmenter.module)
    with plain:
        list(segmenter.stream(files, options))
    assert float(plain.averages()["0"][1][1].min()) > 1e-3  # unless the segmenter is told
