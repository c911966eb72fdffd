from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blda_cli.errors import BldaError
from blda_cli.segmenters.network import NetworkSegmenter, Port, network_segmenter
from blda_cli.segmenters.norms import ObservedNorms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.placement import Scaling, covered, extend, place, scaling_of
from blda_cli.segmenters.spec import ClassesSection, NetworkSection, PreprocessingSection, SegmenterSpec

NAMES = ("red", "green", "blue")


class Coded(nn.Module):
    """What a function makes of the images, of which each colour is a class."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(8 * images - 4)


def segmenter(
    function: Callable[[Tensor], Any], names: tuple[str, ...] | None = NAMES, traced: bool = False, **keys: Any
) -> NetworkSegmenter:
    """A segmenter of `Coded` with further keys of ``[segmenter]``, ``[preprocessing]`` and ``[classes]``."""
    sections: dict[Any, dict[str, Any]] = {NetworkSection: {}, PreprocessingSection: {}, ClassesSection: {}}
    for name, value in keys.items():
        section = next(one for one in sections if name in one.__dataclass_fields__)
        sections[section][name] = value
    spec = SegmenterSpec(
        NetworkSection("python", **sections[NetworkSection]),
        PreprocessingSection(**sections[PreprocessingSection]),
        ClassesSection(names, **sections[ClassesSection]),
    )
    network = Coded(function).eval()
    return network_segmenter(spec, network, torch.device("cpu"), {"kind": "python"}, port=Port(traced=traced))


@pytest.fixture
def image() -> Tensor:
    """Blocks of colours, ``[1, 48, 80, 3]``."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (6, 10), generator=generator).repeat_interleave(8, 0).repeat_interleave(8, 1)
    return (F.one_hot(ids, 3) * 200 + 20)[None].to(torch.uint8)


def ids_of(image: Tensor) -> Tensor:
    return image.argmax(dim=-1)


def predicted(made: NetworkSegmenter, image: Tensor) -> Tensor:
    return made.logits(image).argmax(dim=1)


@pytest.mark.parametrize("function", [
    lambda x: [-x, x],
    lambda x: {"p": x[:, [1, 2, 0]], "main": x, "boundary": x[:, :1]},
])  # fmt: skip
def test_of_two_outputs_the_head_is_run(image: Tensor, function: Callable[[Tensor], Any]) -> None:
    with pytest.raises(BldaError, match=r"several outputs that could be meant: .*\[1, 3, 48, 80\].*head ="):
        segmenter(function).logits(image)
    made = segmenter(function, head=1)
    assert torch.equal(predicted(made, image), ids_of(image))
    assert made.identity["head"] == 1
    pixels = image.permute(0, 3, 1, 2).float().requires_grad_()
    made.forward_logits(pixels).sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad > 0).all()  # of the head that is used


def test_channels_last_are_turned_round_with_names_or_without(image: Tensor) -> None:
    for names in (NAMES, None):
        made = segmenter(lambda x: x.permute(0, 2, 3, 1), names)
        assert len(made.classes) == 3
        assert torch.equal(predicted(made, image), ids_of(image))
        assert any("[N, H, W, C]" in note for note in made.notes)


@pytest.mark.parametrize("output", ["logits", "sigmoid"])
@pytest.mark.parametrize("shape", ["a channel", "no axis of channels"])
def test_one_channel_decides_between_two_classes(image: Tensor, output: Any, shape: str) -> None:
    def function(x: Tensor) -> Tensor:
        scores = x[:, :1] if output == "logits" else x[:, :1].sigmoid()
        return scores if shape == "a channel" else scores.squeeze(1)

    expected = (ids_of(image) == 0).long()
    for names, background in ((("rest", "red"), None), (("red",), "rest"), (None, None)):
        made = segmenter(function, names, output=output, background=background)
        assert len(made.classes) == 2
        assert torch.equal(predicted(made, image), expected)
    with pytest.raises(BldaError, match="one class leaves nothing to decide"):
        segmenter(function, ("red",), output=output)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_sigmoids_with_a_background(image: Tensor, place: int) -> None:
    names = ["red", "green"]
    names.insert(place, "rest")
    made = segmenter(lambda x: x[:, :2].sigmoid(), tuple(names), output="sigmoid", background="rest")
    assert made.classes.names == tuple(names)
    found = predicted(made, image)
    assert [names[index] for index in found.unique()] == [name for name in names if (found == names.index(name)).any()]
    for channel, name in enumerate(("red", "green", "rest")):
        assert torch.equal(found == names.index(name), ids_of(image) == channel)
    with pytest.raises(BldaError, match="background = 'rest' is for sigmoids"):
        segmenter(lambda x: x, tuple(names), output="probabilities", background="rest")


def test_a_margin_is_placed_and_not_stretched(image: Tensor) -> None:
    def function(x: Tensor) -> Tensor:
        return x[..., 5:-5, 5:-5]

    made = segmenter(function)
    inside = (slice(None), slice(5, -5), slice(5, -5))
    found = predicted(made, image)
    assert torch.equal(found[inside], ids_of(image)[inside])
    assert torch.equal(found[:, 0, 5:-5], ids_of(image)[:, 5, 5:-5])
    assert any("lacks a margin of 10 pixels" in note for note in made.notes)
    mirrored = segmenter(function, margin=10)
    assert torch.equal(predicted(mirrored, image), ids_of(image))


def test_a_margin_of_a_coarse_output_is_told_by_two_sizes(image: Tensor) -> None:
    made = segmenter(lambda x: F.avg_pool2d(x[..., 8:-8, 8:-8], 4))
    inside = (slice(None), slice(10, -10), slice(10, -10))
    agree = predicted(made, image)[inside] == ids_of(image)[inside]
    assert agree.float().mean() > 0.9
    assert torch.equal(predicted(made, image)[:, 20, 20], ids_of(image)[:, 20, 20])


def test_hooks_do_not_see_the_grey_images(image: Tensor) -> None:
    made = segmenter(lambda x: F.avg_pool2d(x[..., 8:-8, 8:-8], 4))
    seen = []
    made.module.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape)))
    made.logits(image)
    assert seen == [(1, 3, 48, 80)]


@pytest.mark.parametrize("multiple", [2, 8, 32])
def test_sides_that_do_not_fit_are_told_with_the_multiple_that_does(image: Tensor, multiple: int) -> None:
    def skip(x: Tensor) -> Tensor:
        small = F.max_pool2d(x, multiple)
        return x + F.interpolate(small, scale_factor=multiple)

    odd = image[:, :45, :75]
    with pytest.raises(BldaError, match=f"multiples of {multiple} work: set multiple_of = {multiple} under"):
        segmenter(skip).logits(odd)
    drops = segmenter(lambda x: F.interpolate(F.avg_pool2d(x, multiple), scale_factor=multiple))
    with pytest.raises(BldaError, match=f"drops what is left over of a side; multiple_of = {multiple}"):
        drops.logits(odd)


def test_a_constant_output_is_told_and_a_size_asked_for(image: Tensor) -> None:
    def constant(x: Tensor) -> Tensor:
        return F.interpolate(x, (32, 64))

    with pytest.raises(BldaError, match=r"output is 32x64 whatever the size of its input: .* size = \[32, 64\]"):
        segmenter(constant).logits(image)
    half = image.repeat_interleave(2, 1)[:, :64].repeat_interleave(2, 2)[:, :, :128]  # of which 32x64 is a half
    with pytest.raises(BldaError, match="whatever the size"):
        segmenter(constant, traced=True).logits(half)
    sized = segmenter(constant, traced=True, size=(32, 64))
    assert sized.logits(image).shape == (1, 3, 48, 80)


def test_what_no_rule_explains_is_refused(image: Tensor) -> None:
    with pytest.raises(BldaError, match="48x40 for an input of 48x80, which is neither a fraction"):
        segmenter(lambda x: x[..., :40]).logits(image)


def test_a_batch_that_is_fixed_is_named(image: Tensor) -> None:
    with pytest.raises(BldaError, match=r"1 images for 2.* --batch-size 1"):
        segmenter(lambda x: x[:1]).logits(image.repeat(2, 1, 1, 1))


def test_rules_are_told_from_two_sizes() -> None:
    assert scaling_of(((256, 320), (384, 448))) == Scaling(stride=1)
    assert scaling_of(((64, 80), (96, 112))) == Scaling(stride=4)
    assert scaling_of(((252, 316), (380, 444))) == Scaling(stride=1, margin=4)
    assert scaling_of(((33, 41), (49, 57))) == Scaling(stride=8, margin=-8)
    assert scaling_of(((512, 512), (512, 512))).constant
    assert not scaling_of(((18, 22), (27, 32))).unpadded  # whole patches of 14


def test_placing_mirrors_and_centres() -> None:
    images = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.equal(extend(images, 2), F.pad(images, (1, 1, 1, 1), mode="reflect"))
    assert extend(images, 12).shape == (1, 1, 16, 18)  # more than the image has to mirror
    inner = images[..., 1:-1, 1:-1]
    placed = place(inner, Scaling(stride=1, margin=2), (4, 6), (4, 6), (4, 6))
    assert torch.equal(placed, F.pad(inner, (1, 1, 1, 1), mode="replicate"))


def test_covered_accepts_what_fractions_explain() -> None:
    assert covered((12, 20), (48, 80), None) == (48, 80)
    assert covered((64, 96), (48, 80), None) == (64, 96)
    assert covered((48, 80), (48, 80), Scaling(constant=True)) == (48, 80)


@pytest.mark.parametrize("last", [False, True])
def test_a_map_with_as_many_rows_and_columns_as_classes(image: Tensor, last: bool) -> None:
    """An image of other sides says whether the channels come first."""

    def eighth(x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 8)
        return pooled.permute(0, 2, 3, 1) if last else pooled

    square = image[:, :24, 24:48]
    made = segmenter(eighth)
    expected = F.interpolate(
        8 * F.avg_pool2d(square.permute(0, 3, 1, 2).float() / 255, 8) - 4, (24, 24), mode="bilinear"
    )
    torch.testing.assert_close(made.logits(square), expected)
    assert any("turned round" in note for note in made.notes) == last
    torch.testing.assert_close(made.logits(square.flip(1)), expected.flip(2))


def test_of_one_size_pytorchs_order_is_taken_and_others_are_asked(image: Tensor) -> None:
    def eighth(x: Tensor) -> Tensor:
        assert x.shape[2:] == (24, 24)
        return F.avg_pool2d(x, 8)

    square = image[:, :24, 24:48]
    made = segmenter(eighth)
    assert made.logits(square).shape == (1, 3, 24, 24)
    other = segmenter(eighth)
    other.network = lambda x: eighth(x)  # no module, as of another framework
    with pytest.raises(BldaError, match=r"for an input of 24x24: \[N, C, H, W\] or \[N, H, W, C\]"):
        other.logits(square)


def test_copies_at_other_scales_are_padded_where_the_images_themselves_fit(image: Tensor) -> None:
    def halves(x: Tensor) -> Tensor:
        return x + F.interpolate(F.max_pool2d(x, 4), scale_factor=4)

    views = InferenceOptions(scales=(0.6, 1.0), flip=True)  # 29x48, which is no multiple of 4
    made, told = segmenter(halves), segmenter(halves, multiple_of=4)
    assert torch.equal(made.logits(image, views), told.logits(image, views))
    assert [note for note in made.notes if note not in told.notes] == [
        "resized copies of the images, which choose the norms' weight or are averaged as views, are padded to "
        "multiples of 4: the network fails on 29x48 (--set multiple_of=4 says so)"
    ]
    with pytest.raises(BldaError, match=r"set multiple_of = 4 under \[preprocessing\], or give --set multiple_of=4"):
        made.logits(image[:, :45])  # an image itself


def test_the_multiple_that_a_network_needs_is_found() -> None:
    def skip(x: Tensor) -> Tensor:
        return x + F.interpolate(F.max_pool2d(x, 4), scale_factor=4)

    def drops(x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(x, 8), scale_factor=8)

    assert segmenter(skip).multiple_needed((48, 80)) == 4
    assert segmenter(drops).multiple_needed((48, 80)) == 8
    assert segmenter(skip, multiple_of=4).multiple_needed((48, 80)) is None
    assert segmenter(lambda x: F.avg_pool2d(x, 4)).multiple_needed((48, 80)) is None


def test_a_failed_attempt_leaves_no_trace_in_observed_norms(image: Tensor) -> None:
    def skip(x: Tensor) -> Tensor:
        return x + F.interpolate(F.max_pool2d(x, 4), scale_factor=4)

    counts = []
    for made in (segmenter(skip), segmenter(skip, multiple_of=4)):
        made.network = nn.Sequential(nn.BatchNorm2d(3), made.module).eval()
        norms = ObservedNorms(made.module)
        with made.observed_by(norms):
            made.logits(image, InferenceOptions(scales=(0.6,)))
        counts.append(norms.distance)
    assert counts[0] == counts[1]
