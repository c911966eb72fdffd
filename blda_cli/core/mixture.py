"""One-dimensional Gaussian mixtures: the paper's model of a cell, fitted to histograms by EM."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blda_cli.core.distributions import Distributions, Empirical, invert_cdf
from blda_cli.core.histogram import LogitHistogram

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

    def __getitem__(self, index: int) -> "GaussianMixture":
        return GaussianMixture(self.weights[index], self.means[index], self.variances[index])

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

    A bin stands for its centre, so the cost is that of B points whatever the number of pixels; Sheppard's
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
    centers = (edges[:-1] + edges[1:]) / 2
    width = float(edges[1] - edges[0])
    total = counts.sum(dim=-1, keepdim=True)
    levels = (torch.arange(components, dtype=torch.float64, device=counts.device) + 0.5) / components
    means = Empirical(counts, edges).quantile(levels.expand(*counts.shape[:-1], components))
    mean = (counts @ centers).unsqueeze(-1) / total
    variance = (counts * (centers - mean).square()).sum(dim=-1, keepdim=True) / total
    variances = variance.clamp(min=MINIMUM_VARIANCE).expand_as(means)
    weights = torch.full_like(means, 1 / components) + 0 * total
    for _ in range(iterations):
        squares = (centers - means.unsqueeze(-1)).square_()  # [..., K, B]; worked on in place: this is the whole cost
        peak = weights.log() - 0.5 * variances.log()  # the densities' common factor cancels
        mass = squares.mul_(-0.5 / variances.unsqueeze(-1)).add_(peak.unsqueeze(-1))
        mass = mass.sub_(mass.amax(dim=-2, keepdim=True)).exp_()
        mass.mul_((counts / mass.sum(dim=-2)).unsqueeze(-2))
        share = mass.sum(dim=-1)
        occupied = share > 0
        safe = torch.where(occupied, share, 1.0)
        means = torch.where(occupied, (mass @ centers) / safe, means)
        spread = (centers - means.unsqueeze(-1)).square_().mul_(mass).sum(dim=-1) / safe
        variances = torch.where(occupied, spread, variances).clamp(min=MINIMUM_VARIANCE)
        weights = (share / total).clamp(min=torch.finfo(torch.float64).tiny)
    variances = (variances - width**2 / 12).clamp(min=MINIMUM_VARIANCE)
    return GaussianMixture(weights, means, variances)


def fit_quality(counts: Tensor, edges: Tensor, fitted: Distributions) -> Tensor:
    """Kolmogorov-Smirnov distance ``max |F_empirical − F_fitted|`` at the bin edges, float64 ``[...]``."""
    grid = edges.expand(*counts.shape[:-1], edges.shape[0])
    return (Empirical(counts, edges).cdf(grid) - fitted.cdf(grid)).abs().amax(dim=-1)


COMPONENTS = 5
"""K, as published."""

_CELLS_AT_ONCE = 64  # the temporaries of so many stay in a processor's cache
_MOST_BINS = 256


@dataclass(frozen=True)
class MixtureFits:
    """The mixtures of all cells and of the two anchors, with their Kolmogorov-Smirnov distances.

    Attributes:
        cells: mixtures ``[C, C, K]``; NaN where a cell has no pixel.
        cell_distance: float64 ``[C, C]``; NaN where a cell has no pixel.
        anchors: mixtures ``[2, K]``, positive then negative.
        anchor_distance: float64 ``[2]``.
    """

    cells: GaussianMixture
    cell_distance: Tensor
    anchors: GaussianMixture
    anchor_distance: Tensor


def fit_mixtures(histogram: LogitHistogram, components: int = COMPONENTS) -> MixtureFits:
    """Fit a mixture to every cell and to the pooled positive and negative cells.

    Args:
        histogram: the cells.
        components: K.

    Returns:
        The fits, in float64 on the CPU.
    """
    counts, edges = histogram.counts.cpu(), histogram.edges.cpu()
    cells, cell_distance = _fit_occupied(counts.flatten(0, 1), edges, components)
    pooled = torch.stack([histogram.positive(), histogram.negative()]).cpu()
    anchors, anchor_distance = _fit_occupied(pooled, edges, components)
    shape = counts.shape[:2]
    return MixtureFits(
        cells=GaussianMixture(
            cells.weights.unflatten(0, shape), cells.means.unflatten(0, shape), cells.variances.unflatten(0, shape)
        ),
        cell_distance=cell_distance.unflatten(0, shape),
        anchors=anchors,
        anchor_distance=anchor_distance,
    )


def _fit_occupied(counts: Tensor, edges: Tensor, components: int) -> tuple[GaussianMixture, Tensor]:
    """Fit the histograms ``[M, B]`` that hold anything, a few at a time, on no more bins than they need."""
    parameters = torch.full((3, counts.shape[0], components), torch.nan, dtype=torch.float64)
    distance = torch.full((counts.shape[0],), torch.nan, dtype=torch.float64)
    for rows in (counts.sum(dim=1) > 0).nonzero().squeeze(1).split(_CELLS_AT_ONCE):
        if len(rows) == 0:  # what splitting nothing gives
            break
        used = counts[rows].sum(dim=0).nonzero().squeeze(1)
        merge = -(-int(used[-1] - used[0] + 1) // _MOST_BINS)
        first = int(used[0]) // merge * merge
        last = -(-int(used[-1] + 1) // merge) * merge
        # The number of bins is a power of two, the merge need not be one: pad to a whole number of merged bins.
        part = torch.nn.functional.pad(counts[rows], (0, max(0, last - counts.shape[1])))[:, first:last]
        width = float(edges[1] - edges[0])
        part = part.unflatten(1, (-1, merge)).sum(dim=2)
        part_edges = edges[0] + width * (first + merge * torch.arange(part.shape[1] + 1, dtype=torch.float64))
        fitted = fit_mixture(part, part_edges, components)
        parameters[:, rows] = torch.stack([fitted.weights, fitted.means, fitted.variances])
        distance[rows] = fit_quality(part, part_edges, fitted)
    return GaussianMixture(*parameters), distance
