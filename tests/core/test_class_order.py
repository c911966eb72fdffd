import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blda_cli.core.class_order import moved_classes
from blda_cli.core.confusion import ConfusionMatrix

# Rows are labels; the network is right four times in five.
RIGHT = torch.full((5, 5), 5) + torch.diag(torch.tensor([900, 500, 300, 200, 80]))


def moved(counts: torch.Tensor) -> list[tuple[int, int]]:
    return [(match.label, match.channel) for match in moved_classes(ConfusionMatrix.from_counts(counts))]


def test_a_right_order_is_left_alone() -> None:
    assert moved(RIGHT) == []


@given(st.permutations(range(5)))
def test_every_other_order_is_told_class_by_class(order: list[int]) -> None:
    expected = [(label, channel) for label, channel in enumerate(order) if label != channel]
    assert sorted(moved(RIGHT[order])) == expected


def test_the_most_frequent_class_comes_first() -> None:
    assert moved(RIGHT[[4, 1, 2, 0, 3]]) == [(3, 0), (4, 3), (0, 4)]


def test_the_scores_with_both_channels() -> None:
    first = moved_classes(ConfusionMatrix.from_counts(torch.tensor([[10, 90, 0], [60, 20, 0], [0, 0, 5]])))[0]
    assert (first.label, first.channel) == (0, 1)
    assert first.own_iou == pytest.approx(10 / 160)
    assert first.iou == pytest.approx(90 / 120)


def test_one_confused_class_is_no_other_order() -> None:
    counts = RIGHT.clone()
    counts[1] = torch.tensor([5, 5, 5, 5, 500])
    assert moved(counts) == []


def test_a_network_that_predicts_one_class_says_nothing_about_the_order() -> None:
    counts = torch.zeros(5, 5, dtype=torch.int64)
    counts[:, 3] = torch.tensor([900, 500, 300, 200, 80])
    assert moved(counts) == []


def test_absent_classes_are_never_moved() -> None:
    counts = RIGHT[[1, 0, 2, 3, 4]].clone()
    counts[2:] = 0
    assert sorted(moved(counts)) == [(0, 1), (1, 0)]
