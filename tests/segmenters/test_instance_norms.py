"""Batch norms that mix their running statistics with each image's own."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from blda_cli.core.norms import image_moments
from blda_cli.data import divided_images
from blda_cli.data.images import find_images
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.segmenters.network import NetworkSegmenter, network_segmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import NetworkSection, PreprocessingSection, SegmenterSpec


class NormAct(nn.BatchNorm2d):
    """A batch norm with an activation of its own, as timm's ``BatchNormAct2d``."""

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.leaky_relu(super().forward(values), 0.2)


class Frozen(nn.Module):
    """A batch norm of buffers, as torchvision's ``FrozenBatchNorm2d``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-3
        for name, value in (("weight", 1.3), ("bias", -0.2), ("running_mean", 0.1), ("running_var", 0.7)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, values: Tensor) -> Tensor:
        weight, bias, mean, variance = (
            self.get_buffer(name).view(1, -1, 1, 1) for name in ("weight", "bias", "running_mean", "running_var")
        )
        return (values - mean) / (variance + self.eps).sqrt() * weight + bias


def network(seed: int = 0) -> nn.Sequential:
    """Three norms of three sorts, whose running statistics fit nothing."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, eps=1e-3), nn.ReLU(),
        nn.Conv2d(6, 5, 3, stride=2), NormAct(5), nn.Conv2d(5, 4, 1), Frozen(4),
    )  # fmt: skip
    for norm in (layers[1], layers[4]):
        assert isinstance(norm, nn.BatchNorm2d)
        size = len(norm.weight)
        norm.weight.data, norm.bias.data = torch.rand(size) + 0.5, torch.randn(size)
        norm.running_mean, norm.running_var = torch.randn(size), torch.rand(size) + 0.5
    return layers.eval()


def reference(layers: nn.Sequential, image: np.ndarray, weight: float) -> np.ndarray:
    """One image in float64, every norm written out."""
    values = torch.from_numpy(image)[None].double()
    layer: Any
    for layer in copy.deepcopy(layers).double().children():
        if not hasattr(layer, "running_mean"):
            values = layer(values)
            continue
        seen = values[0].detach().numpy()
        mean = weight * layer.running_mean.numpy() + (1 - weight) * seen.mean(axis=(1, 2))
        variance = weight * layer.running_var.numpy() + (1 - weight) * seen.var(axis=(1, 2))
        normal = (seen - mean[:, None, None]) / np.sqrt(variance + layer.eps)[:, None, None]
        scaled = normal * layer.weight.detach().numpy()[:, None, None] + layer.bias.detach().numpy()[:, None, None]
        values = torch.from_numpy(np.where(scaled < 0, 0.2 * scaled, scaled) if isinstance(layer, NormAct) else scaled)
        values = values[None]
    found: np.ndarray = values[0].detach().numpy()
    return found


@pytest.fixture
def pictures() -> Tensor:
    """Three images that differ in brightness and contrast."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.tensor([1.0, 0.2, 3.0]).view(3, 1, 1, 1)
    return torch.randn(3, 3, 21, 26, generator=generator) * spread + torch.tensor([0.0, 2.0, -4.0]).view(3, 1, 1, 1)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_image_has_its_own_statistics_however_images_are_batched(
    pictures: Tensor, weight: float, channels_last: bool
) -> None:
    layers = network()
    expected = np.stack([reference(layers, picture.numpy(), weight) for picture in pictures])
    if channels_last:
        pictures = pictures.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), InstanceNorms(layers, weight):
        together = layers(pictures)
        alone = torch.cat([layers(picture[None]) for picture in pictures])
    np.testing.assert_allclose(together.numpy(), expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(alone.numpy(), expected, rtol=2e-4, atol=2e-5)


def test_a_weight_of_one_is_the_plain_network_bit_for_bit(pictures: Tensor) -> None:
    layers = network()
    with torch.no_grad():
        plain = layers(pictures)
        with InstanceNorms(layers, 1.0):
            assert torch.equal(layers(pictures), plain)


def test_the_network_is_as_before_afterwards_even_after_an_error(pictures: Tensor) -> None:
    layers = network()
    before = copy.deepcopy(layers.state_dict())
    with torch.no_grad():
        plain = layers(pictures)
        norms = InstanceNorms(layers, 0.5)
        layers[1].forward = lambda values: values / None
        with norms, pytest.raises(TypeError):
            layers(pictures[:1])
        del layers[1].forward
        with norms:
            layers(pictures[:1])
        assert torch.equal(layers(pictures), plain)
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layers.modules())


def test_gradients_flow_through(pictures: Tensor) -> None:
    layers = network()
    with InstanceNorms(layers, 0.5):
        loss = layers(pictures[:1]).square().mean() + layers(pictures).square().mean()
        loss.backward()
    weight = layers[0].weight
    assert isinstance(weight, Tensor)
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
        self.grid = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.BatchNorm2d(3))
        self.flat = nn.BatchNorm1d(3)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.pool(images), self.grid(images), self.flat(images.mean(dim=(2, 3)))


def test_layers_that_see_few_positions_keep_their_statistics(pictures: Tensor) -> None:
    layers = Pooled().eval()
    with torch.no_grad():
        plain = layers(pictures)
        with InstanceNorms(layers, 0.2):
            assert all(torch.equal(one, other) for one, other in zip(layers(pictures), plain, strict=True))


class Operations(TorchDispatchMode):
    """Counts what is computed; views are not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("count", "on_gpu", "half", "most"),
    [
        (1, True, False, 2),  # moments, and a mixture of both with the running ones
        (1, True, True, 3),  # and a conversion
        (3, True, False, 9),
        (3, True, True, 11),
        (1, False, False, 6),
    ],
)
def test_few_operations_are_added_to_a_layer(
    monkeypatch: pytest.MonkeyPatch, count: int, on_gpu: bool, half: bool, most: int
) -> None:
    """On a GPU each is a launch from Python, of which a network of many small layers waits for every one."""
    monkeypatch.setattr("blda_cli.core.norms._one_kernel", lambda values: on_gpu)
    layers = nn.Sequential(nn.BatchNorm2d(3)).eval()
    values = torch.randn(count, 3, 16, 16, dtype=torch.float16 if half else torch.float32)
    with torch.no_grad():
        with Operations() as plain:
            layers(values)
        with InstanceNorms(layers, 0.5) as norms, norms.content((16, 16)), Operations() as mixed:
            found = layers(values)
        monkeypatch.undo()
        with InstanceNorms(layers, 0.5):
            torch.testing.assert_close(found, layers(values))
    assert mixed.count - plain.count <= most


def test_layers_in_training_normalise_by_the_batch(pictures: Tensor) -> None:
    one, other = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    with InstanceNorms(one, 0.2):
        assert torch.equal(one(pictures), other(pictures))
    assert torch.equal(one[0].running_mean, other[0].running_mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 3])
def test_padding_does_not_count(pictures: Tensor, count: int) -> None:
    norm = nn.BatchNorm2d(3)
    layers = nn.Sequential(nn.AvgPool2d(2), norm).eval()  # no value depends on its neighbours' padding
    norm.running_mean = torch.tensor([1.0, 2, 3])
    image = pictures[:count, :, :20, :26]
    padded = nn.functional.pad(image, (0, 6, 0, 12), value=50.0)
    with torch.no_grad(), InstanceNorms(layers, 0.6) as norms:
        expected = layers(image)
        with norms.content(size=(20, 26)):
            found = layers(padded)
        np.testing.assert_allclose(found[:, :, :10, :13], expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(layers(padded)[:, :, :10, :13], expected, atol=0.1)


@pytest.mark.parametrize("count", [1, 3])
def test_pixels_that_are_no_data_do_not_count(pictures: Tensor, count: int) -> None:
    norm = nn.BatchNorm2d(3)
    layers = nn.Sequential(nn.AvgPool2d(2), norm).eval()
    mask = torch.ones(count, 20, 26, dtype=torch.bool)
    mask[0, 3:9, :] = False  # the second to fifth row of positions see some of these
    if count > 1:
        mask[1] = False  # no pixel is data: all count
    image = pictures[:count, :, :20, :26]
    spoilt = torch.where(mask[:1, None], image, 70.0) if count == 1 else image
    with torch.no_grad(), InstanceNorms(layers, 0.3) as norms:
        with norms.content(mask=mask):
            found = layers(spoilt)
        whole = layers(image)
    kept = nn.functional.avg_pool2d(image[:1], 2)[0, :, [0, 5, 6, 7, 8, 9]].double().numpy()
    mean = 0.7 * kept.mean(axis=(1, 2))
    variance = 0.3 + 0.7 * kept.var(axis=(1, 2))
    expected = (kept - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
    np.testing.assert_allclose(found[0, :, [0, 5, 6, 7, 8, 9]].numpy(), expected, rtol=1e-4, atol=1e-5)
    if count > 1:
        np.testing.assert_allclose(found[1:], whole[1:], rtol=1e-4, atol=1e-5)


def test_windows_are_normalised_by_their_whole_image(pictures: Tensor) -> None:
    """Where nothing else looks beyond a pixel, windows give exactly what the whole image gives."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU(), norm).eval()  # a layer that is used twice
    norm.running_mean = torch.randn(4)
    with torch.no_grad(), InstanceNorms(layers, 0.4) as norms:
        whole = layers(pictures)
        with norms.recorded() as statistics:
            layers(pictures)
        with norms.held(statistics):
            parts = [layers(pictures[..., left : left + 13]) for left in (0, 13)]
        np.testing.assert_allclose(torch.cat(parts, dim=3), whole, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(layers(pictures[..., :13]), whole[..., :13], atol=1e-2)


def test_windows_of_a_large_image_are_normalised_by_all_of_them(pictures: Tensor) -> None:
    norm = nn.BatchNorm2d(3)
    layers = nn.Sequential(norm).eval()
    norm.running_mean = torch.randn(3)
    parts = pictures.chunk(2, dim=3)
    with torch.no_grad(), InstanceNorms(layers, 0.4) as norms:
        whole = layers(pictures)
        with norms.recorded() as statistics:
            for part in parts:
                layers(part)
        with norms.held(statistics):
            np.testing.assert_allclose(layers(parts[1]), whole[..., 13:], rtol=1e-4, atol=1e-5)


def test_statistics_are_single_precision_under_amp(pictures: Tensor) -> None:
    norm = nn.BatchNorm2d(3)
    layers = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), norm).eval()
    # Levels far from zero: sums in half precision would lose the spread altogether.
    image = (pictures + 300).bfloat16()
    layers[0].weight.data = torch.eye(3).view(3, 3, 1, 1)
    with torch.no_grad(), InstanceNorms(layers, 0.0), torch.autocast("cpu", torch.bfloat16):
        found = layers(image[:1])
    seen = image[0].double().numpy()
    expected = (seen - seen.mean(axis=(1, 2), keepdims=True)) / np.sqrt(seen.var(axis=(1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(found[0].float().numpy(), expected, atol=0.02)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6), shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)),
    level=st.floats(-100, 100), masked=st.booleans(),
)  # fmt: skip
def test_moments_are_those_of_float64(seed: int, shape: tuple[int, int, int], level: float, masked: bool) -> None:
    generator = np.random.default_rng(seed)
    values = (generator.normal(level, generator.uniform(0.5, 3), (*shape, 7))).astype(np.float32)
    counted = generator.random((shape[0], *shape[2:], 7)) < 0.5
    mean, variance = image_moments(torch.from_numpy(values), torch.from_numpy(counted) if masked else None)
    for image in range(shape[0]):
        kept = counted[image] if masked and counted[image].any() else np.ones_like(counted[image])
        for channel in range(shape[1]):
            seen = values[image, channel][kept].astype(np.float64)
            assert mean[image, channel].item() == pytest.approx(seen.mean(), rel=1e-5, abs=1e-4)
            assert variance[image, channel].item() == pytest.approx(seen.var(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_is_a_share(weight: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        InstanceNorms(network(), weight)


def segmenter_of(layers: nn.Module, weight: float = 0.4, **preprocessing: Any) -> NetworkSegmenter:
    spec = SegmenterSpec(NetworkSection("python"), PreprocessingSection(**preprocessing))
    segmenter = network_segmenter(spec, layers, torch.device("cpu"), {"kind": "python"})
    segmenter.mix_norms(weight)
    return segmenter


@pytest.fixture
def photos() -> Tensor:
    """Two images that differ, uint8 ``[2, 40, 60, 3]``."""
    generator = torch.Generator().manual_seed(2)
    dark = torch.randint(0, 90, (40, 60, 3), generator=generator)
    dark[:20] += 60
    return torch.stack([dark, torch.randint(60, 256, (40, 60, 3), generator=generator)]).to(torch.uint8)


def placed(scores: Tensor) -> Tensor:
    """Scores at the images' size: one convolution of stride 2 is not padded and lacks a pixel all round."""
    resized = nn.functional.interpolate(scores, (38, 58), mode="bilinear", align_corners=False)
    return nn.functional.pad(resized, (1, 1, 1, 1), mode="replicate")


def test_a_segmenter_normalises_each_image_by_itself(photos: Tensor) -> None:
    layers = network()
    found = segmenter_of(layers).logits(photos)
    for index, photo in enumerate(photos):
        scores = torch.from_numpy(reference(layers, photo.permute(2, 0, 1).numpy() / 255, 0.4))
        expected = placed(scores[None])[0]
        np.testing.assert_allclose(found[index].numpy(), expected.numpy(), rtol=1e-3, atol=1e-4)
    assert not layers[1]._forward_hooks
    with torch.no_grad():
        plain = placed(layers(photos.permute(0, 3, 1, 2) / 255))
    assert torch.equal(segmenter_of(layers, 1.0).logits(photos), plain)


def pixelwise() -> nn.Sequential:
    torch.manual_seed(5)
    norm = nn.BatchNorm2d(6)
    norm.running_mean, norm.running_var = torch.rand(6), torch.rand(6) + 0.1
    return nn.Sequential(nn.Conv2d(3, 6, 1), norm, nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)).eval()


def test_a_segmenter_leaves_its_padding_out(photos: Tensor) -> None:
    layers = pixelwise()
    expected = segmenter_of(layers).logits(photos)
    found = segmenter_of(layers, multiple_of=64, mean=(0.9, 0.9, 0.9)).logits(photos)
    shifted = segmenter_of(layers, mean=(0.9, 0.9, 0.9)).logits(photos)
    np.testing.assert_allclose(found, shifted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, expected, atol=1e-2)


@pytest.mark.parametrize("limit", [1 << 24, 100])
def test_windows_leave_no_seams(photos: Tensor, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Their norms see the whole image; of one that is too large, all of its windows."""
    monkeypatch.setattr("blda_cli.segmenters.network._WHOLE_PIXELS", limit)
    layers = pixelwise()
    if limit == 100:  # what lies behind the first norm sees a little less of the same
        layers = nn.Sequential(*list(layers)[:4])
    segmenter = segmenter_of(layers.eval())
    whole = segmenter.logits(photos)
    found = segmenter.logits(photos, InferenceOptions(slide=(20, 30), stride=(10, 15)))
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)
    window = segmenter.logits(photos[:, :20, :30])
    assert not torch.allclose(window, whole[..., :20, :30], atol=1e-2)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("most", [64, 2])
def test_parts_of_a_large_image_are_normalised_by_all_of_it(
    tmp_path: Path, photos: Tensor, monkeypatch: pytest.MonkeyPatch, most: int, flip: bool
) -> None:
    """By the windows that cover it, run once for all parts; where these are too many by some, which say less."""
    monkeypatch.setattr(divided_images, "BLOCK", 32)
    monkeypatch.setattr(divided_images, "LARGE", 1000)
    monkeypatch.setattr("blda_cli.segmenters.network._WINDOWS", most)
    pixels = np.dstack([photos[0].numpy(), np.full((40, 60), 255, np.uint8)])
    pixels[6:20, 10:24] = 0
    Image.fromarray(pixels).save(tmp_path / "x.png")
    valid = torch.from_numpy(pixels[..., 3] > 0)[None]
    segmenter = segmenter_of(pixelwise()[:4].eval())
    whole = segmenter.logits(torch.from_numpy(pixels[None, ..., :3].copy()), InferenceOptions(flip=flip), valid)
    read: list[ImageSource] = []

    def reading(_: NetworkSegmenter, file: ImageSource) -> np.ndarray:
        read.append(file)
        return file.read()

    monkeypatch.setattr(NetworkSegmenter, "read", reading)
    for batch in segmenter.stream(find_images(tmp_path), InferenceOptions(slide=(20, 30), flip=flip)):
        (top, bottom), (left, right) = batch.files[0].place()
        there = valid[:, top:bottom, left:right]
        one, other = (each.movedim(1, -1)[there] for each in (batch.logits, whole[..., top:bottom, left:right]))
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5) == (most == 64)
    assert len(read) == 4 + (1 + flip) * min(most, 4)


def test_windows_that_cannot_be_read_do_not_count_where_such_images_are_skipped(
    tmp_path: Path, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divided_images, "BLOCK", 32)
    monkeypatch.setattr(divided_images, "LARGE", 1000)
    Image.fromarray(photos[0].numpy()).save(tmp_path / "x.png")
    files, options = find_images(tmp_path), InferenceOptions(slide=(20, 30), on_error="skip")
    segmenter = segmenter_of(pixelwise())
    plain = [batch.logits for batch in segmenter.stream(files, options)]
    broken = [((0, 20), (0, 30))]

    def reading(_: NetworkSegmenter, file: ImageSource) -> np.ndarray:
        if file.area() in broken:
            raise BldaError("broken")
        return file.read()

    monkeypatch.setattr(NetworkSegmenter, "read", reading)
    found = [batch.logits for batch in segmenter.stream(files, options)]
    assert not torch.allclose(found[0], plain[0], atol=1e-3)
    with pytest.raises(BldaError, match="broken"):
        next(iter(segmenter.stream(files, replace(options, on_error="stop"))))
    broken += [((0, 20), (30, 60)), ((20, 40), (0, 30)), ((20, 40), (30, 60))]
    with pytest.raises(BldaError, match=r"x\.png cannot be read for the norm statistics of the whole image"):
        next(iter(segmenter.stream(files, options)))


def test_each_view_of_a_part_has_norm_statistics_of_its_own(
    tmp_path: Path, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divided_images, "BLOCK", 32)
    monkeypatch.setattr(divided_images, "LARGE", 1000)
    Image.fromarray(photos[0].numpy()).save(tmp_path / "x.png")
    files, segmenter = find_images(tmp_path), segmenter_of(network())
    one, two, both = (
        [batch.logits.softmax(dim=1) for batch in segmenter.stream(files, InferenceOptions(slide=(24, 30), **views))]
        for views in ({"scales": (0.75,)}, {"scales": (1.0,), "mirrored": True}, {"scales": (0.75, 1.0), "flip": True})
    )
    others = [
        [batch.logits.softmax(dim=1) for batch in segmenter.stream(files, InferenceOptions(slide=(24, 30), **views))]
        for views in ({"scales": (0.75,), "mirrored": True}, {"scales": (1.0,)})
    ]
    for views in zip(one, two, *others, both, strict=True):
        torch.testing.assert_close(sum(views[:4]) / 4, views[4])


def test_windows_that_are_resized_are_normalised_alike(photos: Tensor) -> None:
    flat = photos[:1, :1, :1].expand(1, 40, 60, 3).clone()
    flat[:, :, 30:] = 200
    segmenter = segmenter_of(pixelwise()[:4].eval(), size=(80, 60))
    found = segmenter.logits(flat, InferenceOptions(slide=(40, 30), stride=(40, 30)))
    np.testing.assert_allclose(found, segmenter_of(segmenter.module).logits(flat), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", [{}, {"flip": True}, {"scales": (2.0,)}, {"slide": (20, 30), "stride": (10, 15)}])
@pytest.mark.parametrize("section", [{}, {"multiple_of": 64}, {"size": (80, 120)}])
def test_a_segmenter_leaves_out_pixels_without_data(
    photos: Tensor, views: dict[str, Any], section: dict[str, Any]
) -> None:
    """What lies at them changes nothing elsewhere."""
    if section.get("size") and views.get("slide"):
        pytest.skip("windows are resized, and pixels at the mask's edge with them")
    valid = torch.ones(photos.shape[:3], dtype=torch.bool)
    valid[:, 6:20, 10:24] = False
    options = InferenceOptions(**views)
    found = [
        segmenter_of(pixelwise()[:4], **section).logits(torch.where(valid[..., None], photos, fill), options, valid)
        for fill in (0, 255)
    ]
    inner = torch.nn.functional.max_pool2d((~valid).float()[:, None], 5, 1, 2)[:, 0] == 0  # away from its edge
    for index in range(len(photos)):
        one, other = (logits[index][:, inner[index]] for logits in found)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    careless = segmenter_of(pixelwise()[:4], **section).logits(torch.where(valid[..., None], photos, 255), options)
    assert not torch.allclose(careless[:, :, 30:], found[1][:, :, 30:], atol=1e-2)


def test_parts_count_by_their_pixels_with_data() -> None:
    """A part without any does not count, unless the image has no data at all."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(3, 4, 16, 32, generator=random) + torch.linspace(0, 3, 32)
    mask = torch.rand(3, 16, 32, generator=random) < torch.linspace(0.2, 0.9, 32)
    mask[1, :, :16] = False
    mask[2] = False
    network = nn.Sequential(nn.BatchNorm2d(4)).eval()
    with InstanceNorms(network, 0.0) as norms:
        with norms.recorded() as passes:
            for part in (slice(0, 16), slice(16, 32)):
                with norms.content((16, 16), mask[..., part]):
                    network(images[..., part])
        with norms.held(passes):
            got = network(images)
    for index, there in enumerate((mask[0], mask[1], torch.ones(16, 32, dtype=torch.bool))):
        pixels = images[index][:, there]
        variance, mean = torch.var_mean(pixels, dim=1, correction=0)
        expected = (images[index] - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
        torch.testing.assert_close(got[index], expected, rtol=1e-4, atol=1e-4)
