"""Agreement and mutual information of two predictions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blda_cli.core.agreement import agreement, count_pairs, kappa, mutual_information


def test_pairs_are_counted_by_first_and_second_prediction() -> None:
    one, other = torch.tensor([[0, 1], [1, 2]], dtype=torch.uint8), torch.tensor([[0, 1], [0, 2]], dtype=torch.int16)
    assert count_pairs(one, other, 3).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    large = torch.full((5,), 255, dtype=torch.uint8)
    assert count_pairs(large, large, 256)[255, 255] == 5


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 200))
def test_measures_of_random_predictions(seed: int, classes: int, pixels: int) -> None:
    generator = np.random.default_rng(seed)
    one = generator.integers(0, classes, pixels)
    other = np.where(generator.random(pixels) < 0.5, one, generator.integers(0, classes, pixels))
    pairs = count_pairs(torch.from_numpy(one), torch.from_numpy(other), classes)
    assert agreement(pairs) == pytest.approx(np.mean(one == other))

    def entropy(values: np.ndarray) -> float:
        shares = np.unique(values, return_counts=True)[1] / len(values)
        return float(-(shares * np.log(shares)).sum())

    expected = entropy(one) + entropy(other) - entropy(one * classes + other)
    assert mutual_information(pairs) == pytest.approx(expected, abs=1e-9)


def test_predicting_one_class_everywhere_agrees_and_says_nothing() -> None:
    nothing = count_pairs(torch.zeros(90, dtype=torch.uint8), torch.zeros(90, dtype=torch.uint8), 3)
    assert agreement(nothing) == 1
    assert mutual_information(nothing) == 0
    everything = count_pairs(torch.arange(90) % 3, torch.arange(90) % 3, 3)
    assert mutual_information(everything) == pytest.approx(math.log(3))


def test_agreement_beyond_chance_by_hand() -> None:
    # 20 + 15 of 50 agree; by chance 0.5 · 0.6 + 0.5 · 0.4 would: (0.7 − 0.5) / (1 − 0.5).
    assert kappa(torch.tensor([[20, 5], [10, 15]])) == pytest.approx(0.4)


def test_agreement_of_equal_independent_and_constant_maps() -> None:
    assert kappa(torch.diag(torch.tensor([3, 4, 5]))) == pytest.approx(1)
    assert kappa(torch.outer(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))) == pytest.approx(0)
    assert kappa(torch.tensor([[9, 0], [0, 0]])) == 0
    assert kappa(torch.zeros(2, 2)) == 0
