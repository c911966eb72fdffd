"""Training losses per pixel: cross-entropy, and BLDA's corrected cross-entropy and density regression."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.float64 import float64_device
from blda_cli.core.mixture import GaussianMixture
from blda_cli.core.online_mixture import LogitGrid
from blda_cli.core.shifts import QUANTILE_RANGE

_LEVELS = 1 << 11


@dataclass(frozen=True)
class AnchorQuantiles:
    """``F⁻¹`` of the two anchors over :data:`~blda_cli.core.shifts.QUANTILE_RANGE`, linear between 2¹¹ levels.

    Attributes:
        table: float32 ``[2, 2¹¹ + 1]``, positive then negative.
    """

    table: Tensor

    @classmethod
    def of(cls, anchors: GaussianMixture) -> "AnchorQuantiles":
        """Tabulate anchors ``[2, K]``."""
        device = anchors.means.device
        exact = float64_device(device)
        levels = torch.linspace(*QUANTILE_RANGE, _LEVELS + 1, dtype=torch.float64, device=exact)
        return cls(anchors.to(exact).quantile(levels.expand(2, -1)).float().to(device))

    def __call__(self, levels: Tensor, anchor: Tensor) -> Tensor:
        """``F⁻¹(q)``, levels clamped to the range as published.

        Args:
            levels: float32, of any shape.
            anchor: int32, broadcasts to it: 0 positive, 1 negative.
        """
        low, high = QUANTILE_RANGE
        position = (levels - low).mul_(_LEVELS / (high - low)).clamp_(0, _LEVELS)
        return _interpolate(self.table, position, anchor * (_LEVELS + 1))


@dataclass(frozen=True)
class ShiftTable:
    """Shifts and CDFs of cells, tabulated at the edges of a grid and linear between them.

    A bank may hold the cells of several domains: row ``r`` is label ``r mod C`` of domain ``r // C``. The row after the
    last is for pixels without a label, and shifts nothing.

    Attributes:
        grid: where it is tabulated, B bins.
        shifts: ``Δ[r, l]``, float32 ``[R + 1, C, B + 1]``.
        positive_cdf: ``F[r, r mod C]``, float32 ``[R + 1, B + 1]``.
    """

    grid: LogitGrid
    shifts: Tensor
    positive_cdf: Tensor

    @classmethod
    def build(cls, cells: GaussianMixture, fitted: Tensor, anchors: AnchorQuantiles, grid: LogitGrid) -> "ShiftTable":
        """Tabulate ``Δ[r, l](z) = F_a⁻¹(F[r, l](z)) − z``, ``a`` positive where ``r mod C = l``, else negative.

        Li et al., ICML 2025, eq. 5 and 6.

        Args:
            cells: ``[R, C, K]``.
            fitted: bool ``[R, C]``; the other cells' shift is zero, their CDF NaN.
            anchors: the distributions they are shifted onto.
            grid: over the logits that will be looked up.
        """
        rows, num_classes = fitted.shape
        edges = grid.edges
        row = torch.arange(rows, device=edges.device)
        own = row % num_classes
        negative = (own.unsqueeze(1) != torch.arange(num_classes, device=edges.device)).int().unsqueeze(-1)
        levels = _cdf(cells, edges)
        shifts = torch.where(fitted.unsqueeze(-1), anchors(levels, negative) - edges, 0.0)
        positive = torch.where(fitted[row, own].unsqueeze(-1), levels[row, own], torch.nan)
        return cls(grid, F.pad(shifts, (0, 0, 0, 0, 0, 1)), F.pad(positive, (0, 0, 0, 1), value=torch.nan))

    def shift(self, logits: Tensor, rows: Tensor) -> Tensor:
        """``Δ[r, l](f_l)`` of every pixel and channel; no gradient.

        Args:
            logits: ``[N, C, *spatial]``.
            rows: ``[N, *spatial]`` integers; outside ``[0, R)`` the shift is 0.

        Returns:
            float32 ``[N, C, *spatial]``.
        """
        num_classes, entries = logits.shape[1], self.grid.bins + 1
        channel = torch.arange(num_classes, dtype=torch.int32, device=logits.device) * entries
        channel = channel.view(-1, *[1] * (logits.dim() - 2))
        row = (self._known(rows) * (num_classes * entries)).unsqueeze(1)
        return _interpolate(self.shifts, self.grid.position(logits.detach()), row, channel)

    def density(self, logits: Tensor, rows: Tensor) -> Tensor:
        """``F[r, y](f_y)``, ``y = r mod C``: the cumulative density of every pixel's own logit; no gradient.

        Args:
            logits: ``[N, C, *spatial]``.
            rows: ``[N, *spatial]`` integers.

        Returns:
            float32 ``[N, *spatial]`` in [0, 1]; NaN outside ``[0, R)`` and where the cell was never fitted.
        """
        rows = self._known(rows)
        own = logits.detach().gather(1, (rows % logits.shape[1]).long().unsqueeze(1)).squeeze(1)
        row = rows * (self.grid.bins + 1)
        return _interpolate(self.positive_cdf, self.grid.position(own), row)

    def _known(self, rows: Tensor) -> Tensor:
        rows, none = rows.int(), self.positive_cdf.shape[0] - 1
        return torch.where((rows >= 0) & (rows < none), rows, none)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every pixel, without a correction.

    Args:
        logits: ``[N, C, *spatial]``.
        labels: int64 ``[N, *spatial]``.

    Returns:
        float32 ``[N, *spatial]``, 0 where the label is ``IGNORE_INDEX``.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")


def corrected_cross_entropy(logits: Tensor, labels: Tensor, shift: Tensor, tau: float | Tensor) -> Tensor:
    """``CE(f − τ Δ_y, y)`` of every pixel (Li et al., ICML 2025, eq. 9).

    Args:
        logits: ``[N, C, *spatial]``.
        labels: int64 ``[N, *spatial]``.
        shift: ``[N, C, *spatial]``, see :meth:`ShiftTable.shift`.
        tau: strength, a number.

    Returns:
        float32 ``[N, *spatial]``, 0 where the label is ``IGNORE_INDEX``.
    """
    return F.cross_entropy(logits.float() - tau * shift, labels, ignore_index=IGNORE_INDEX, reduction="none")


def cumulative_density_loss(predicted: Tensor, density: Tensor) -> Tensor:
    """``|d̂ − F[y, y](f_y)|`` of every pixel.

    Args:
        predicted: ``d̂``, ``[N, *spatial]``.
        density: ``[N, *spatial]``, see :meth:`ShiftTable.density`.

    Returns:
        float32 ``[N, *spatial]``, 0 without gradient where the density is NaN.
    """
    predicted = predicted.float()
    return (predicted - torch.where(density.isnan(), predicted.detach(), density)).abs()


def _cdf(mixture: GaussianMixture, values: Tensor) -> Tensor:
    """``F(z)`` in float32, ``[..., V]`` for values ``[V]``.

    :meth:`GaussianMixture.cdf` works in double precision, at several times the cost of this, which runs every step.
    """
    scale = (0.5 / mixture.variances).sqrt()
    standard = (values * scale.unsqueeze(-1)).sub_((mixture.means * scale).unsqueeze(-1))  # [..., K, V]
    weights = 0.5 * mixture.weights
    return standard.erf_().mul_(weights.unsqueeze(-1)).sum(dim=-2) + weights.sum(dim=-1, keepdim=True)


def _interpolate(table: Tensor, position: Tensor, *starts: Tensor) -> Tensor:
    """Values of a table ``[..., T]`` at ``position`` after ``starts`` in it, linear between a row's entries.

    ``position`` is overwritten.
    """
    below = position.nan_to_num_(0.0).int()  # a NaN is reported by the loss; as an index it would crash a GPU
    within = position.sub_(below)
    for start in starts:
        below.add_(start)
    index = below.flatten()
    step = F.pad(table.diff(), (0, 1)).flatten().index_select(0, index)
    return torch.addcmul(table.flatten().index_select(0, index).view_as(within), step.view_as(within), within)
