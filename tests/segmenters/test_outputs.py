from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.errors import BldaError
from blda_cli.segmenters.outputs import (
    check_meaning,
    check_range,
    check_scores,
    first_tensor,
    fit_scores,
    log_probabilities,
    mask_class_scores,
    padded_size,
)


class Output(NamedTuple):
    logits: Tensor


@pytest.mark.parametrize("wrap", [
    lambda x: x,
    lambda x: (x, x + 1),
    lambda x: [x],
    lambda x: {"aux": x + 1, "out": x},
    lambda x: {"logits": x, "hidden": x + 1},
    lambda x: {"anything": x},
    lambda x: Output(x),
    lambda x: ({"out": x}, x + 1),
])  # fmt: skip
def test_the_scores_are_found(wrap) -> None:  # type: ignore[no-untyped-def]
    scores = torch.randn(1, 2, 3, 3)
    assert first_tensor(wrap(scores)) is scores


@pytest.mark.parametrize("output", [None, {}, [], "scores", 3])
def test_no_scores_is_an_error(output: object) -> None:
    with pytest.raises(BldaError, match="not a tensor"):
        first_tensor(output)


def test_mask_class_scores_follow_the_formula() -> None:
    classes, masks = torch.randn(2, 4, 4), torch.randn(2, 4, 3, 5)
    scores = mask_class_scores(classes, masks)
    for n in range(2):
        for c in range(3):
            expected = sum(classes[n, q].softmax(0)[c] * masks[n, q].sigmoid() for q in range(4))
            torch.testing.assert_close(scores[n, c], expected)


def test_log_probabilities_normalise_and_clamp() -> None:
    scores = torch.tensor([[0.2, 0.2], [0.6, 0.0], [0.0, 0.0]]).T.reshape(2, 3)
    logs = log_probabilities(scores)
    torch.testing.assert_close(logs[0], torch.tensor([0.25, 0.75, 2.0**-24]).log())
    torch.testing.assert_close(logs[1], torch.tensor([1.0, 2.0**-24, 2.0**-24]).log())


def test_pixels_no_mask_covers_stay_finite() -> None:
    assert log_probabilities(torch.zeros(1, 3, 2, 2)).isfinite().all()


@pytest.mark.parametrize(("scores", "message"), [
    (torch.zeros(1, 4, 4, dtype=torch.int64), "class ids, not logits"),
    (torch.zeros(1, 5, 4, 4, dtype=torch.uint8), "class ids, not logits"),
    (torch.zeros(1, 1, 4, 4), "one channel"),
    (torch.zeros(1, 4, 4), "N, C, H, W"),
    (torch.zeros(1, 6, 4, 4), "6 channels, but 5 classes are named: channels = 5 keeps the first 5"),
    (torch.zeros(1, 4, 4, 4), "4 channels, but 5 classes"),
])  # fmt: skip
def test_what_cannot_be_scores_is_refused(scores: Tensor, message: str) -> None:
    with pytest.raises(BldaError, match=message):
        check_scores(scores, len(scores), 5, cut=False)


def test_more_channels_are_fine_where_the_first_are_kept() -> None:
    check_scores(torch.zeros(1, 6, 4, 4), 1, 5, cut=True)
    with pytest.raises(BldaError, match="4 channels"):
        check_scores(torch.zeros(1, 4, 4, 4), 1, 5, cut=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_are_told_from_logits(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 19, 8, 8) * 5
    probabilities = logits.softmax(1).to(dtype)
    with pytest.raises(BldaError, match='output = "probabilities"'):
        check_meaning(probabilities, probabilities=False)
    with pytest.raises(BldaError, match='output = "logits"'):
        check_meaning(logits.to(dtype), probabilities=True)
    check_meaning(probabilities, probabilities=True)
    check_meaning(logits.to(dtype), probabilities=False)
    check_meaning(logits.log_softmax(1).to(dtype), probabilities=False)
    check_meaning(logits.sigmoid(), probabilities=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_image_of_a_value_that_is_not_finite_is_named(value: float) -> None:
    logits = torch.randn(3, 4, 5, 5)
    check_range(logits, ["a", "b", "c"])
    logits[1, 2, 3, 4] = value
    with pytest.raises(BldaError, match=r"^b: the logits are not finite"):
        check_range(logits, ["a", "b", "c"])


def test_large_half_precision_logits_are_finite() -> None:
    assert check_range(torch.full((1, 4, 50, 50), 6e4, dtype=torch.float16), ["a"]) == 6e4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_largest_logit_is_told(dtype: torch.dtype, layout: torch.memory_format) -> None:
    logits = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(0)).to(dtype, memory_format=layout)
    for place, value in (((1, 4, 5, 6), 20.5), ((2, 0, 0, 0), -30.0)):
        logits[place] = value
        assert check_range(logits, ["a", "b", "c"]) == abs(value)
    assert check_range(logits[:, :, 0, 0], ["a", "b", "c"]) == 30


@pytest.mark.parametrize(("scores", "network_input", "covered"), [
    ((360, 480), (360, 480), (360, 480)),
    ((90, 120), (360, 480), (360, 480)),
    ((23, 18), (90, 70), (90, 70)),  # rounded up
    ((22, 17), (90, 70), (90, 70)),  # rounded down
    ((384, 480), (360, 480), (384, 480)),  # padded to 32
    ((96, 120), (360, 480), (384, 480)),  # the same at a quarter
    ((512, 512), (500, 400), (512, 512)),  # padded to 128
    ((65, 129), (512, 1024), (512, 1024)),  # an odd size: resized
])  # fmt: skip
def test_padding_is_recognised(
    scores: tuple[int, int], network_input: tuple[int, int], covered: tuple[int, int]
) -> None:
    assert padded_size(scores, network_input) == covered


@settings(deadline=None, max_examples=50)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    stride=st.sampled_from([1, 2, 4, 8, 16, 32]),
    up=st.booleans(),
)
def test_common_strides_are_never_taken_for_padding(height: int, width: int, stride: int, up: bool) -> None:
    size = (height, width)
    scores = tuple(-(-side // stride) if up else side // stride for side in size)
    assert padded_size((scores[0], scores[1]), size) == size


def test_padding_is_cut_before_the_resize() -> None:
    image = torch.randn(1, 3, 40, 56)
    padded = F.pad(image, (0, 8, 0, 24), value=100.0)
    torch.testing.assert_close(fit_scores(padded, (64, 64), (40, 56), (40, 56)), image)


def test_scores_are_resized_as_the_ecosystems_do() -> None:
    scores = torch.randn(2, 4, 10, 12)
    expected = F.interpolate(scores, size=(37, 50), mode="bilinear", align_corners=False)
    assert torch.equal(fit_scores(scores, (40, 48), (40, 48), (37, 50)), expected)
    classifier = torch.randn(2, 4)
    assert fit_scores(classifier, (40, 48), (40, 48), (37, 50)) is classifier
