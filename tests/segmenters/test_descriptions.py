import shlex
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blda_cli.data.images import find_images, masked
from blda_cli.data.pillow_images import PillowImage
from blda_cli.data.source import ImageSource
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.segmenters import descriptions
from blda_cli.segmenters.descriptions import (
    Description,
    common_descriptions,
    compare_descriptions,
    pictures,
    spread,
    try_description,
    untrained_norms,
)
from blda_cli.segmenters.network import NetworkSegmenter, network_segmenter
from blda_cli.segmenters.preprocessing import Preprocessor
from blda_cli.segmenters.spec import PreprocessingSection, parse_model, with_changes

IMAGENET = PreprocessingSection(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def segmenter_of(network: nn.Module, section: PreprocessingSection = IMAGENET) -> NetworkSegmenter:
    segmenter = network_segmenter(parse_model("a:b"), network.eval(), torch.device("cpu"), {"kind": "python"})
    return replace(segmenter, preprocessor=Preprocessor(section, segmenter.device))


def trained_on(images: Tensor) -> nn.Sequential:
    """A network whose norms hold the statistics of these inputs."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
    )
    with torch.no_grad():
        network.train()(images)
    return network.eval()


@pytest.fixture
def blobs(tmp_path: Path) -> list[ImageSource]:
    """Smooth pictures, more blue than red."""
    generator = np.random.default_rng(0)
    for index in range(3):
        coarse = (generator.random((12, 16, 3)) * (120, 180, 255)).astype(np.uint8)
        Image.fromarray(coarse).resize((128, 96), Image.Resampling.BICUBIC).save(tmp_path / f"{index}.png")
    return list(find_images(tmp_path))


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_a_swapped_description_gives_the_same_values_to_each_colour(color: Literal["rgb", "bgr"]) -> None:
    given = common_descriptions(replace(IMAGENET, color=color))[0]
    image = torch.rand(1, 3, 4, 5) * 255
    one, other = (Preprocessor(entry.section, torch.device("cpu"))(image) for entry in (given, given.swapped))
    torch.testing.assert_close(one, other.flip(1))
    assert not torch.equal(one, other)
    assert given.swapped.swapped == given


def test_common_descriptions_hold_the_given_one_once_with_its_name_and_size() -> None:
    almost = PreprocessingSection(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4), scale=1.0, size=(64, 96))
    found = common_descriptions(almost)
    assert found[0] == Description("ImageNet mean and deviation", almost)
    assert [entry.name for entry in found].count("ImageNet mean and deviation") == 1
    assert {entry.section.size for entry in found} == {(64, 96)}
    strange = common_descriptions(PreprocessingSection(scale=10.0))
    assert strange[0].name == "as described"
    assert len(strange) == len(found) + 1


def test_the_printed_options_make_the_same_input() -> None:
    given = parse_model("a:b")
    for entry in common_descriptions(PreprocessingSection(color="bgr")):
        message = entry.in_place_of(Description("given", given.preprocessing))
        options = shlex.split(message.removeprefix("give ").partition(", or these keys")[0])
        read = with_changes(given, [one for one in options if one != "--set"]).preprocessing
        image = torch.rand(1, 3, 4, 5) * 255
        one, other = (Preprocessor(section, torch.device("cpu"))(image) for section in (read, entry.section))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_keys_that_have_to_go_are_named() -> None:
    given, plain = Description("given", replace(IMAGENET, color="bgr")), Description("plain", PreprocessingSection())
    scaled = Description("scaled", PreprocessingSection(scale=1.0))
    assert scaled.in_place_of(given) == (
        "give --set color=rgb --set scale=1.0, or these keys under [preprocessing] in the model's TOML file, and leave "
        "out mean and std"
    )
    assert plain.in_place_of(scaled) == "leave out scale"


def test_the_distance_is_nearly_zero_where_the_norms_are_of_this_input(blobs: list[ImageSource]) -> None:
    segmenter = segmenter_of(nn.Identity())
    images = pictures(segmenter, blobs)
    inputs = torch.cat([segmenter.preprocessor(image) for image in images])
    segmenter = segmenter_of(trained_on(inputs))
    right = try_description(segmenter, IMAGENET, images, copies=True)
    assert right.distance is not None
    assert right.distance < 0.01
    assert right.agreement is not None
    for section in (PreprocessingSection(scale=1.0), PreprocessingSection(mean=(0.5,) * 3, std=(0.5,) * 3)):
        wrong = try_description(segmenter, section, images, copies=False)
        assert wrong.agreement is None
        assert wrong.farther(right) > 3


def test_norms_are_mixed_with_each_images_own(blobs: list[ImageSource], monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = segmenter_of(trained_on(torch.randn(2, 3, 40, 40)))
    images = pictures(segmenter, blobs)
    wrong = PreprocessingSection(scale=1.0)
    mixed = try_description(segmenter, wrong, images, copies=False)
    monkeypatch.setattr(descriptions, "NORM_WEIGHT", 1.0)
    own = try_description(segmenter, wrong, images, copies=False)
    # The second norm sees what the first one lets through: nearer to what it knows where that one gives way.
    assert mixed.distance is not None
    assert own.distance is not None
    assert mixed.distance < own.distance - 0.01


class Rounds(SilentMonitor):
    """Counts what is announced and what is done, round by round."""

    def __init__(self) -> None:
        self.total: list[int] = []
        self.done: list[int] = []

    def start(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:
        assert unit == "descriptions"
        self.total.append(total)
        self.done.append(done)

    def advance(self, count: int) -> None:
        self.done[-1] += count


def test_trying_leaves_the_network_as_it_was(blobs: list[ImageSource]) -> None:
    network = trained_on(torch.randn(2, 3, 20, 20))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    segmenter = segmenter_of(network)
    monitor = Rounds()
    compare_descriptions(segmenter, blobs, monitor)
    assert monitor.total[0] == 16  # eight normalisations in both colour orders
    assert monitor.done == monitor.total
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in network.modules())
    assert segmenter.preprocessor.section == IMAGENET


def test_agreement_is_with_the_mirrored_and_the_smaller_copy(blobs: list[ImageSource]) -> None:
    class ByPlace(nn.Module):
        """Class 0 on the left half, 1 on the right, whatever the image."""

        def forward(self, images: Tensor) -> Tensor:
            place = torch.linspace(-1, 1, images.shape[3]).expand(images.shape[0], 1, images.shape[2], -1)
            return torch.cat([-place, place], dim=1)

    segmenter = segmenter_of(ByPlace())
    fit = try_description(segmenter, IMAGENET, pictures(segmenter, blobs), copies=True)
    assert fit.distance is None
    assert fit.agreement == pytest.approx(0, abs=0.03)  # all of the smaller copy's pixels, none of the mirrored one's

    bright = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        bright.weight.copy_(torch.tensor([[1.0], [-1.0]])[..., None, None].expand(2, 3, 1, 1))
    segmenter = segmenter_of(bright)
    fit = try_description(segmenter, IMAGENET, pictures(segmenter, blobs), copies=True)
    assert fit.agreement is not None
    assert 0.9 < fit.agreement < 1


def test_pictures_are_resized_as_described_and_cut_in_the_middle(blobs: list[ImageSource]) -> None:
    section = replace(IMAGENET, size=(192, 256))
    segmenter = segmenter_of(nn.Identity(), section)
    whole = pictures(segmenter, blobs)[0]
    assert whole.shape == (1, 3, 192, 256)
    part = pictures(segmenter, blobs, 64 * 96)[0]
    height, width = part.shape[2:]
    assert height * width <= 1.3 * 64 * 96
    top, left = (192 - height) // 2, (256 - width) // 2
    torch.testing.assert_close(part, whole[..., top : top + height, left : left + width])


def test_images_are_taken_from_all_over() -> None:
    files = [PillowImage(Path(f"{index}.png"), str(index)) for index in range(9)]
    assert [file.key for file in spread(files, 3)] == ["1", "4", "7"]
    assert spread(files[:2], 3) == files[:2]


def test_norms_as_they_are_made_are_counted() -> None:
    batch, group = nn.BatchNorm2d(3), nn.GroupNorm(1, 4)
    network = nn.Sequential(batch, group, nn.LayerNorm(5), nn.Conv2d(3, 3, 1))
    assert untrained_norms(network) == (3, 3)
    with torch.no_grad():
        group.bias[2] = 0.1
        batch.running_mean = torch.full((3,), 0.1)
    assert untrained_norms(network) == (1, 3)
    assert untrained_norms(nn.Conv2d(3, 3, 1)) == (0, 0)


def test_norms_late_in_the_network_are_told(blobs: list[ImageSource]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 3, 1), trained_on(torch.randn(2, 3, 30, 30)))
    late = compare_descriptions(segmenter_of(network), blobs).late
    before = 3 * 64 * 9 + 64 + 64 * 3 + 3 + 3 * 8 * 9 + 8
    total = sum(one.numel() for one in network.parameters())
    assert late == pytest.approx(before / total)


def test_pixels_without_data_are_as_the_mean_of_the_others(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    pixels[:, :12, 3] = 0
    pixels[:, 12:, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    made = segmenter_of(nn.Conv2d(3, 4, 1))
    (picture,) = pictures(made, find_images(tmp_path / "a.png"))
    shown = picture[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown[:, 12:], pixels[:, 12:, :3])
    np.testing.assert_allclose(shown[:, :12] - pixels[:, 12:, :3].mean(axis=(0, 1)), 0, atol=1)
    (tmp_path / "masks").mkdir()
    Image.new("L", (30, 20)).save(tmp_path / "masks" / "a.png")
    assert pictures(made, masked(find_images(tmp_path / "a.png"), tmp_path / "masks")) == []
