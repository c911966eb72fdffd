from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from blda_cli.core.distributions import Empirical
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.mixture import MINIMUM_VARIANCE, GaussianMixture, fit_mixture, fit_mixtures, fit_quality


def mixtures(seed: int, count: int = 4, components: int = 5) -> GaussianMixture:
    random = torch.Generator().manual_seed(seed)
    draw = torch.rand(3, count, components, generator=random, dtype=torch.float64)
    return GaussianMixture(draw[0] / draw[0].sum(dim=-1, keepdim=True), draw[1] * 12 - 6, 0.2 + 3 * draw[2])


def bimodal(size: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=random, dtype=torch.float64)
    return torch.where(torch.rand(size, generator=random) < 0.3, 0.5 * values - 3, values + 1.5)


def binned(values: Tensor, bins: int, limit: float = 8.0) -> tuple[Tensor, Tensor]:
    edges = torch.linspace(-limit, limit, bins + 1, dtype=torch.float64)
    return torch.from_numpy(np.histogram(values.numpy(), edges.numpy())[0]).double(), edges


def test_cdf_of_the_published_mixtures(published: dict[str, Tensor]) -> None:
    cells = GaussianMixture(published["gmm_weights"], published["gmm_means"], published["gmm_variances"])
    for channel in range(6):
        column = GaussianMixture(cells.weights[:, channel], cells.means[:, channel], cells.variances[:, channel])
        cdf = column.cdf(published["logits"][:, channel].flatten())
        expected = published["cdf_values"][:, :, channel].movedim(1, 0).flatten(1)
        torch.testing.assert_close(cdf, expected.double(), rtol=0, atol=5e-7)


@pytest.mark.parametrize("seed", range(5))
def test_cdf_and_quantile_are_those_of_the_reference(reference: ModuleType, seed: int) -> None:
    many = mixtures(seed)
    levels = torch.linspace(0.001, 0.999, 301, dtype=torch.float64)
    quantiles = many.quantile(levels)
    for row in range(4):
        parameters = [tensor[row].numpy() for tensor in (many.weights, many.means, many.variances)]
        exact = reference.mixture_quantile(*parameters, levels.numpy())
        np.testing.assert_allclose(quantiles[row].numpy(), exact, atol=1e-5)
        np.testing.assert_allclose(many[row].cdf(quantiles[row]), levels, atol=1e-6)
        np.testing.assert_allclose(
            many.cdf(quantiles)[row].numpy(), reference.mixture_cdf(*parameters, quantiles[row].numpy()), atol=1e-12
        )


def test_quantiles_beside_a_much_narrower_component_err_by_less_than_a_step_of_the_table(
    reference: ModuleType,
) -> None:
    parameters = [np.array(numbers) for numbers in ([0.5, 0.5], [0.0, 1.0], [100.0, 1e-4])]
    mixture = GaussianMixture(*(torch.from_numpy(array) for array in parameters))
    levels = torch.linspace(0.01, 0.99, 999, dtype=torch.float64)
    exact = reference.mixture_quantile(*parameters, levels.numpy())
    assert np.abs(mixture.quantile(levels).numpy() - exact).max() < 12 * 10 / 2**14


def test_em_on_bins_is_em_on_samples(reference: ModuleType) -> None:
    values = bimodal(20_000)
    counts, edges = binned(values, 1 << 13)
    fitted = fit_mixture(counts, edges, components=3, iterations=30)
    start = Empirical(counts, edges).quantile(torch.tensor([1 / 6, 3 / 6, 5 / 6], dtype=torch.float64))
    weights, means, variances = reference.em_on_samples(values.numpy(), start.numpy(), 30)
    np.testing.assert_allclose(fitted.weights.numpy(), weights, atol=1e-4)
    np.testing.assert_allclose(fitted.means.numpy(), means, atol=1e-3)
    np.testing.assert_allclose(fitted.variances.numpy(), variances, atol=1e-3)


def test_the_width_of_the_bins_is_taken_out_of_the_variance() -> None:
    values = 0.6 * torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2
    fitted = fit_mixture(*binned(values, 16), components=1)  # bins of width 1: their own variance is 0.083
    assert float(fitted.means) == pytest.approx(0.2, abs=0.01)
    assert float(fitted.variances) == pytest.approx(0.36, abs=0.01)


def test_a_fit_recovers_a_mixture_and_says_how_well() -> None:
    counts, edges = binned(bimodal(200_000), 256)
    two, one = fit_mixture(counts, edges, components=2), fit_mixture(counts, edges, components=1)
    low = int(two.means.argmin())
    assert two.weights.sum() == pytest.approx(1)
    assert two.weights[low] == pytest.approx(0.3, abs=0.01)
    assert two.means[low] == pytest.approx(-3, abs=0.02)
    assert two.means[1 - low] == pytest.approx(1.5, abs=0.02)
    assert two.variances[low] == pytest.approx(0.25, abs=0.02)
    assert two.variances[1 - low] == pytest.approx(1, abs=0.03)
    assert fit_quality(counts, edges, two) < 0.005
    assert fit_quality(counts, edges, one) > 0.05


def test_fit_quality_is_the_largest_gap_between_the_cdfs() -> None:
    edges = torch.linspace(-1, 1, 5, dtype=torch.float64)
    counts = torch.tensor([[0.0, 4, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    uniform = Empirical(torch.ones(4, dtype=torch.float64), edges)
    assert fit_quality(counts, edges, uniform).tolist() == [0.5, 0]


def test_all_mass_in_one_bin_keeps_the_variance_at_its_floor() -> None:
    edges = torch.linspace(-1, 1, 9, dtype=torch.float64)
    fitted = fit_mixture(torch.nn.functional.one_hot(torch.tensor(2), 8).double() * 700, edges)
    assert (fitted.variances == MINIMUM_VARIANCE).all()
    assert fitted.weights.sum() == pytest.approx(1)
    assert float(fitted.quantile(torch.tensor([0.5], dtype=torch.float64))) == pytest.approx(-0.375, abs=1e-3)


def test_many_histograms_are_fitted_on_the_bins_they_need_and_empty_ones_are_nan() -> None:
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (1, 20_000), generator=random)
    logits = torch.randn(1, 3, 20_000, generator=random)
    logits[0, 0] += torch.where(labels[0] == 0, 40, -5)  # far outliers, so that bins must be merged
    histogram = LogitHistogram(3, 4096)
    histogram.update(logits, labels)
    fitted = fit_mixtures(histogram.counts, histogram.edges)
    assert fitted.weights.shape == fitted.means.shape == fitted.variances.shape == (3, 3, 5)
    for parameter in (fitted.weights, fitted.means, fitted.variances):
        assert parameter[2].isnan().all()
        assert parameter[:2].isfinite().all()
    two = GaussianMixture(fitted.weights[:2], fitted.means[:2], fitted.variances[:2])
    assert fit_quality(histogram.counts[:2], histogram.edges, two).max() < 0.05
    mean = (two.weights * two.means).sum(dim=-1)
    torch.testing.assert_close(mean, histogram.means()[:2], rtol=0, atol=0.01)
    spread = (two.weights * (two.variances + two.means.square())).sum(dim=-1) - mean.square()
    torch.testing.assert_close(spread, torch.ones(2, 3, dtype=torch.float64), rtol=0.05, atol=0)
    assert fit_mixtures(histogram.counts[2], histogram.edges).means.isnan().all()
