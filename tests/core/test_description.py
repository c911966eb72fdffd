import math

import pytest
import torch

from blda_cli.core.description import CLEAR, NEAR, Fit, kappa, ranked, times


def test_agreement_beyond_chance_by_hand() -> None:
    # 20 + 15 of 50 agree; by chance 0.5 · 0.6 + 0.5 · 0.4 would: (0.7 − 0.5) / (1 − 0.5).
    assert kappa(torch.tensor([[20, 5], [10, 15]])) == pytest.approx(0.4)


def test_agreement_of_equal_independent_and_constant_maps() -> None:
    assert kappa(torch.diag(torch.tensor([3, 4, 5]))) == pytest.approx(1)
    assert kappa(torch.outer(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))) == pytest.approx(0)
    assert kappa(torch.tensor([[9, 0], [0, 0]])) == 0
    assert kappa(torch.zeros(2, 2)) == 0


def test_a_misfit_is_the_product_of_what_was_measured() -> None:
    assert Fit(0.2, 0.75).misfit == pytest.approx(0.05)
    assert Fit(0.2).misfit == pytest.approx(0.2)
    assert Fit(None, 0.75).misfit == pytest.approx(0.25)
    assert times(Fit(0.2, 0.5), Fit(0.1, 0.75)) == pytest.approx(4)
    assert times(Fit(0.2), Fit(0.1, 0.75)) == pytest.approx(2)


def test_without_norms_none_is_farther() -> None:
    assert Fit(None, 0.5).farther(Fit(None, 0.9)) == 1


def test_a_perfect_fit_divides_nothing_by_zero() -> None:
    assert math.isfinite(times(Fit(0.1, 0.5), Fit(0.0, 1.0)))


def test_near_descriptions_are_ranked_by_misfit_and_far_ones_by_distance() -> None:
    nearest, agrees_better = Fit(0.1, 0.5), Fit(0.1 * NEAR * 0.99, 0.9)
    predicts_one_class, far = Fit(0.1 * (NEAR + 0.1), 0.999), Fit(0.9)
    fits = [far, nearest, predicts_one_class, agrees_better]
    assert ranked(fits) == [3, 1, 2, 0]


def test_clearly_better_is_beyond_near() -> None:
    assert CLEAR > NEAR
