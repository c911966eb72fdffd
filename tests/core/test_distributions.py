from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.core.distributions import Empirical, invert_cdf

EDGES = torch.linspace(-4, 4, 17, dtype=torch.float64)


def distributions(seed: int, count: int = 3) -> Empirical:
    """Histograms with empty bins at the ends and in between."""
    random = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 50, (count, 16), generator=random)
    counts[torch.rand(count, 16, generator=random) < 0.4] = 0
    counts[:, 7] += 1
    return Empirical(counts.double(), EDGES)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_cdf_and_quantile_are_those_of_the_reference(reference: ModuleType, seed: int) -> None:
    cells = distributions(seed)
    random = torch.Generator().manual_seed(seed)
    values = torch.rand(3, 20, generator=random, dtype=torch.float64) * 12 - 6
    levels = torch.rand(3, 20, generator=random, dtype=torch.float64)
    cdf, quantile = cells.cdf(values), cells.quantile(levels)
    for row in range(3):
        counts = cells.counts[row].numpy()
        expected = [reference.histogram_cdf(counts, EDGES.numpy(), float(value)) for value in values[row]]
        torch.testing.assert_close(cdf[row], torch.tensor(expected, dtype=torch.float64))
        expected = [reference.histogram_quantile(counts, EDGES.numpy(), float(level)) for level in levels[row]]
        torch.testing.assert_close(quantile[row], torch.tensor(expected, dtype=torch.float64))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), level=st.floats(0.001, 0.999))
def test_the_cdf_of_a_quantile_is_its_level(seed: int, level: float) -> None:
    cells = distributions(seed)
    levels = torch.full((3, 1), level, dtype=torch.float64)
    torch.testing.assert_close(cells.cdf(cells.quantile(levels)), levels)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_the_quantile_of_a_cdf_is_the_value_wherever_there_is_mass(seed: int) -> None:
    cells = distributions(seed)
    within = torch.rand(3, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.98 + 0.01
    values = EDGES[:-1] + within * 0.5
    occupied = cells.counts > 0
    torch.testing.assert_close(cells.quantile(cells.cdf(values))[occupied], values[occupied])


def test_the_lowest_value_is_returned_where_the_cdf_is_flat() -> None:
    cell = Empirical(torch.tensor([1.0, 0, 0, 1], dtype=torch.float64), torch.arange(5.0, dtype=torch.float64))
    assert cell.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == [0.5, 1, 3.5]


def test_the_cdf_is_zero_and_one_beyond_the_edges() -> None:
    assert distributions(0).cdf(torch.tensor([-1e9, -4, 4, 1e9])).tolist() == [[0, 0, 1, 1]] * 3


def test_batches_broadcast_and_index() -> None:
    cells = distributions(1)
    one = torch.tensor([-1.0, 0.3, 2])
    many = torch.tensor([[-1.0, 0.3], [0, 1], [2, 3]])
    assert torch.equal(cells.cdf(one)[2], cells[2].cdf(one))
    assert torch.equal(cells.cdf(many)[1], cells[1].cdf(many[1]))
    assert torch.equal(cells[0].cdf(many)[1], cells[0].cdf(many[1]))
    levels = many.sigmoid()
    assert torch.equal(cells.quantile(levels)[1], cells[1].quantile(levels[1]))
    assert torch.equal(cells[0].quantile(levels)[1], cells[0].quantile(levels[1]))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_levels_beyond_a_table_give_its_ends(level: float) -> None:
    grid: Tensor = torch.tensor([-2.0, 0, 5], dtype=torch.float64)
    cumulative = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert float(invert_cdf(cumulative, grid, torch.tensor([level]))) == (-2 if level == 0 else 5)
