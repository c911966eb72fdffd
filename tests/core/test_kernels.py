"""Every implementation of every kernel against the formula in float64, and against itself on divided data.

``TRITON_INTERPRET=1`` runs the CUDA kernels on the CPU, slowly, where triton is installed.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blda_cli.core import kernels

LIMIT, B = 16.0, 64


class Implementation(NamedTuple):
    kernels: ModuleType
    device: torch.device


@pytest.fixture(scope="module", params=["torch-cpu", "numba-cpu", "torch-cuda", "triton-cuda"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    name, device = request.param.split("-")
    if device == "cuda" and not torch.cuda.is_available():
        if name != "triton" or os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("needs a CUDA device")
        device = "cpu"
    if name != "torch":
        pytest.importorskip(name)
    return Implementation(import_module(f"blda_cli.core.kernels.{name}_kernels"), torch.device(device))


def drawn(num_classes: int, pixels: int, seed: int = 0, images: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(images, num_classes, pixels, generator=random) * 4).clamp(-15.9, 15.9)


def shifts_of(num_classes: int, bins: int = B, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(num_classes, num_classes, bins, generator=random).cumsum(dim=2) / 3


def bins_of(logits: Tensor) -> Tensor:
    return ((logits.double() + LIMIT) / (2 * LIMIT / B)).floor().long().clamp(0, B - 1)


def scores_of(logits: Tensor, shifts: Tensor) -> Tensor:
    """``f_c + Δ[c, c] − log Σ_l exp(f_l + Δ[c, l])`` in float64, shifts ``[C, C, B]``."""
    channels = torch.arange(logits.shape[1])[:, None]
    values = logits.double()
    index = bins_of(logits) if shifts.shape[2] > 1 else torch.zeros_like(logits, dtype=torch.int64)
    scores = []
    for hypothesis, table in enumerate(shifts.double()):
        shifted = values + table[channels, index]
        scores.append(shifted[:, hypothesis] - shifted.logsumexp(dim=1))
    return torch.stack(scores, dim=1)


def assert_wins(ids: Tensor, scores: Tensor, tolerance: float = 1e-4, share: float = 0.999) -> None:
    """The chosen class has the highest score, but for ties within rounding."""
    assert ids.dtype == (torch.uint8 if scores.shape[1] <= 256 else torch.int16)
    ids = ids.cpu().long()
    behind = scores.amax(dim=1) - scores.gather(1, ids.unsqueeze(1)).squeeze(1)
    assert behind.max() <= tolerance
    assert (ids == scores.argmax(dim=1)).double().mean() >= share


def counts_of(
    implementation: Implementation, logits: Tensor, labels: Tensor | None, counts: Tensor | None = None
) -> Tensor:
    """Hard counts, or soft ones without labels."""
    num_classes = logits.shape[1]
    device = implementation.device
    counts = torch.zeros(num_classes, num_classes, B, dtype=torch.float64) if counts is None else counts
    counts = counts.to(device)
    if labels is None:
        implementation.kernels.count_cells_soft(counts, logits.to(device), LIMIT)
    else:
        implementation.kernels.count_cells(counts, logits.to(device), labels.to(device), LIMIT)
    return counts.cpu()


SIZES = [(1, 5), (2, 1), (3, 700), (19, 1500), (33, 600), (150, 300), (256, 40), (300, 40)]


@pytest.mark.parametrize(("num_classes", "pixels"), SIZES)
def test_argmax(implementation: Implementation, num_classes: int, pixels: int) -> None:
    if not hasattr(implementation.kernels, "argmax"):
        pytest.skip("torch's is used")
    logits = drawn(num_classes, pixels).round()  # many ties
    logits[0] = 0  # every class equals every other
    ids = implementation.kernels.argmax(logits.to(implementation.device)).cpu()
    assert ids.dtype == (torch.uint8 if num_classes <= 256 else torch.int16)
    highest = logits == logits.amax(dim=1, keepdim=True)
    first = highest.long().cumsum(dim=1).mul(highest).eq(1).long().argmax(dim=1)
    assert torch.equal(ids.long(), first)


@pytest.mark.parametrize(("num_classes", "pixels"), SIZES)
@pytest.mark.parametrize("label_type", [torch.uint8, torch.int16, torch.int64])
def test_hard_counts(implementation: Implementation, num_classes: int, pixels: int, label_type: torch.dtype) -> None:
    logits = drawn(num_classes, pixels)
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, num_classes + 1, (2, pixels), generator=random)
    labels[torch.rand(2, pixels, generator=random) < 0.1] = 255 if label_type is torch.uint8 else -1
    labels = labels.to(label_type).long()  # a byte holds 256 classes at most
    expected = torch.zeros(num_classes, num_classes, B, dtype=torch.float64)
    index = bins_of(logits)
    for channel in range(num_classes):
        kept = (labels >= 0) & (labels < num_classes)
        flat = (labels * B + index[:, channel])[kept]
        expected[:, channel] = torch.bincount(flat, minlength=num_classes * B).view(num_classes, B)
    assert torch.equal(counts_of(implementation, logits, labels.to(label_type)), expected)


@pytest.mark.parametrize(("num_classes", "pixels"), SIZES)
def test_soft_counts(implementation: Implementation, num_classes: int, pixels: int) -> None:
    logits = drawn(num_classes, pixels)
    counts = counts_of(implementation, logits, None) / kernels.SOFT_UNIT
    assert torch.equal(counts, counts.round())
    expected = torch.zeros(num_classes, num_classes, B, dtype=torch.float64)
    probabilities = torch.softmax(logits.double(), dim=1)
    weights = probabilities.div(kernels.SOFT_UNIT).round()
    for channel, index in enumerate(bins_of(logits).unbind(dim=1)):
        expected[:, channel].index_add_(1, index.flatten(), weights.movedim(1, 0).flatten(1))
    # A probability within float32's error of half a unit may round the other way.
    near = (probabilities / kernels.SOFT_UNIT).frac().sub(0.5).abs() < 0.3
    assert (counts - expected).abs().sum() <= 1.2 * near.sum() * num_classes
    assert (counts - expected).abs().max() <= max(2, pixels / 50)


@pytest.mark.parametrize("soft", [False, True])
@given(cut=st.integers(1, 1299), classes=st.integers(1, 40), seed=st.integers(0, 2**31))
@example(cut=1, classes=19, seed=0)
@example(cut=423, classes=11, seed=423227)
@settings(deadline=None, max_examples=15)
def test_counts_of_halves_add_up_bit_for_bit(
    implementation: Implementation, soft: bool, cut: int, classes: int, seed: int
) -> None:
    logits = drawn(classes, 1300, seed)
    labels = None if soft else logits.argmax(dim=1)
    whole = counts_of(implementation, logits, labels)
    first = counts_of(implementation, logits[:, :, :cut], None if labels is None else labels[:, :cut])
    both = counts_of(implementation, logits[:, :, cut:], None if labels is None else labels[:, cut:], first)
    assert torch.equal(both, whole)


@pytest.mark.parametrize("num_classes", [1, 2, 11, 19, 64, 150, 256, 300])
def test_soft_counts_of_single_pixels_add_up_bit_for_bit(implementation: Implementation, num_classes: int) -> None:
    pixels = 37 if num_classes < 100 else 3
    logits = drawn(num_classes, pixels, images=1)
    total = torch.zeros(num_classes, num_classes, B, dtype=torch.float64)
    for pixel in range(pixels):
        total = counts_of(implementation, logits[:, :, pixel : pixel + 1], None, total)
    assert torch.equal(total, counts_of(implementation, logits, None))
    by_channel = total.sum(dim=2)
    assert torch.equal(by_channel, by_channel[:, :1].expand_as(by_channel))


def test_counting_is_exact_beyond_what_a_chunk_holds(implementation: Implementation) -> None:
    pixels = 70_000 if implementation.device.type == "cpu" else 1_000_000
    logits = torch.tensor([9.0, -9.0]).view(1, 2, 1).expand(1, 2, pixels).contiguous()
    certain = torch.softmax(logits[0, :, 0].double(), dim=0).div(kernels.SOFT_UNIT).round() * kernels.SOFT_UNIT
    counts = counts_of(implementation, logits, None)
    assert torch.equal(counts.sum(dim=2), torch.stack([certain, certain], dim=1) * pixels)
    assert counts[0, 0, bins_of(torch.tensor(9.0))] == certain[0] * pixels


@pytest.mark.parametrize(("num_classes", "pixels"), SIZES)
def test_quantile_form(implementation: Implementation, num_classes: int, pixels: int) -> None:
    logits, shifts = drawn(num_classes, pixels) * 1.3, shifts_of(num_classes)  # some logits beyond the axis
    device = implementation.device
    factors = kernels.quantile_factors(shifts).to(device)
    ids = implementation.kernels.align_quantile(logits.to(device), factors, LIMIT)
    assert_wins(ids, scores_of(logits, shifts))


@pytest.mark.parametrize(("num_classes", "pixels"), SIZES)
def test_location_form(implementation: Implementation, num_classes: int, pixels: int) -> None:
    if not hasattr(implementation.kernels, "align_location"):
        pytest.skip("torch's is used")
    logits, shifts = drawn(num_classes, pixels), 3 * shifts_of(num_classes, 1)
    device = implementation.device
    ids = implementation.kernels.align_location(logits.to(device), shifts[..., 0].to(device))
    assert_wins(ids, scores_of(logits, shifts))


@pytest.mark.parametrize(("num_classes", "pixels"), SIZES)
def test_offset_form(implementation: Implementation, num_classes: int, pixels: int) -> None:
    if not hasattr(implementation.kernels, "align_offset"):
        pytest.skip("torch's is used")
    logits, offsets = drawn(num_classes, pixels), shifts_of(num_classes, 1)[0, :, 0]
    device = implementation.device
    ids = implementation.kernels.align_offset(logits.to(device), offsets.to(device))
    assert_wins(ids, (logits + offsets[:, None]).double())


def test_shifts_near_the_widest_that_are_tabulated(implementation: Implementation) -> None:
    logits, shifts = drawn(5, 900) * 3, shifts_of(5)
    shifts *= 63 / (shifts.flatten(1).amax(dim=1) - shifts.flatten(1).amin(dim=1)).max()
    device = implementation.device
    factors = kernels.quantile_factors(shifts).to(device)
    ids = implementation.kernels.align_quantile(logits.to(device), factors, LIMIT)
    # Where several hypotheses are all but certain, their scores differ by less than float32 can say.
    assert_wins(ids, scores_of(logits, shifts), 1e-5, share=0.95)


@given(cut=st.integers(1, 1299), classes=st.integers(2, 21), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=15)
def test_a_pixels_class_does_not_depend_on_its_neighbours(
    implementation: Implementation, cut: int, classes: int, seed: int
) -> None:
    logits = drawn(classes, 1300, seed).to(implementation.device)
    factors = kernels.quantile_factors(shifts_of(classes)).to(implementation.device)
    align = implementation.kernels.align_quantile
    whole = align(logits, factors, LIMIT)
    parts = [align(logits[:, :, :cut], factors, LIMIT), align(logits[:, :, cut:], factors, LIMIT)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("num_classes", [1, 19, 65])
@pytest.mark.parametrize("layout", ["float16", "bfloat16", "float64", "channels last", "strided"])
def test_other_precisions_and_layouts(implementation: Implementation, layout: str, num_classes: int) -> None:
    device = implementation.device
    logits = drawn(num_classes, 12 * 16).bfloat16().float()  # exact in all of them
    match layout:
        case "channels last":
            shaped = logits.view(2, num_classes, 12, 16)
            other = shaped.contiguous(memory_format=torch.channels_last).flatten(2)
        case "strided":
            other = torch.stack([logits, -logits], dim=3)[..., 0]
        case "float16":
            logits = logits.half().float()
            other = logits.half()
        case _:
            other = logits.to(getattr(torch, layout))
    assert num_classes == 1 or other.dtype != logits.dtype or other.stride() != logits.stride()
    labels = logits.argmax(dim=1)
    for soft in (False, True):
        expected = counts_of(implementation, logits, None if soft else labels)
        assert torch.equal(counts_of(implementation, other, None if soft else labels), expected)
    shifts = shifts_of(num_classes)
    arguments: dict[str, tuple[Any, ...]] = {
        "argmax": (),
        "align_offset": (shifts[0, :, 0].contiguous().to(device),),
        "align_location": (3 * shifts[..., 0].to(device),),
        "align_quantile": (kernels.quantile_factors(shifts).to(device), LIMIT),
    }
    for name, more in arguments.items():
        align = getattr(implementation.kernels, name, None)
        if align is not None:
            assert torch.equal(align(other.to(device), *more), align(logits.to(device), *more)), name
    if hasattr(implementation.kernels, "argmax"):
        assert torch.equal(implementation.kernels.argmax(other.to(device)).cpu().long(), labels)


def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    numba_kernels = pytest.importorskip("blda_cli.core.kernels.numba_kernels")
    monkeypatch.setattr(numba_kernels, "_TASK", 512)
    logits, factors = drawn(5, 3000), kernels.quantile_factors(shifts_of(5))
    results = []
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            counts = torch.zeros(5, 5, B, dtype=torch.float64)
            numba_kernels.count_cells_soft(counts, logits, LIMIT)
            numba_kernels.count_cells(counts, logits, logits.argmax(dim=1), LIMIT)
            results.append((counts, numba_kernels.align_quantile(logits, factors, LIMIT)))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(one, several) for one, several in zip(*results, strict=True))


def test_the_fast_kernels_are_chosen_where_they_are_installed() -> None:
    numba_kernels = pytest.importorskip("blda_cli.core.kernels.numba_kernels")
    logits = drawn(3, 10)
    assert kernels._choose("align_quantile", logits) is numba_kernels.align_quantile
    assert kernels._choose("align_location", logits) is kernels.torch_kernels.align_location


@pytest.fixture
def selection(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The choice of kernels, made anew in the test and after it."""
    monkeypatch.delenv("BLDA_KERNELS", raising=False)
    kernels._fast.cache_clear()
    yield monkeypatch
    kernels._fast.cache_clear()


def test_without_the_extra_torch_does_it_all(selection: pytest.MonkeyPatch) -> None:
    selection.setattr(kernels, "_FAST", {"cpu": "absent_kernels"})
    assert kernels._choose("argmax", drawn(3, 10)) is kernels.torch_kernels.argmax


@pytest.mark.parametrize("kernel", ["argmax", "count_cells", "align_quantile"])
def test_the_environment_asks_for_torch(selection: pytest.MonkeyPatch, kernel: str) -> None:
    selection.setenv("BLDA_KERNELS", "torch")
    assert kernels._choose(kernel, drawn(3, 10)) is getattr(kernels.torch_kernels, kernel)


def test_an_unknown_name_in_the_environment_is_refused(selection: pytest.MonkeyPatch) -> None:
    selection.setenv("BLDA_KERNELS", "cuda")
    with pytest.raises(ValueError, match=r"BLDA_KERNELS=cuda .* torch or triton"):
        kernels.argmax(drawn(3, 10))


class _OnCuda(Tensor):
    """Says that it is on a CUDA device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def test_triton_is_chosen_on_cuda_once_it_has_run_there(selection: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []
    module = ModuleType("triton_kernels")
    module.argmax = lambda logits: tried.append(logits)  # type: ignore[attr-defined]
    selection.setattr(kernels, "import_module", lambda name: module)
    selection.setattr(torch, "zeros", lambda *shape, device: device)
    for _ in range(2):
        assert kernels._choose("argmax", drawn(3, 10).as_subclass(_OnCuda)) is module.argmax
    assert tried == [torch.device("cuda")]


def test_where_triton_cannot_compile_torch_does_it_unless_triton_is_asked_for(selection: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise RuntimeError("Failed to find C compiler")

    selection.setattr(kernels, "import_module", broken)
    logits = drawn(3, 10).as_subclass(_OnCuda)
    assert kernels._choose("argmax", logits) is kernels.torch_kernels.argmax
    selection.setenv("BLDA_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="C compiler"):
        kernels._choose("argmax", logits)
    # What is asked for on CUDA changes nothing on a CPU.
    assert kernels._choose("align_location", drawn(3, 10)) is kernels.torch_kernels.align_location


class Peak(TorchDispatchMode):
    """The most memory that tensors made within ``with`` take at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._live: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            StorageWeakRef(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)
        }
        for made in (one.untyped_storage() for one in tree_leaves(result) if isinstance(one, Tensor)):
            if StorageWeakRef(made) not in given:
                self._live[StorageWeakRef(made)] = made.nbytes()
        self._live = {place: size for place, size in self._live.items() if not place.expired()}
        self.bytes = max(self.bytes, sum(self._live.values()))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "kernel", ["align_offset", "align_location", "align_quantile", "count_cells", "count_cells_soft"]
)
def test_on_a_gpu_blocks_are_as_large_as_half_the_logits_memory_allows(
    monkeypatch: pytest.MonkeyPatch, kernel: str, dtype: torch.dtype
) -> None:
    torch_kernels = kernels.torch_kernels
    monkeypatch.setattr(torch_kernels, "_on_cpu", lambda values: False)
    monkeypatch.setattr(torch_kernels, "_SMALLEST_GPU_BLOCK", 1)
    logits = drawn(19, 60_000).to(dtype)
    arguments: dict[str, tuple[Any, ...]] = {
        "align_offset": (logits, torch.zeros(19)),
        "align_location": (logits, shifts_of(19, 1)[..., 0]),
        "align_quantile": (logits, kernels.quantile_factors(shifts_of(19, 16)), LIMIT),
        "count_cells": (torch.zeros(19, 19, 16, dtype=torch.float64), logits, logits.argmax(dim=1), LIMIT),
        "count_cells_soft": (torch.zeros(19, 19, 16, dtype=torch.float64), logits, LIMIT),
    }
    with Peak() as peak:
        getattr(torch_kernels, kernel)(*arguments[kernel])
    assert 0.3 <= peak.bytes / (logits.numel() * logits.element_size()) <= 0.5


def test_on_a_gpu_small_logits_are_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.torch_kernels, "_on_cpu", lambda values: False)
    assert len(list(kernels.torch_kernels._blocks(drawn(19, 50_000), 34))) == 2  # one an image
