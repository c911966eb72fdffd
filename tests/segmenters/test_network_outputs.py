from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.errors import BldaError
from blda_cli.segmenters.outputs import (
    DOUBTFUL,
    UNNORMALISED,
    OutputMeaning,
    channels_first,
    check_meaning,
    check_range,
    check_scores,
    coverage,
    find_scores,
    fit_scores,
    log_odds,
    log_probabilities,
    mask_class_scores,
    plain_scores,
)


class Output(NamedTuple):
    logits: Tensor


@dataclass
class Record:
    loss: Tensor
    seg: Tensor


MAIN, OTHER, SMALL = torch.randn(1, 5, 8, 8), torch.randn(1, 5, 8, 8), torch.randn(1, 5, 4, 4)
BOUNDARY, FEATURES, IDS = torch.randn(1, 1, 8, 8), torch.randn(1, 64, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)


@pytest.mark.parametrize("output", [
    MAIN,
    [MAIN],
    (MAIN, SMALL),
    [SMALL, MAIN],
    (MAIN, BOUNDARY),
    (FEATURES, MAIN),
    (IDS, MAIN),
    {"aux": OTHER, "out": MAIN},
    {"aux": OTHER, "seg": MAIN},
    {"logits": MAIN, "hidden": OTHER},
    {"anything": MAIN},
    Output(MAIN),
    Record(torch.zeros(()), MAIN),
    ({"out": MAIN}, OTHER),
    {"out": [SMALL, MAIN], "features": FEATURES},
    (MAIN, MAIN),
])  # fmt: skip
def test_the_main_output_is_found(output: Any) -> None:
    assert find_scores(output, channels=5) is MAIN


@pytest.mark.parametrize(("output", "listed"), [
    ([OTHER, MAIN], r"0 \[1, 5, 8, 8\], 1 \[1, 5, 8, 8\].*head = '0'"),
    ((BOUNDARY, OTHER, MAIN), r"1 \[1, 5, 8, 8\], 2 \[1, 5, 8, 8\]"),
    ({"p": OTHER, "main": MAIN}, "p .*, main .*head = 'p'"),
    ({"logits": [OTHER, MAIN]}, r"logits\.0 .*, logits\.1"),
])  # fmt: skip
def test_two_of_one_size_are_asked_about(output: Any, listed: str) -> None:
    with pytest.raises(BldaError, match=f"several outputs that could be meant: {listed}"):
        find_scores(output, channels=5)


def test_without_the_number_of_classes_outputs_of_other_channels_are_asked_about() -> None:
    with pytest.raises(BldaError, match=r"several outputs .* 0 \[1, 5, 4, 4\], 1 \[1, 64, 8, 8\]"):
        find_scores((SMALL, FEATURES))
    assert find_scores((SMALL, MAIN)) is MAIN


@pytest.mark.parametrize(("output", "head"), [
    ([OTHER, MAIN], "1"),
    ([OTHER, MAIN], 1),
    ([OTHER, MAIN], -1),
    ({"out": OTHER, "main": MAIN}, "main"),
    ({"out": OTHER, "main": MAIN}, 1),
    ({"out": OTHER, "heads": [OTHER, MAIN]}, "heads.1"),
    ({"out": OTHER, "heads": [SMALL, MAIN]}, "heads"),
    (Record(OTHER, MAIN), "seg"),
    (MAIN, "main"),
])  # fmt: skip
def test_the_head_asked_for_is_taken(output: Any, head: str | int) -> None:
    assert find_scores(output, head, 5) is MAIN


@pytest.mark.parametrize("head", ["mian", 2, "-3", "lo"])  # codespell:ignore
def test_a_head_that_is_not_there_is_an_error_that_lists_them(head: str | int) -> None:
    with pytest.raises(BldaError, match=r"none of the network's outputs: logits \[1, 5, 8, 8\], main"):
        find_scores({"logits": OTHER, "main": MAIN}, head, 5)


@pytest.mark.parametrize("output", [None, {}, [], "scores", 3])
def test_no_scores_is_an_error(output: object) -> None:
    with pytest.raises(BldaError, match="not a tensor"):
        find_scores(output)


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


def test_log_odds_are_the_sigmoids_inverse() -> None:
    logits = torch.linspace(-12, 12, 97, dtype=torch.float64)
    torch.testing.assert_close(log_odds(logits.sigmoid().float()), logits.float(), atol=0.02, rtol=1e-3)
    assert log_odds(torch.tensor([0.5])) == 0
    assert log_odds(torch.tensor([0.0, 1.0])).isfinite().all()


FIVE, TWO = OutputMeaning(5), OutputMeaning(2)


@pytest.mark.parametrize(("scores", "message"), [
    (torch.zeros(1, 4, 4, dtype=torch.int64), "int64 values .*class ids, not logits; return what its argmax"),
    (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "class ids, not logits"),
    (torch.zeros(1, 4, 4, 1, dtype=torch.bool), "class ids, not logits"),
    (torch.zeros(1, 5, 4, 4, dtype=torch.uint8), "quantised scores.* quantised = "),
    (torch.zeros(1, 5, 4, 4).to(torch.float8_e4m3fn), "float8_e4m3fn values .* return float32"),
    (torch.zeros(1, 5, 4, 4) + 0j, "complex"),
    (torch.zeros(1, 5, 4, 4).to_sparse(), "sparse"),
    (torch.zeros(1, 5, 4, 4, device="meta"), "meta"),
])  # fmt: skip
def test_strange_types_are_refused(scores: Tensor, message: str) -> None:
    with pytest.raises(BldaError, match=message):
        plain_scores(scores, None)


def test_quantised_scores_of_a_known_scale_are_converted() -> None:
    scores = torch.linspace(-3, 3, 60).view(1, 5, 3, 4)
    stored = torch.quantize_per_tensor(scores, 0.05, 30, torch.qint8)
    torch.testing.assert_close(plain_scores(stored, None), scores, atol=0.026, rtol=0)
    whole = stored.int_repr()
    torch.testing.assert_close(plain_scores(whole, (0.05, 30)), scores, atol=0.026, rtol=0)


@pytest.mark.parametrize(("scores", "meaning", "message"), [
    (torch.zeros(1, 1, 4, 4), FIVE, "one channel, .*5 classes are named"),
    (torch.zeros(1, 4, 4), FIVE, "N, C, H, W"),
    (torch.zeros(1, 6, 4, 4), FIVE, "6 channels, but 5 classes are named: name what each"),
    (torch.zeros(1, 4, 4, 4), FIVE, "4 channels, but 5 classes"),
    (torch.zeros(1, 5, 4, 4), OutputMeaning(5, background=0), "5 channels, but 4 classes are named besides"),
    (torch.zeros(1, 4, 4, 4), OutputMeaning(5, cut=True), "4 channels"),
    (torch.zeros(2, 5, 4, 4), FIVE, "2 images for 1"),
    (torch.zeros(1, 5, 0, 4), FIVE, "nothing in it"),
])  # fmt: skip
def test_what_cannot_be_scores_is_refused(scores: Tensor, meaning: OutputMeaning, message: str) -> None:
    with pytest.raises(BldaError, match=message) as caught:
        check_scores(scores, 1, meaning)
    assert "channels =" not in str(caught.value)  # which would hide the fault


@pytest.mark.parametrize(("scores", "meaning"), [
    (torch.zeros(1, 6, 4, 4), OutputMeaning(5, cut=True)),
    (torch.zeros(1, 1, 4, 4), TWO),
    (torch.zeros(1, 4, 4, 4), OutputMeaning(5, background=2)),
    (torch.zeros(1, 5), FIVE),
])  # fmt: skip
def test_what_can_be_scores(scores: Tensor, meaning: OutputMeaning) -> None:
    check_scores(scores, 1, meaning)


def test_one_channel_is_the_log_odds_of_the_second_of_two_classes() -> None:
    scores = torch.tensor([-1.5, 0.25, 3.0]).view(1, 1, 1, 3)
    for logits in (TWO.logits(scores), OutputMeaning(2, "sigmoid").logits(scores.sigmoid())):
        torch.testing.assert_close(logits.softmax(dim=1)[:, 1:], scores.sigmoid())
        assert logits.argmax(dim=1).flatten().tolist() == [0, 1, 1]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_background_wins_where_no_class_is_above_one_half(place: int) -> None:
    sigmoids = torch.tensor([[0.2, 0.6, 0.9], [0.4, 0.7, 0.1], [0.3, 0.1, 0.2]]).T.reshape(3, 3, 1).movedim(0, 0)
    logits = OutputMeaning(4, "sigmoid", place).logits(sigmoids)
    names = ["first", "second", "third"]
    names.insert(place, "background")
    best = [names[index] for index in logits.argmax(dim=1).flatten().tolist()]
    expected = []
    for pixel in sigmoids.squeeze(-1):
        value, index = pixel.max(dim=0)
        expected.append(["first", "second", "third"][int(index)] if value > 0.5 else "background")
    assert best == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_sigmoids_and_logits_are_told_apart(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 19, 8, 8) * 5
    probabilities, sigmoids = logits.softmax(1).to(dtype), logits.sigmoid().to(dtype)
    said = {name: OutputMeaning(19, name) for name in ("logits", "probabilities", "sigmoid")}
    check_meaning(logits.to(dtype), said["logits"])
    check_meaning(logits.log_softmax(1).to(dtype), said["logits"])
    check_meaning(probabilities, said["probabilities"])
    check_meaning(sigmoids, said["sigmoid"])
    assert check_meaning(sigmoids, said["probabilities"]) == UNNORMALISED
    assert check_meaning(probabilities, said["probabilities"]) is None
    assert check_meaning(sigmoids / 2, said["logits"]) == DOUBTFUL
    check_meaning(sigmoids, OutputMeaning(19, "logits", declared=True))
    for values, meaning, message in (
        (probabilities, "logits", 'output = "probabilities"'),
        (sigmoids, "logits", 'look like sigmoids, not logits: set output = "sigmoid"'),
        (logits.to(dtype), "probabilities", 'output = "logits"'),
        (logits.to(dtype), "sigmoid", 'output = "logits"'),
        (probabilities, "sigmoid", 'output = "probabilities"'),
    ):
        with pytest.raises(BldaError, match=message):
            check_meaning(values, said[meaning])


@pytest.mark.parametrize("output", ["logits", "sigmoid"])
def test_one_channel_of_sigmoids_or_of_ids_is_no_channel_of_logits(output: Any) -> None:
    sigmoids = torch.rand(1, 1, 32, 32)
    if output == "logits":
        with pytest.raises(BldaError, match="look like sigmoids"):
            check_meaning(sigmoids, TWO)
    else:
        check_meaning(sigmoids, OutputMeaning(2, "sigmoid"))
    with pytest.raises(BldaError, match="whole numbers, 0 to 1: class ids or a mask"):
        check_meaning(sigmoids.round(), OutputMeaning(2, output))


def test_ids_in_floating_point_and_one_hot_are_refused() -> None:
    ids = torch.randint(0, 5, (1, 8, 8))
    with pytest.raises(BldaError, match="class ids"):
        check_meaning(ids.float().unsqueeze(1), TWO)
    one_hot = F.one_hot(ids, 5).permute(0, 3, 1, 2).float()
    for output in ("logits", "probabilities"):
        with pytest.raises(BldaError, match="class ids"):
            check_meaning(one_hot, OutputMeaning(5, output))


@pytest.mark.parametrize(("shape", "meaning", "size", "turned"), [
    ((1, 5, 64, 96), FIVE, (64, 96), False),
    ((1, 64, 96, 5), FIVE, (64, 96), True),
    ((1, 16, 24, 5), FIVE, (64, 96), True),
    ((1, 5, 96, 5), FIVE, (5, 96), True),  # five rows
    ((1, 64, 96, 1), TWO, (64, 96), True),
    ((1, 128, 128, 3), None, (128, 128), True),
    ((1, 3, 128, 128), None, (128, 128), False),
    ((1, 32, 64, 80), None, (256, 320), False),
    ((1, 64, 80, 64), None, (256, 320), True),
    ((1, 5), FIVE, (64, 96), False),
])  # fmt: skip
def test_channels_last_are_turned_round(shape: Any, meaning: Any, size: Any, turned: bool) -> None:
    scores = torch.randn(shape)
    result, was = channels_first(scores, meaning, size)
    assert was == turned
    assert torch.equal(result, scores.permute(0, 3, 1, 2) if turned else scores)


@pytest.mark.parametrize(("shape", "meaning", "size"), [
    ((1, 5, 5, 5), FIVE, (5, 5)),
    ((1, 32, 32, 32), None, (128, 128)),
])  # fmt: skip
def test_channels_in_doubt_are_refused(shape: Any, meaning: Any, size: Any) -> None:
    with pytest.raises(BldaError, match=r"\[N, C, H, W\] or \[N, H, W, C\]"):
        channels_first(torch.randn(shape), meaning, size)


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
    ((65, 129), (512, 1024), (512, 1024)),  # aligned corners
    ((376, 500), (375, 500), (376, 500)),  # padded to 2
    ((374, 500), (375, 500), None),  # the last row is dropped
    ((60, 92), (64, 96), None),  # a margin all round
    ((512, 512), (600, 400), None),  # stretched
])  # fmt: skip
def test_padding_is_recognised(
    scores: tuple[int, int], network_input: tuple[int, int], covered: tuple[int, int] | None
) -> None:
    assert coverage(scores, network_input) == covered


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
    assert coverage((scores[0], scores[1]), size) == size


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
