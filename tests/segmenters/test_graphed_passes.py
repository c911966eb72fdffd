import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from blda_cli.data.images import find_images
from blda_cli.segmenters.graphed_passes import MOST_SHAPES, GraphedPasses, _obstacle
from blda_cli.segmenters.network import NetworkSegmenter, network_segmenter
from blda_cli.segmenters.norms import ObservedNorms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import NetworkSection, PreprocessingSection, SegmenterSpec
from tests.recorded_graphs import RecordedMemory, use_recorded_graphs

HERE = "blda_cli.segmenters.graphed_passes"


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    use_recorded_graphs(monkeypatch, HERE)
    monkeypatch.setattr("blda_cli.segmenters.base._MANY", 9)


class Counted(nn.Module):
    """Counts how often it is called from Python."""

    calls: list[int]

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(5)
        norm.running_mean, norm.running_var = torch.rand(5), torch.rand(5) + 0.5
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, 1, 1), norm, nn.ReLU(), nn.Conv2d(5, 4, 3, 1, 1))
        self.calls = []
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        scores: Tensor = self.layers(images)
        return scores


class Scaled:
    def __init__(self, network: Counted, factor: int) -> None:
        self.network, self.factor = network, factor

    def __call__(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores * self.factor


def inputs(count: int, size: tuple[int, int] = (12, 16)) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield torch.randn(1, 3, *size, generator=generator)


def run_both(network: Counted, count: int = 8, passes: GraphedPasses | None = None) -> GraphedPasses:
    """Every pass gives exactly what a twin gives that is called as it is, and its result stays."""
    twin, passes = copy.deepcopy(network), passes or GraphedPasses()
    results, expected = [], []
    with torch.no_grad():
        for images in inputs(count):
            results.append(passes(network, images.clone(), network))
            twin.calls = network.calls[:-1]  # a capture is a call, too
            expected.append(twin(images))
    for one, other in zip(results, expected, strict=True):
        assert torch.equal(one, other)
    return passes


def test_the_third_pass_is_captured_and_from_the_fifth_on_python_does_nothing() -> None:
    network = Counted()
    passes = run_both(network, 10)
    assert passes.refused is None
    assert len(network.calls) == 2 + 1 + 2  # as it is, captured, to compare with


def test_shapes_take_turns_and_are_bounded() -> None:
    network, twin, passes = Counted(), Counted(), GraphedPasses()
    sizes = [(8 + size, 10) for size in range(MOST_SHAPES + 3)]
    with torch.no_grad():
        for images in zip(*(inputs(6, size) for size in sizes), strict=True):
            for one in images:
                assert torch.equal(passes(network, one, network), twin(one))
    assert passes.refused is None
    assert len(network.calls) == MOST_SHAPES * 5 + 3 * 6


def test_counts_of_shapes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{HERE}._MOST_COUNTED", 4)
    network, passes = Counted(), GraphedPasses()
    with torch.no_grad():
        for size in (50, *[50] * 5, *range(1, 30), 50):
            images = torch.ones(1, 3, size, 4)
            assert torch.equal(passes(network, images, network), network(images))
    assert len(passes._repeated) <= 4
    assert passes._graphs == 1


def test_where_no_shape_comes_again_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{HERE}._MOST_COUNTED", 4)
    network, passes = Counted(), GraphedPasses()
    with torch.no_grad():
        for size in range(1, 8):
            passes(network, torch.ones(1, 3, size, 4), network)
    assert passes.refused == "the inputs have too many shapes"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_setting_is_another_pass(dtype: torch.dtype) -> None:
    network, passes = Counted(), GraphedPasses()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is not torch.float32):
        for images in inputs(8):
            for factor in (1, 2):
                scores = passes(network, images, Scaled(network, factor), factor)
                assert scores.dtype is dtype
                assert torch.equal(scores, network(images) * factor)
    assert passes.refused is None


def test_mixed_precision_keeps_no_converted_weights() -> None:
    """What autocast converted in one region is gone in the next, where weights may have changed."""
    network, passes = Counted(), GraphedPasses()
    for number, images in enumerate(inputs(10)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            network(torch.zeros(1, 3, 8, 8))  # fills autocast's cache, as another view of the image does
            scores = passes(network, images, network)
            expected = network(images)
        assert torch.equal(scores, expected), number
        with torch.no_grad():
            network.layers[0].weight.mul_(1.1)  # type: ignore[operator]
    assert passes.refused is None


CHANGES: dict[str, Callable[[Any], None]] = {
    "weights in place": lambda layers: layers[0].weight.data.mul_(1.5),
    "norms in place": lambda layers: layers[1].running_mean.add_(1),
    "weights loaded": lambda layers: layers.load_state_dict({k: v + 1 for k, v in layers.state_dict().items()}),
    "another parameter": lambda layers: setattr(layers[0], "weight", nn.Parameter(layers[0].weight + 1)),
    "another buffer": lambda layers: setattr(layers[1], "running_var", layers[1].running_var + 1),
    "other data": lambda layers: setattr(layers[3].bias, "data", layers[3].bias.data + 1),
    "another module": lambda layers: layers.__setitem__(2, nn.Tanh().eval()),
    "one module more": lambda layers: layers.append(nn.Tanh().eval()),
    "another attribute": lambda layers: setattr(layers[1], "eps", layers[1].eps + 0.5),
    "another function": lambda layers: setattr(layers[2], "forward", lambda values: values.tanh()),
}


IN_PLACE = ("weights in place", "norms in place", "weights loaded")


@pytest.mark.parametrize("change", CHANGES)
def test_changes_from_outside_are_seen(change: str) -> None:
    network, passes = Counted(), GraphedPasses()
    with torch.no_grad():
        for number, images in enumerate(inputs(20)):
            if number in (3, 4, 8):  # while it is checked, and later
                CHANGES[change](network.layers)
            before = len(network.calls)
            scores = passes(network, images, network)
            if number == 8:  # a graph finds values in place alone
                assert (len(network.calls) == before) == (change in IN_PLACE)
            assert torch.equal(scores, network(images)), number
    assert passes.refused is None
    assert len(network.calls) < 20 + 20  # replayed all the same


class Waits(Counted):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (2.0 if float(images.mean()) > 0 else 1.0)


class Caught(Waits):
    def forward(self, images: Tensor) -> Tensor:
        try:
            return super().forward(images)
        except Exception:
            return images[:, :1].expand(-1, 4, -1, -1)


class Masks(Counted):
    def forward(self, images: Tensor) -> Tensor:
        scores = super().forward(images)
        scores[scores > 0] = 0.5
        return scores


class Selects(Counted):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + images[images > 0].mean()


class Draws(Counted):
    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(super().forward(images), 0.0) + torch.zeros(4, 1, 1).normal_(0, 0)


class Counts(Counted):
    """State that Python keeps where nothing shows it."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + len(self.calls)


class PythonsRandom(Counted):
    def forward(self, images: Tensor) -> Tensor:
        generator = random.Random(len(self.calls))
        return super().forward(images) * generator.random()


class Attribute(Counted):
    step = 0

    def forward(self, images: Tensor) -> Tensor:
        self.step += 1
        return super().forward(images) * (1 + 1e-4 * self.step)


class Remembers(Counted):
    before: Any = None

    def forward(self, images: Tensor) -> Tensor:
        scores = super().forward(images)
        scores, self.before = scores if self.before is None else scores + 0.1 * self.before, scores
        return scores


class Cache(Counted):
    """Neither parameter nor buffer, in a place of which nothing is known."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"grid": torch.rand(1, 4, 1, 1)}

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.kept["grid"]


class ChangesBuffer(Counted):
    def __init__(self) -> None:
        super().__init__()
        self.level: Tensor
        self.register_buffer("level", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.level.lerp_(images.mean(), 0.1)
        return super().forward(images) + self.level


class OtherDevice(Counted):
    def forward(self, images: Tensor) -> Tensor:
        images.to("meta")
        return super().forward(images)


REFUSED = [
    (Waits, "waits for the device"),
    (Caught, "waits for the device"),
    (Masks, "waits for the device"),
    (Selects, "waits for the device"),
    (Draws, "draws random numbers"),
    (Counts, "other scores"),
    (PythonsRandom, "other scores"),
    (Remembers, None),
    (Attribute, None),
    (Cache, "neither a parameter nor a buffer"),
    (ChangesBuffer, "changes its own"),
    (OtherDevice, "copies between devices"),
]


@pytest.mark.parametrize(("kind", "why"), REFUSED)
def test_networks_that_a_graph_does_not_replay_are_run_as_they_are(kind: type[Counted], why: str | None) -> None:
    network = kind()
    passes = run_both(network, 8)
    if why is None:  # what Python keeps in attributes changes from call to call, so that nothing is captured
        assert not passes._graphs
    else:
        assert why in str(passes.refused)
        assert passes._memory is None


def test_numbers_that_are_brought_to_the_device_are_an_obstacle() -> None:
    fresh = torch.ops.aten.lift_fresh.default
    assert _obstacle(fresh, [torch.zeros(2)], (), {}) is None
    assert "brings numbers" in str(_obstacle(fresh, [torch.zeros(2, device="meta")], (), {}))


class Attention(Counted):
    def forward(self, images: Tensor) -> Tensor:
        values = images.flatten(2).transpose(1, 2)
        seen = F.scaled_dot_product_attention(values, values, values).transpose(1, 2).unflatten(2, images.shape[2:])
        return super().forward(seen) + torch.arange(4)[:, None, None] * torch.tensor(0.5)


class InPlace(Counted):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.3))


class SavesSize(Counted):
    def forward(self, images: Tensor) -> Tensor:
        self.size = images.shape[2] + 1000, images.shape[3]
        return super().forward(images)


@pytest.mark.parametrize("kind", [Attention, InPlace, SavesSize])
def test_ordinary_habits_are_no_obstacle(kind: type[Counted]) -> None:
    network = kind()
    passes = run_both(network, 8)
    assert passes.refused is None
    assert passes._graphs == 1


def test_a_transformer_with_the_hooks_of_its_library() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 8}
    network = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=3, **sizes)).eval()
    passes = GraphedPasses()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for images in inputs(9, (32, 64)):
            scores = passes(network, images, lambda images: network(pixel_values=images).logits)
            assert torch.equal(scores, network(pixel_values=images).logits)
    assert passes.refused is None
    assert passes._graphs == 1


def test_a_size_that_is_kept_for_the_next_layer_is_not_mistaken() -> None:
    network, twin, passes = SavesSize(), SavesSize(), GraphedPasses()
    with torch.no_grad():
        for pair in zip(inputs(8, (10, 12)), inputs(8, (16, 8)), strict=True):
            for images in pair:
                assert torch.equal(passes(network, images, network), twin(images))


def test_hooks_see_every_pass() -> None:
    network, passes, seen = Counted(), GraphedPasses(), []
    with torch.no_grad():
        for number, images in enumerate(inputs(12)):
            if number == 6:
                handle = network.layers[0].register_forward_hook(lambda *_: seen.append(1))
            if number == 9:
                handle.remove()
            passes(network, images, network)
    assert len(seen) == 3
    assert passes._graphs == 1


def test_gradients_and_training_are_left_alone() -> None:
    network, passes = Counted(), GraphedPasses()
    for images in inputs(6):
        assert passes(network, images, network).requires_grad
    network.layers[1].train()
    with torch.no_grad():
        for images in inputs(6):
            passes(network, images, network)
    assert len(network.calls) == 12


class Full(RecordedMemory):
    def capture(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        raise MemoryError("a CUDA graph would take more memory than it leaves")


class Breaks(RecordedMemory):
    def capture(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        function(*inputs)
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.mark.parametrize("memory", [Full, Breaks])
def test_where_nothing_can_be_captured_nothing_is(
    memory: type[RecordedMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{HERE}.GraphMemory", memory)
    network = Counted()
    passes = run_both(network, 8)
    assert passes.refused is not None
    assert len(network.calls) == 8 + (memory is Breaks)


class Large(Counted):
    """Images of more rows find no memory while graphs are there."""

    passes: GraphedPasses

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] > 12 and self.passes._graphs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def test_graphs_make_room_for_larger_images() -> None:
    network, twin, passes = Large(), Counted(), GraphedPasses()
    object.__setattr__(network, "passes", passes)
    with torch.no_grad():
        for images in inputs(6):
            passes(network, images, network)
        assert passes._graphs == 1
        for images in inputs(6, (20, 16)):
            assert torch.equal(passes(network, images, network), twin(images))
    assert "out of memory" in str(passes.refused)


class KeepsLast(Counted):
    """Computes what depends on the size alone once, until an input has another size."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[torch.Size, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        if images.shape not in self.kept:
            self.kept.clear()
            self.kept[images.shape] = torch.linspace(0, 1, images.shape[3])
        return super().forward(images + self.kept[images.shape])


class ShortOfMemory(RecordedMemory):
    def capture(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        super().capture(function, *inputs)
        raise MemoryError("a CUDA graph would take more memory than it leaves")


def test_nothing_of_a_capture_that_failed_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{HERE}.GraphMemory", ShortOfMemory)
    network, twin, passes = KeepsLast(), KeepsLast(), GraphedPasses()
    with torch.no_grad():
        for pair in zip(inputs(4, (10, 12)), inputs(4, (16, 8)), strict=True):
            for images in pair:
                assert torch.equal(passes(network, images, network), twin(images))
    assert passes.refused == "the network keeps tensors that it made"


def segmenter_of(network: nn.Module, **preprocessing: Any) -> NetworkSegmenter:
    spec = SegmenterSpec(NetworkSection("python"), PreprocessingSection(**preprocessing))
    return network_segmenter(spec, network, torch.device("cpu"), {"kind": "python"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(9):
        pixels = generator.integers(20 * number, 20 * number + 60, (24, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize(
    "options",
    [
        InferenceOptions(),
        InferenceOptions(amp=True),
        InferenceOptions(scales=(0.5, 1.0, 1.5), flip=True, amp=True),
        InferenceOptions(slide=(16, 16), stride=(8, 8)),
        InferenceOptions(batch_size=2),
    ],
)
@pytest.mark.parametrize("ahead", [False, True])
def test_a_pass_over_images_gives_what_it_gives_without_graphs(
    folder: Path, options: InferenceOptions, weight: float, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Counted()
    segmenter, plain = (segmenter_of(one, multiple_of=32) for one in (network, Counted()))
    for made in (segmenter, plain):
        made.mix_norms(weight)
    batches = []
    for batch in segmenter.stream(find_images(folder), options, ahead=ahead):
        batches.append(batch.logits)
        assert segmenter._graphed is not None
        assert segmenter._graphed.refused is None
    graphed = len(network.calls)
    monkeypatch.setattr(f"{HERE}.available", lambda values: False)
    before = len(network.calls)
    expected = [batch.logits for batch in plain.stream(find_images(folder), options, ahead=ahead)]
    for one, other in zip(batches, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    list(segmenter.stream(find_images(folder), options))
    held = weight < 1 and options.slide is not None  # windows are normalised by the whole image, anew for each
    assert (graphed < len(network.calls) - before) == (options.batch_size == 1 and not held)
    assert segmenter._graphed is None  # and its memory is given back


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_padding_is_another_pass_where_norms_leave_it_out(folder: Path, weight: float) -> None:
    for number in range(0, 9, 2):
        with Image.open(folder / f"{number}.png") as image:
            image.crop((0, 0, 28, 24)).save(folder / f"{number}.png")
    network = Counted()
    segmenter, plain = segmenter_of(network, multiple_of=32), segmenter_of(Counted(), multiple_of=32)
    for made in (segmenter, plain):
        made.mix_norms(weight)
    before = len(network.calls)
    for number, batch in enumerate(segmenter.stream(find_images(folder), InferenceOptions())):
        array = torch.from_numpy(np.array(Image.open(folder / f"{number}.png")))[None]
        assert torch.allclose(batch.logits, plain.logits(array), atol=1e-5), number
    assert len(network.calls) - before == (5 if weight == 1 else 5 + 5)  # as many as it takes to replay one, or two


def test_norms_that_are_put_in_between_are_seen(folder: Path) -> None:
    network, twin = Counted(), Counted()
    segmenter, plain = segmenter_of(network), segmenter_of(twin)
    seen = 0
    for number, batch in enumerate(segmenter.stream(find_images(folder), InferenceOptions())):
        array = torch.from_numpy(np.array(Image.open(folder / f"{number}.png")))[None]
        assert torch.allclose(batch.logits, plain.logits(array), atol=1e-5), number
        if number in (3, 6):
            for norm in (network.layers[1], twin.layers[1]):
                norm.running_mean.add_(0.3)  # type: ignore[operator]
        if number == 7:
            for made in (segmenter, plain):
                made.mix_norms(0.2)
        seen += 1
    assert seen == 9


def test_watched_norms_and_training_copies_never_use_a_graph(folder: Path) -> None:
    network = Counted()
    segmenter = segmenter_of(network)
    with segmenter.observed_by(ObservedNorms(network)) as _:
        list(segmenter.stream(find_images(folder), InferenceOptions()))
    assert len(network.calls) == 9 + 1  # and once to count the classes
    trained = copy.deepcopy(network)
    with segmenter.repeating(), torch.no_grad():
        for images in inputs(8):
            segmenter.forward_logits(images, network=trained)
    assert len(trained.calls) == len(network.calls) + 8
    with segmenter.repeating():
        other = replace(segmenter, network=copy.deepcopy(network))
        for images in inputs(8):
            arrays = images.mul(30).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
            assert torch.equal(segmenter.logits(arrays), other.logits(arrays))


def test_few_images_are_run_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blda_cli.segmenters.base._MANY", 10)
    network = Counted()
    list(segmenter_of(network).stream(find_images(folder), InferenceOptions()))
    assert len(network.calls) == 1 + 9


def test_streams_that_take_turns(folder: Path) -> None:
    network = Counted()
    segmenter, files = segmenter_of(network), find_images(folder)
    pairs = zip(
        segmenter.stream(files, InferenceOptions()),
        segmenter.stream(files, InferenceOptions(scales=(0.5,))),
        strict=True,
    )
    plain = segmenter_of(Counted())
    for number, (one, other) in enumerate(pairs):
        array = torch.from_numpy(np.array(Image.open(folder / f"{number}.png")))[None]
        assert torch.allclose(one.logits, plain.logits(array), atol=1e-5)
        assert torch.allclose(other.logits, plain.logits(array, InferenceOptions(scales=(0.5,))), atol=1e-5)
    assert segmenter._graphed is None
