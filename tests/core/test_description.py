import math

import pytest

from blda_cli.core.description import CLEAR, NEAR, Fit, ranked, times


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
