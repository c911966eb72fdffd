"""The losses that BLDA adds to self-training: corrected cross-entropy and cumulative-density regression."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.mixture import GaussianMixture
from blda_cli.core.online_mixture import LogitGrid
from blda_cli.core.shifts import QUANTILE_RANGE


@dataclass(frozen=True)
class ShiftTable:
    """Shifts and CDFs of cells, tabulated at the edges of a grid and linear between them.

    A bank may hold the cells of several domains: row ``r`` is label ``r mod C`` of domain ``r // C``. The row after
    the last stands for pixels without a label, and shifts nothing.

    Attributes:
        grid: where it is tabulated, B bins.
        shifts: ``Δ[r, l]``, float32 ``[R + 1, C, B + 1]``.
        positive_cdf: ``F[r, r mod C]``, float32 ``[R + 1, B + 1]``.
    """

    grid: LogitGrid
    shifts: Tensor
    positive_cdf: Tensor

    @classmethod
    def build(cls, cells: GaussianMixture, fitted: Tensor, anchors: GaussianMixture, grid: LogitGrid) -> "ShiftTable":
        """Tabulate ``Δ[r, l](z) = F_a⁻¹(F[r, l](z)) − z``, ``a`` positive where ``r mod C = l``, else negative.

        Li et al., ICML 2025, eq. 5 and 6; levels are clamped to
        :data:`~blda_cli.core.shifts.QUANTILE_RANGE` before inverting, as published.

        Args:
            cells: ``[R, C, K]``.
            fitted: bool ``[R, C]``; the other cells' shift is zero, their CDF one half.
            anchors: ``[2, K]``, positive then negative.
            grid: over the logits that will be looked up.
        """
        rows, num_classes = fitted.shape
        edges = grid.edges
        row = torch.arange(rows, device=edges.device)
        own = row % num_classes
        levels = cells.cdf(edges)
        clamped = levels.clamp(*QUANTILE_RANGE)
        target = anchors[1].quantile(clamped.flatten()).view_as(levels)
        target[row, own] = anchors[0].quantile(clamped[row, own].flatten()).view(rows, -1)
        shifts = torch.where(fitted.unsqueeze(-1), target - edges, 0.0).float()
        positive = torch.where(fitted[row, own].unsqueeze(-1), levels[row, own], 0.5).float()
        return cls(grid, F.pad(shifts, (0, 0, 0, 0, 0, 1)), F.pad(positive, (0, 0, 0, 1)))

    def shift(self, logits: Tensor, rows: Tensor) -> Tensor:
        """``Δ[r, l](f_l)`` of every pixel and channel; no gradient.

        Args:
            logits: ``[N, C, *spatial]``.
            rows: ``[N, *spatial]`` integers; outside ``[0, R)`` the shift is 0.

        Returns:
            float32 ``[N, C, *spatial]``.
        """
        num_classes = logits.shape[1]
        channel = torch.arange(num_classes, device=logits.device).view(-1, *[1] * (logits.dim() - 2))
        return self._look_up(self.shifts, self._known(rows).unsqueeze(1) * num_classes + channel, logits)

    def density(self, logits: Tensor, rows: Tensor) -> Tensor:
        """``F[r, y](f_y)``, ``y = r mod C``: the cumulative density of every pixel's own logit; no gradient.

        Args:
            logits: ``[N, C, *spatial]``.
            rows: ``[N, *spatial]`` integers.

        Returns:
            float32 ``[N, *spatial]`` in [0, 1]; 0 outside ``[0, R)``.
        """
        rows = self._known(rows)
        own = logits.detach().gather(1, (rows % logits.shape[1]).unsqueeze(1)).squeeze(1)
        return self._look_up(self.positive_cdf, rows, own)

    def _known(self, rows: Tensor) -> Tensor:
        rows, none = rows.long(), self.positive_cdf.shape[0] - 1
        return torch.where((rows >= 0) & (rows < none), rows, none)

    def _look_up(self, table: Tensor, cell: Tensor, logits: Tensor) -> Tensor:
        position = self.grid.position(logits.detach())
        below = position.to(torch.int64).clamp_(max=self.grid.bins - 1)
        within = position.sub_(below)
        index = below.add_(cell * (self.grid.bins + 1))
        table = table.flatten()
        return torch.lerp(table.take(index), table.take(index + 1), within)


def corrected_cross_entropy(logits: Tensor, labels: Tensor, shift: Tensor, tau: float) -> Tensor:
    """``CE(f − τ Δ_y, y)`` of every pixel (Li et al., ICML 2025, eq. 9).

    Args:
        logits: ``[N, C, *spatial]``.
        labels: int64 ``[N, *spatial]``.
        shift: ``[N, C, *spatial]``, see :meth:`ShiftTable.shift`.
        tau: strength.

    Returns:
        float32 ``[N, *spatial]``, 0 where the label is ``IGNORE_INDEX``.
    """
    return F.cross_entropy(logits.float() - tau * shift, labels, ignore_index=IGNORE_INDEX, reduction="none")


def cumulative_density_loss(predicted: Tensor, density: Tensor, labels: Tensor) -> Tensor:
    """``|d̂ − F[y, y](f_y)|`` of every pixel.

    Args:
        predicted: ``d̂``, ``[N, *spatial]``.
        density: ``[N, *spatial]``, see :meth:`ShiftTable.density`.
        labels: int64 ``[N, *spatial]``.

    Returns:
        float32 ``[N, *spatial]``, 0 where the label is ``IGNORE_INDEX``.
    """
    return torch.where(labels == IGNORE_INDEX, 0.0, (predicted.float() - density).abs())
