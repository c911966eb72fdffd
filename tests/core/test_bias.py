import numpy as np
import pytest
import torch
from torch import Tensor

from blda_cli.core import bias as bias_module
from blda_cli.core.bias import estimated_bias, sampled_bias, win_probabilities
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.neighbours import Blocks, blocks_of, natural_order
from blda_cli.core.sample import PixelSample

C = 4


def independent(pixels: int = 60_000, absent: int | None = None) -> tuple[Tensor, Tensor]:
    """Channels independent given the label; class 3 hardly rises where it is the label, class 0 rises everywhere."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, C, (1, pixels), generator=random)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % C
    logits = torch.randn(1, C, pixels, generator=random)
    logits += torch.nn.functional.one_hot(labels, C).movedim(-1, 1) * torch.tensor([2.0, 2, 2, 0.8])[:, None]
    logits[:, 0] += 0.7
    return logits, labels


def counted(logits: Tensor, labels: Tensor) -> LogitHistogram:
    histogram = LogitHistogram(C)
    histogram.update(logits, labels)
    return histogram


def test_of_independent_channels_the_estimate_is_the_true_bias() -> None:
    logits, labels = independent()
    confusion = ConfusionMatrix(C)
    confusion.update(labels, logits.argmax(dim=1))
    cells = counted(logits, labels)
    np.testing.assert_allclose(win_probabilities(cells), confusion.rates(), atol=0.01)
    np.testing.assert_allclose(estimated_bias(cells), confusion.bias(), atol=0.01)
    bias = estimated_bias(cells)
    assert bias[0] > 0.1  # over-predicted
    assert bias[3] < -0.1  # under-predicted
    assert float(bias.sum()) == pytest.approx(0)


def test_the_integral_over_the_bins() -> None:
    counts = torch.zeros(2, 2, 4, dtype=torch.float64)
    counts[0, 0] = torch.tensor([0.0, 100, 300, 200])
    counts[0, 1] = torch.tensor([300.0, 200, 100, 0])
    counts[1] = counts[0].flip(0)
    below = [[0, 300, 500, 600], [0, 0, 100, 400]]  # pixels of the other channel in lower bins
    first, second = counts[0].tolist()
    wins = [
        sum(first[b] * (below[0][b] + second[b] / 2) for b in range(4)),
        sum(second[b] * (below[1][b] + first[b] / 2) for b in range(4)),
    ]
    assert sum(wins) == 600 * 600
    expected = torch.tensor([wins, wins[::-1]], dtype=torch.float64) / 600**2
    cells = LogitHistogram.from_counts(counts, 2.0)
    torch.testing.assert_close(win_probabilities(cells), expected)
    torch.testing.assert_close(estimated_bias(cells), torch.zeros(2, dtype=torch.float64))


def test_a_class_with_too_few_pixels_is_nan_and_left_out_of_the_mean() -> None:
    logits, labels = independent(absent=2)
    labels[0, :100] = 2
    cells = counted(logits, labels)
    rates, bias = win_probabilities(cells), estimated_bias(cells)
    assert rates[2].isnan().all()
    assert bias.isnan().tolist() == [False, False, True, False]
    torch.testing.assert_close(bias[[0, 1, 3]], rates[[0, 1, 3]][:, [0, 1, 3]].mean(dim=0) - 1 / 3)


def test_permuting_the_classes_permutes_the_bias() -> None:
    cells = counted(*independent(20_000))
    order = [3, 1, 0, 2]
    permuted = LogitHistogram.from_counts(cells.counts[order][:, order], cells.limit)
    torch.testing.assert_close(estimated_bias(permuted), estimated_bias(cells)[order])


def test_without_pixels_there_is_no_bias() -> None:
    assert estimated_bias(LogitHistogram(C)).isnan().all()


def sampled(logits: Tensor, parts: int) -> PixelSample:
    sample = PixelSample.empty(C)
    for index, part in enumerate(logits.chunk(parts, dim=2)):
        sample += sample.draw(part, part.argmax(dim=1), None, [str(index)])
    return sample


def biased_scene() -> tuple[Tensor, Tensor]:
    """As the network sees it, class 0 is ahead everywhere and class 3 behind."""
    logits, labels = independent()
    return 2 * logits + torch.tensor([1.5, 0.0, 0.0, -1.0])[:, None], labels


def test_the_debiased_scores_stand_in_for_labels() -> None:
    logits, labels = biased_scene()
    confusion = ConfusionMatrix(C)
    confusion.update(labels, logits.argmax(dim=1))
    estimate = sampled_bias(sampled(logits, 8))
    true = confusion.bias()
    assert true.argsort().tolist() == estimate.bias.argsort().tolist()
    assert (estimate.bias - true).abs().sum() < 0.5 * true.abs().sum()
    np.testing.assert_allclose(estimate.bias.sum(), 0, atol=1e-9)


@pytest.mark.parametrize(
    ("confusion", "bias"),
    [
        # Class 0 gains 0.4 of class 1 and misses 0.1: 0.75 (0.4 − 0.1) / 2.
        ([[90, 10], [40, 60]], [0.1125, -0.1125]),
        # Class 1 is hardly predicted, so its pixels count by 2 · 0.2: gains 0.32 and 0.1, scaled to the 0.9 missed.
        ([[90, 10], [80, 20]], [0.2196429, -0.2196429]),
        # A class without a pixel is left out.
        ([[90, 10, 0], [40, 60, 0], [0, 0, 0]], [0.1125, -0.1125, np.nan]),
    ],
)
def test_the_bias_of_a_confusion_matrix_in_numbers(confusion: list[list[int]], bias: list[float]) -> None:
    found = bias_module._bias_of(torch.tensor(confusion).double()[None], torch.ones(len(bias), dtype=torch.bool))
    np.testing.assert_allclose(found[0], bias, atol=1e-6)


def test_frequencies_say_the_direction_whatever_the_order_of_the_classes() -> None:
    logits = biased_scene()[0]
    estimate = sampled_bias(sampled(logits, 4))
    assert estimate.frequency[0] > 1 > estimate.frequency[3]
    order = [3, 2, 1, 0]
    mirrored = sampled_bias(sampled(logits[:, order], 4))
    torch.testing.assert_close(mirrored.bias, estimate.bias[order], atol=5e-3, rtol=0)
    torch.testing.assert_close(mirrored.frequency, estimate.frequency[order], atol=2e-2, rtol=0)


def test_the_interval_narrows_with_images_and_holds_the_estimate() -> None:
    logits, _ = biased_scene()
    few, many = sampled_bias(sampled(logits[:, :, :6000], 10)), sampled_bias(sampled(logits, 100))
    for estimate in (few, many):
        assert (estimate.low < estimate.bias).all()
        assert (estimate.bias < estimate.high).all()
    assert ((many.high - many.low) < (few.high - few.low)).all()


def test_frames_of_one_drive_are_no_more_than_its_scenes() -> None:
    """Forty scenes of eight frames each: the interval is about that of the scenes, not √8 times narrower."""
    logits, _ = biased_scene()
    random = torch.Generator().manual_seed(3)
    scenes = [part + torch.randn(4, 1, generator=random) for part in logits.chunk(40, dim=2)]
    once, often = PixelSample.empty(C), PixelSample.empty(C)
    keys = []
    for index, scene in enumerate(scenes):
        once += once.draw(scene, scene.argmax(dim=1), None, [str(index)])
        for frame, part in enumerate(scene.chunk(8, dim=2)):
            keys.append(f"drive/{8 * index + frame}")  # without zeros in front
            often += often.draw(part, part.argmax(dim=1), None, [keys[-1]])
    wide = sampled_bias(once, keys=[str(index) for index in range(40)])
    assert wide.blocks is not None
    assert (wide.blocks.count, wide.blocks.correlated) == (40, False)
    drive, each = sampled_bias(often, keys=keys), sampled_bias(often)
    assert drive.blocks is not None
    assert 15 <= drive.blocks.count <= 40
    ratio = ((drive.high - drive.low) / (wide.high - wide.low)).mean()
    assert 0.7 < ratio < 1.4
    assert ((each.high - each.low) / (wide.high - wide.low)).mean() < 0.6
    torch.testing.assert_close(drive.bias, each.bias)
    shuffled = [keys[index] for index in torch.randperm(len(keys), generator=random).tolist()]
    torch.testing.assert_close(sampled_bias(often, keys=shuffled).high, drive.high)  # the keys say the order


def test_blocks_of_images_that_are_alike() -> None:
    random = torch.Generator().manual_seed(0)
    steps = torch.randn(200, 5, generator=random, dtype=torch.float64)
    assert blocks_of(steps).count == 200
    slow = torch.stack([steps[max(0, index - 5) : index + 1].mean(dim=0) for index in range(200)])
    assert 10 <= blocks_of(slow).count <= 30
    assert not blocks_of(slow).correlated
    drift = steps.cumsum(dim=0)
    assert blocks_of(drift) == Blocks(8, correlated=True)
    assert blocks_of(steps[:1].expand(9, 5)).count == 9  # all the same: nothing to be alike in


def test_natural_order() -> None:
    assert natural_order(["b/10", "b/9", "a/100", "10", "9"]) == ["9", "10", "a/100", "b/9", "b/10"]
    assert natural_order(["m²", "m2", "m10"]) == ["m2", "m10", "m²"]


def test_one_image_gives_no_interval() -> None:
    estimate = sampled_bias(sampled(biased_scene()[0], 1))
    assert estimate.low.isnan().all()
    assert not estimate.bias.isnan().any()


def test_too_few_pixels_give_no_estimate() -> None:
    logits, _ = biased_scene()
    assert sampled_bias(sampled(logits[:, :, :400], 4)).bias.isnan().all()
