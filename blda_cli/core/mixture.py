"""One-dimensional Gaussian mixtures: the paper's model of a cell, fitted to histograms by EM."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blda_cli.core.distributions import Distributions, Empirical, invert_cdf

_INVERSE_POINTS = 1 << 14
_INVERSE_REACH = 6.0


@dataclass(frozen=True)
class GaussianMixture:
    """Mixtures of K Gaussians.

    Attributes:
        weights: ``[..., K]``, sum 1.
        means: ``[..., K]``.
        variances: ``[..., K]``, positive.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and variances."""
        return self.weights, self.means, self.variances

    def __getitem__(self, index: int | slice) -> "GaussianMixture":
        return GaussianMixture(*(values[index] for values in self.parameters))

    def to(self, device: torch.device) -> "GaussianMixture":
        """The same mixtures on another device."""
        return GaussianMixture(*(values.to(device) for values in self.parameters))

    def cdf(self, values: Tensor) -> Tensor:
        """See :class:`Distributions`."""
        deviations = self.variances.double().sqrt()
        total: Tensor | float = 0.0
        # One component at a time: temporaries of the values' size instead of K times that.
        for k in range(self.weights.shape[-1]):
            standard = (values.double() - self.means[..., k, None]) / deviations[..., k, None]
            total = total + self.weights[..., k, None] * torch.special.ndtr(standard)
        assert isinstance(total, Tensor)
        return total

    def quantile(self, levels: Tensor) -> Tensor:
        """See :class:`Distributions`; linear in a table of 2¹⁴ points over all components' means ± 6 deviations.

        The error is below 1e-5 where the components are about equally wide, and always below one step of the table.
        """
        deviations = self.variances.double().sqrt()
        low = (self.means - _INVERSE_REACH * deviations).amin(dim=-1, keepdim=True)
        high = (self.means + _INVERSE_REACH * deviations).amax(dim=-1, keepdim=True)
        grid = torch.lerp(low, high, torch.linspace(0, 1, _INVERSE_POINTS, dtype=torch.float64, device=low.device))
        return invert_cdf(self.cdf(grid), grid, levels)


MINIMUM_VARIANCE = 1e-4
"""Floor of every component's variance, as published (Li et al., ICML 2025)."""


def fit_mixture(counts: Tensor, edges: Tensor, components: int = 5, iterations: int = 100) -> GaussianMixture:
    """Fit mixtures to histograms by EM on bins weighted by their counts.

    A bin is represented by its centre, so the cost is that of B points whatever the number of pixels; Sheppard's
    correction takes the bin's own variance ``w² / 12`` out of the components'. Components start at evenly spaced
    quantiles with the variance of the whole.

    Args:
        counts: float64 ``[..., B]``; an empty histogram gives NaN parameters.
        edges: float64 ``[B + 1]``, evenly spaced.
        components: K.
        iterations: EM steps.

    Returns:
        Mixtures ``[..., K]`` in float64.
    """
    # In units of half the grid about its middle, where a component's log density is a quadratic of small numbers: one
    # product with (1, x, x²) gives all densities, another all sums.
    middle, half = (edges[0] + edges[-1]) / 2, (edges[-1] - edges[0]) / 2
    centers = ((edges[:-1] + edges[1:]) / 2 - middle) / half
    floor, width = MINIMUM_VARIANCE / float(half) ** 2, 2 / (len(edges) - 1)
    powers = torch.stack([torch.ones_like(centers), centers, centers.square()])
    total = counts.sum(dim=-1, keepdim=True)
    levels = (torch.arange(components, dtype=torch.float64, device=counts.device) + 0.5) / components
    means = (Empirical(counts, edges).quantile(levels.expand(*counts.shape[:-1], components)) - middle) / half
    mean = (counts @ centers).unsqueeze(-1) / total
    variance = (counts * (centers - mean).square()).sum(dim=-1, keepdim=True) / total
    variances = variance.clamp(min=floor).expand_as(means)
    weights = torch.full_like(means, 1 / components) + 0 * total
    for _ in range(iterations):
        peaks = weights.log() - 0.5 * (variances.log() + means.square() / variances)  # a common factor cancels
        mass = torch.stack([peaks, means / variances, -0.5 / variances], dim=-1) @ powers  # [..., K, B]
        mass.sub_(mass.amax(dim=-2, keepdim=True)).exp_()
        mass.mul_((counts / mass.sum(dim=-2)).unsqueeze(-2))
        share, sums, squares = (mass @ powers.T).unbind(dim=-1)
        occupied = share > 0
        safe = torch.where(occupied, share, 1.0)
        means = torch.where(occupied, sums / safe, means)
        variances = torch.where(occupied, squares / safe - means.square(), variances).clamp(min=floor)
        weights = (share / total).clamp(min=torch.finfo(torch.float64).tiny)
    variances = (variances - width**2 / 12).clamp(min=floor)
    return GaussianMixture(weights, middle + half * means, half.square() * variances)


def fit_quality(counts: Tensor, edges: Tensor, fitted: Distributions) -> Tensor:
    """Kolmogorov-Smirnov distance ``max |F_empirical − F_fitted|`` at the bin edges, float64 ``[...]``."""
    grid = edges.expand(*counts.shape[:-1], edges.shape[0])
    return (Empirical(counts, edges).cdf(grid) - fitted.cdf(grid)).abs().amax(dim=-1)


COMPONENTS = 5
"""K, as published."""

_AT_ONCE = 64  # the temporaries of so many stay in a processor's cache
_MOST_BINS = 128


def fit_mixtures(counts: Tensor, edges: Tensor, components: int = COMPONENTS) -> GaussianMixture:
    """Fit a mixture to each of many histograms, a few at a time, on no more bins than they need.

    Args:
        counts: float64 ``[..., B]``; an empty histogram gives NaN parameters.
        edges: float64 ``[B + 1]``, evenly spaced.
        components: K.

    Returns:
        Mixtures ``[..., K]`` in float64 on the CPU.
    """
    shape, edges = counts.shape[:-1], edges.cpu()
    counts = counts.cpu().flatten(0, -2)
    parameters = torch.full((3, counts.shape[0], components), torch.nan, dtype=torch.float64)
    rows = (counts.sum(dim=1) > 0).nonzero().squeeze(1)
    rows = rows[counts[rows].argmax(dim=1).argsort()]  # neighbours share their bins
    for some in rows.split(_AT_ONCE) if len(rows) else ():
        part, part_edges = _trimmed(counts[some], edges)
        fitted = fit_mixture(part, part_edges, components)
        parameters[:, some] = torch.stack([fitted.weights, fitted.means, fitted.variances])
    return GaussianMixture(*parameters.unflatten(1, shape))


def _trimmed(counts: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """The histograms ``[M, B]`` and edges without the bins that are empty in all, neighbouring bins put together."""
    used = counts.sum(dim=0).nonzero().squeeze(1)
    merge = -(-int(used[-1] - used[0] + 1) // _MOST_BINS)
    first = int(used[0]) // merge * merge
    last = -(-int(used[-1] + 1) // merge) * merge
    # The number of bins is a power of two, the merge need not be one: pad to a whole number of merged bins.
    counts = torch.nn.functional.pad(counts, (0, max(0, last - counts.shape[1])))[:, first:last]
    counts = counts.unflatten(1, (-1, merge)).sum(dim=2)
    width = float(edges[1] - edges[0])
    return counts, edges[0] + width * (first + merge * torch.arange(counts.shape[1] + 1, dtype=torch.float64))
