"""One-dimensional distributions of logits: their CDF and its inverse, from which shifts are computed."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Distributions(Protocol):
    """A batch ``[...]`` of one-dimensional distributions."""

    def cdf(self, values: Tensor) -> Tensor:
        """``F(z)`` for values ``[..., V]`` (the batch broadcasts), float64 of the same shape."""

    def __getitem__(self, index: int) -> "Distributions":
        """The distributions of one index of the first batch dimension."""

    def quantile(self, levels: Tensor) -> Tensor:
        """``F⁻¹(q)`` for levels ``[..., V]`` in (0, 1), float64 of the same shape."""


@dataclass(frozen=True)
class Empirical:
    """Distributions given by histograms, uniform within a bin.

    Attributes:
        counts: float64 ``[..., B]``, not all zero where the distribution is evaluated.
        edges: float64 ``[B + 1]``.
    """

    counts: Tensor
    edges: Tensor

    def __getitem__(self, index: int) -> "Empirical":
        return Empirical(self.counts[index], self.edges)

    def cdf(self, values: Tensor) -> Tensor:
        """See :class:`Distributions`; piecewise linear, 0 and 1 beyond the edges."""
        cumulative = self._cumulative()
        bins = self.counts.shape[-1]
        position = (values.double() - self.edges[0]) / (self.edges[1] - self.edges[0])
        index = position.floor().clamp(0, bins - 1).long()
        batch = torch.broadcast_shapes(cumulative.shape[:-1], values.shape[:-1])
        cumulative = cumulative.expand(*batch, bins + 1)
        index = index.expand(*batch, values.shape[-1])
        below = cumulative.gather(-1, index)
        return torch.lerp(below, cumulative.gather(-1, index + 1), (position - index).clamp(0, 1))

    def quantile(self, levels: Tensor) -> Tensor:
        """See :class:`Distributions`; the lowest value with that level where the CDF is flat."""
        return invert_cdf(self._cumulative(), self.edges, levels)

    def _cumulative(self) -> Tensor:
        cumulative = torch.nn.functional.pad(self.counts.cumsum(dim=-1), (1, 0))
        return cumulative / cumulative[..., -1:]


def invert_cdf(cumulative: Tensor, grid: Tensor, levels: Tensor) -> Tensor:
    """Invert tabulated CDFs, linear between the points.

    Args:
        cumulative: float64 ``[..., G]``, non-decreasing.
        grid: float64 ``[..., G]``, increasing.
        levels: ``[..., V]``.

    Returns:
        float64 ``[..., V]``, the lowest value of each level where the CDF is flat.
    """
    points = grid.shape[-1]
    batch = torch.broadcast_shapes(cumulative.shape[:-1], levels.shape[:-1])
    cumulative = cumulative.expand(*batch, points).contiguous()
    grid = grid.expand(*batch, points)
    levels = levels.double().expand(*batch, levels.shape[-1]).contiguous()
    upper = torch.searchsorted(cumulative, levels).clamp(1, points - 1)
    low, high = cumulative.gather(-1, upper - 1), cumulative.gather(-1, upper)
    within = ((levels - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)).clamp(0, 1)
    return torch.lerp(grid.gather(-1, upper - 1), grid.gather(-1, upper), within)
