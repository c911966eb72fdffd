import math
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.confusion import ConfusionMatrix

C = 4


def counted(labels: torch.Tensor, predictions: torch.Tensor) -> ConfusionMatrix:
    matrix = ConfusionMatrix(C)
    matrix.update(labels, predictions)
    return matrix


@settings(deadline=None, max_examples=50)
@given(
    pixels=st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 3, -1, C, IGNORE_INDEX]), st.integers(0, C - 1)), min_size=1, max_size=40
    ),
    cut=st.integers(0, 40),
)
def test_scores_are_those_of_the_reference(reference: ModuleType, pixels: list[tuple[int, int]], cut: int) -> None:
    labels, predictions = torch.tensor(pixels).T
    matrix = counted(labels[:cut], predictions[:cut]) + counted(labels[cut:], predictions[cut:])
    assert torch.equal(matrix.counts, counted(labels, predictions).counts)
    y, p = labels.numpy(), predictions.numpy()
    iou, bias = reference.iou(y, p, C), reference.class_bias(y, p, C)
    np.testing.assert_allclose(matrix.iou(), iou)
    np.testing.assert_allclose(matrix.bias(), bias, atol=1e-12)
    present = [c for c in range(C) if (y == c).any()]
    assert matrix.present.nonzero().flatten().tolist() == present
    accuracy = [float((p[y == c] == c).mean()) for c in present]
    np.testing.assert_allclose(matrix.accuracy()[present], accuracy)
    if present:
        assert matrix.mean_iou() == pytest.approx(iou[present].mean())
        assert matrix.iou_spread() == pytest.approx(iou[present].std())
        assert matrix.mean_accuracy() == pytest.approx(sum(accuracy) / len(accuracy))
        valid = np.isin(y, range(C))
        np.testing.assert_allclose(matrix.predicted_share(), [(p[valid] == c).mean() for c in range(C)])


def test_an_absent_class_is_nan_and_left_out_of_the_means_though_it_is_predicted() -> None:
    matrix = counted(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1]))
    assert matrix.iou().isnan().tolist() == [False, False, True, True]
    assert matrix.accuracy().isnan().tolist() == [False, False, True, True]
    assert matrix.bias().isnan().tolist() == [False, False, True, True]
    assert matrix.mean_iou() == pytest.approx(0.75)
    assert matrix.mean_accuracy() == pytest.approx(0.75)
    assert matrix.bias()[:2].tolist() == [-0.25, 0]


def test_pixel_accuracy_and_frequency_weighted_iou_by_hand() -> None:
    """Six pixels of class 0, of which one is taken for 1; two of class 1, one of them taken for the absent 2."""
    matrix = counted(torch.tensor([0] * 6 + [1] * 2), torch.tensor([0] * 5 + [1, 1, 2]))
    assert matrix.pixel_accuracy() == pytest.approx(6 / 8)
    assert matrix.frequency_weighted_iou() == pytest.approx(6 / 8 * 5 / 6 + 2 / 8 * 1 / 3)
    assert math.isnan(ConfusionMatrix(C).pixel_accuracy())
    assert math.isnan(ConfusionMatrix(C).frequency_weighted_iou())


def test_without_a_labelled_pixel_every_score_is_nan() -> None:
    matrix = counted(torch.full((3,), IGNORE_INDEX), torch.zeros(3, dtype=torch.int64))
    assert matrix.bias().isnan().all()
    assert np.isnan([matrix.mean_iou(), matrix.mean_accuracy(), matrix.iou_spread()]).all()


def test_of_more_than_255_classes_255_is_one() -> None:
    matrix = ConfusionMatrix(300)
    matrix.update(torch.tensor([255, IGNORE_INDEX, 299]), torch.tensor([255, 0, 255]))
    assert matrix.counts.sum() == 2
    assert matrix.counts[255, 255] == matrix.counts[299, 255] == 1


def test_labels_may_be_bytes() -> None:
    labels = torch.tensor([3, 3, 255], dtype=torch.uint8)
    assert counted(labels, torch.tensor([2, 3, 0])).counts[3].tolist() == [0, 0, 1, 1]
