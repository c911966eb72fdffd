from types import ModuleType

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.self_training import ConfidenceHistogram, mining_order, select_labels

PORTIONS = [0.01, 0.2, 0.25, 0.5, 1.0]


def log_scores(confidence: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    """Scores whose highest is the confidence, at the class predicted."""
    scores = torch.full((len(predicted), classes), -80.0)
    return scores.scatter(1, predicted[:, None], confidence.log()[:, None].float())


@settings(deadline=None, max_examples=100)
@given(
    pixels=st.lists(
        st.tuples(st.floats(2.0**-20, 1, width=32) | st.floats(1 - 2.0**-17, 1, width=32), st.integers(0, 3)),
        min_size=1,
        max_size=60,
    ),
    portion=st.sampled_from(PORTIONS),
)
def test_thresholds_are_the_ranked_confidences_to_a_thousandth(
    reference: ModuleType, pixels: list[tuple[float, int]], portion: float
) -> None:
    confidence = torch.tensor([c for c, _ in pixels], dtype=torch.float64)
    predicted = torch.tensor([label for _, label in pixels])
    scores = log_scores(confidence, predicted, 5)
    histogram = ConfidenceHistogram(5)
    for part in scores.split(7):
        histogram.update(part)
    assert histogram.pixels().tolist() == torch.bincount(predicted, minlength=5).tolist()
    exact = reference.class_thresholds(scores.max(dim=1).values.double().exp().numpy(), predicted.numpy(), 5, portion)
    found, expected = histogram.class_thresholds(portion).numpy(), -np.log(exact)
    present = histogram.pixels().numpy() > 0
    assert (found[~present] == 0).all()
    # The upper edge of the bin, so that the ranked pixel itself is kept.
    assert (found[present] > expected[present] - 1e-12).all()
    assert (found[present] <= np.maximum(expected[present], 2.0**-24) * (1 + 2.0**-10) + 1e-7).all()
    all_pixels = np.zeros(len(predicted), dtype=int)
    one = -np.log(reference.class_thresholds(scores.max(dim=1).values.double().exp().numpy(), all_pixels, 1, portion))
    np.testing.assert_allclose(histogram.threshold(portion).numpy(), np.repeat(one, 5), rtol=2.0**-9, atol=2e-7)


def test_weighted_pixels_count_as_many() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 3, generator=generator).log_softmax(dim=1)
    times = torch.randint(1, 5, (200,), generator=generator)
    weighted, repeated = ConfidenceHistogram(3), ConfidenceHistogram(3)
    weighted.update(scores, times)
    repeated.update(scores.repeat_interleave(times, dim=0))
    assert torch.equal(weighted.counts, repeated.counts)


def test_labels_are_the_normalised_argmax_where_it_exceeds_one(reference: ModuleType) -> None:
    """Zou et al., eq. 6, pixel by pixel."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 4, 9, 11, generator=generator, dtype=torch.float64)
    thresholds = torch.tensor([0.1, 0.9, 0.3, 0.0], dtype=torch.float64)
    labels = select_labels(logits.log_softmax(dim=1), thresholds)
    for n, row, column in np.ndindex(2, 9, 11):
        ratios = logits[n, :, row, column].softmax(dim=0).numpy() / np.exp(-thresholds.numpy())
        expected = ratios.argmax() if ratios.max() > 1 else IGNORE_INDEX
        assert int(labels[n, row, column]) == expected
    assert {0, 1, 2, IGNORE_INDEX} == set(labels.unique().tolist())  # class 3 was never predicted: its threshold is 1


def test_the_asked_portion_of_every_class_is_kept() -> None:
    logits = torch.randn(1, 4, 200, 200, generator=torch.Generator().manual_seed(2))
    logits[:, 0] += 2
    scores = logits.log_softmax(dim=1)
    histogram = ConfidenceHistogram(4)
    histogram.update(scores)
    predicted = logits.argmax(dim=1)
    labels = select_labels(scores, histogram.class_thresholds(0.3))
    for c in range(4):
        assert abs(float((labels == c)[predicted == c].float().mean()) - 0.3) < 0.005
    kept = select_labels(scores, histogram.threshold(0.3)) != IGNORE_INDEX
    assert abs(float(kept.float().mean()) - 0.3) < 0.005


def test_without_a_pixel_nothing_is_labelled() -> None:
    histogram = ConfidenceHistogram(3)
    assert histogram.class_thresholds(0.2).tolist() == [0, 0, 0]
    assert histogram.threshold(0.2).tolist() == [0, 0, 0]
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert select_labels(certain, histogram.class_thresholds(0.2)).tolist() == [IGNORE_INDEX]


def test_the_five_least_predicted_classes_are_mined_those_nearly_never_predicted_first() -> None:
    shares = torch.tensor([0.5, 0.0005, 0.2, 0.01, 0.0, 0.1, 0.15, 0.0395])
    assert mining_order(shares) == ([4, 1], [3, 7, 5])
    assert mining_order(torch.tensor([0.6, 0.4])) == ([], [1, 0])
