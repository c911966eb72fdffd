from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.core.mixture import GaussianMixture
from blda_cli.core.online_mixture import LogitGrid, OnlineMixture, count_cells, em_step, fit, reach
from blda_cli.core.shifts import MINIMUM_PIXELS

NAMES = {"weights": "weights", "means": "means", "variances": "covariances"}


def started(rows: tuple[int, ...], seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(*rows, 5, generator=generator)
    return GaussianMixture(torch.full_like(means, 0.2), means, torch.ones_like(means))


def test_equals_the_published_code() -> None:
    recorded = np.load(Path(__file__).parent / "published" / "online_mixture.npz")

    def read(name: str) -> Tensor:
        return torch.from_numpy(recorded[name])

    bank = OnlineMixture((6, 6), momentum=float(recorded["tau"]), warmup=int(recorded["warmup"]), blend_first_fit=True)
    bank.mixture = GaussianMixture(read("init_weights"), read("init_means"), read("init_covariances"))
    for step in range(6):
        data, enough = read(f"step{step}_data"), read(f"step{step}_mask") > 0
        batch = fit(bank.mixture, data, torch.ones_like(data))
        bank.blend(batch, enough)
        for ours, theirs in NAMES.items():
            fitted, kept = read(f"step{step}_fit_{theirs}"), read(f"step{step}_ema_{theirs}")
            torch.testing.assert_close(getattr(batch, ours)[enough], fitted[enough], atol=1e-4, rtol=0)
            torch.testing.assert_close(getattr(bank.mixture, ours), kept, atol=1e-4, rtol=0)
        assert torch.equal(bank.staleness, read(f"step{step}_staleness").squeeze(2))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.5, 4.0, 20.0]),
    bins=st.sampled_from([256, 1024]),
)
def test_em_on_bins_is_em_on_samples(seed: int, scale: float, bins: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    modes = scale * torch.randn(4, 3, 1, generator=generator)
    samples = (modes + scale * torch.randn(4, 3, 700, generator=generator)).flatten(1)
    start = GaussianMixture(
        torch.full((4, 5), 0.2), scale * torch.randn(4, 5, generator=generator), torch.full((4, 5), scale**2)
    )
    grid = LogitGrid.spanning(reach(samples), bins)
    index = grid.position(samples).long().clamp(max=bins - 1)
    counts = torch.zeros(4, bins).scatter_add_(1, index, torch.ones_like(samples))
    of_samples = fit(start, samples, torch.ones_like(samples))
    of_bins = fit(start, grid.centers, counts, grid.width)
    # A bin's width is at most a fortieth of the data's spread here; means err by far less. They are weighed: where a
    # component has the thousandth part of the data, hardly anything says where it lies.
    torch.testing.assert_close(of_bins.weights, of_samples.weights, atol=5e-3, rtol=0)
    for ours, theirs, unit in (
        (of_bins.means, of_samples.means, scale),
        (of_bins.variances, of_samples.variances, scale**2),
    ):
        difference = of_bins.weights * (ours - theirs)
        torch.testing.assert_close(difference, torch.zeros_like(difference), atol=3e-3 * unit, rtol=0)
    at = scale * torch.linspace(-4, 4, 50)
    assert float((of_bins.cdf(at) - of_samples.cdf(at)).abs().max()) < 5e-3


def test_an_em_step_raises_the_likelihood_without_the_floor() -> None:
    generator = torch.Generator().manual_seed(3)
    samples = torch.cat([torch.randn(1, 400, generator=generator) - 3, 2 * torch.randn(1, 600, generator=generator)], 1)

    def likelihood(mixture: GaussianMixture) -> float:
        z = samples.unsqueeze(-1)
        density = torch.exp(-0.5 * (z - mixture.means.unsqueeze(1)) ** 2 / mixture.variances.unsqueeze(1))
        density = density * (mixture.weights / (2 * torch.pi * mixture.variances).sqrt()).unsqueeze(1)
        return float(density.sum(-1).log().sum())

    mixture = started((1,))
    values = []
    for _ in range(6):
        values.append(likelihood(mixture))
        mixture = em_step(mixture, samples, torch.ones_like(samples), density_floor=0.0)
    assert values == sorted(values)
    assert values[-1] > values[0] + 100


@pytest.mark.parametrize("bins", [16, 32])
def test_rounding_to_wide_bins_is_taken_out_of_the_variance(bins: int) -> None:
    """A bin's square over twelve is 2 to 8 % of this variance; what is left is the sample's own error."""
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(1, 100_000, generator=generator)
    grid = LogitGrid.spanning(torch.tensor([8.0, 8.0]), bins)
    counts = torch.histc(samples, bins, -8, 8).unsqueeze(0)
    one = GaussianMixture(torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1))
    of_bins = em_step(one, grid.centers, counts, grid.width)
    assert float(of_bins.variances) == pytest.approx(float(samples.var()), rel=5e-3)


def test_no_component_gets_narrower_than_a_bin() -> None:
    grid = LogitGrid.spanning(torch.tensor([4.0, 4.0]), 8)
    counts = torch.zeros(1, 8)
    counts[0, 2] = 1000.0
    mixture = GaussianMixture(torch.full((1, 5), 0.2), grid.centers[None, 2:3].expand(1, 5), torch.ones(1, 5))
    for _ in range(20):
        mixture = em_step(mixture, grid.centers, counts, grid.width)
    assert torch.allclose(mixture.variances, grid.width**2 / 12)


def test_cells_count_every_channel_under_the_label() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 9, 7, generator=generator)
    labels = torch.randint(0, 4, (2, 9, 7), generator=generator)
    labels[0, :3] = 255
    grid = LogitGrid.spanning(reach(logits), 16)
    counts = count_cells(grid, logits, labels)
    edges = grid.edges.numpy()
    for label in range(4):
        for channel in range(4):
            values = logits[:, channel][labels == label].numpy()
            expected, _ = np.histogram(values, edges)
            # At the very edges numpy and a division may round differently: a value or two.
            assert np.abs(np.cumsum(expected) - np.cumsum(counts[label, channel].numpy())).max() <= 1
    assert int(counts.sum()) == 4 * int((labels != 255).sum())


def test_the_reach_of_two_batches_is_their_maximum() -> None:
    one, other = torch.tensor([[-3.0, 1.0]]), torch.tensor([[-1.0, 5.0]])
    together = LogitGrid.spanning(torch.maximum(reach(one), reach(other)), 8)
    assert (float(together.edges[0]), float(together.edges[-1])) == (-3.0, 5.0)


def test_equal_logits_make_a_grid_too() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    grid = LogitGrid.spanning(reach(logits), 8)
    assert torch.isfinite(grid.position(logits)).all()
    assert float(count_cells(grid, logits, torch.zeros(1, 4, 4, dtype=torch.long)).sum()) == 32


def copied(bank: OnlineMixture) -> GaussianMixture:
    return GaussianMixture(*(values.clone() for values in bank.mixture.parameters))


def test_rows_with_few_pixels_keep_their_mixture_and_catch_up() -> None:
    bank = OnlineMixture((2,), momentum=0.99, warmup=10)
    values = torch.linspace(2, 4, 50)
    enough, few = torch.full((50,), MINIMUM_PIXELS / 50), torch.full((50,), 1.0)
    before = copied(bank)
    for _ in range(20):
        bank.update(values, torch.stack([enough, few]))
    assert torch.equal(bank.mixture.means[1], before.means[1])
    assert bank.fitted.tolist() == [True, False]
    assert bank.staleness.tolist() == [1.0, 21.0]


@pytest.mark.parametrize("blended", [False, True])
def test_a_row_first_seen_late_has_the_fit_alone_or_as_published_a_part_of_it(blended: bool) -> None:
    bank = OnlineMixture((2,), momentum=0.99, warmup=10, blend_first_fit=blended)
    values = torch.linspace(2, 4, 50)
    enough, few = torch.full((50,), MINIMUM_PIXELS / 50), torch.full((50,), 1.0)
    start = copied(bank)[1]
    for _ in range(20):
        bank.update(values, torch.stack([enough, few]))
    first, second = fit(start, values, enough), start
    for present in (enough, few, few, enough):
        bank.update(values, torch.stack([few, present]))
        if bank.step == 21:
            kept = 0.99**21 if blended else 0.0
            second = copied(bank)[1]
            torch.testing.assert_close(second.means, kept * start.means + (1 - kept) * first.means)
    again = fit(second, values, enough)
    torch.testing.assert_close(bank.mixture.means[1], 0.99**3 * second.means + (1 - 0.99**3) * again.means)


def test_the_first_update_takes_the_batch_alone() -> None:
    bank = OnlineMixture((1,))
    start = copied(bank)
    values, counts = torch.linspace(-1, 5, 100), torch.full((1, 100), 10.0)
    bank.update(values, counts)
    torch.testing.assert_close(bank.mixture.means, fit(start, values, counts).means)


def test_a_bank_goes_on_from_its_state() -> None:
    def stream(bank: OnlineMixture, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            bank.update(torch.linspace(-4, 4, 64), torch.randint(0, 40, (3, 64), generator=generator).float())

    through, first, second = OnlineMixture((3,)), OnlineMixture((3,)), OnlineMixture((3,))
    stream(through, range(8))
    stream(first, range(5))
    second.load_state_dict(first.state_dict())
    stream(second, range(5, 8))
    assert torch.equal(through.mixture.means, second.mixture.means)
    assert torch.equal(through.mixture.variances, second.mixture.variances)
    assert through.step == second.step


@pytest.mark.parametrize("floor", [0.0, 1e-7])
def test_rows_without_pixels_stay_finite(floor: float) -> None:
    mixture = em_step(started((2,)), torch.linspace(-1, 1, 8), torch.zeros(2, 8), density_floor=floor or 1e-7)
    for name in NAMES:
        assert torch.isfinite(getattr(mixture, name)).all()
