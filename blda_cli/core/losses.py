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

    Row ``C`` belongs to no class: pixels without a label look there, and find a shift of zero.

    Attributes:
        grid: where it is tabulated, B bins.
        shifts: ``Δ[c, l]``, float32 ``[C + 1, C, B + 1]``.
        positive_cdf: ``F[c, c]``, float32 ``[C + 1, B + 1]``.
    """

    grid: LogitGrid
    shifts: Tensor
    positive_cdf: Tensor

    @classmethod
    def build(cls, cells: GaussianMixture, fitted: Tensor, anchors: GaussianMixture, grid: LogitGrid) -> "ShiftTable":
        """Tabulate ``Δ[c, l](z) = F_a⁻¹(F[c, l](z)) − z``, ``a`` positive where ``c = l``, else negative.

        Li et al., ICML 2025, eq. 5 and 6; levels are clamped to
        :data:`~blda_cli.core.shifts.QUANTILE_RANGE` before inverting, as published.

        Args:
            cells: ``[C, C, K]``.
            fitted: bool ``[C, C]``; the other cells' shift is zero, their CDF one half.
            anchors: ``[2, K]``, positive then negative.
            grid: over the logits that will be looked up.
        """
        num_classes = fitted.shape[0]
        edges = grid.edges
        levels = cells.cdf(edges)
        clamped = levels.clamp(*QUANTILE_RANGE)
        target = anchors[1].quantile(clamped.flatten()).view_as(levels)
        own = torch.arange(num_classes, device=edges.device)
        target[own, own] = anchors[0].quantile(clamped[own, own].flatten()).view(num_classes, -1)
        shifts = torch.where(fitted.unsqueeze(-1), target - edges, 0.0).float()
        positive = torch.where(fitted[own, own].unsqueeze(-1), levels[own, own], 0.5).float()
        return cls(grid, F.pad(shifts, (0, 0, 0, 0, 0, 1)), F.pad(positive, (0, 0, 0, 1)))

    def shift(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``Δ[y, l](f_l)`` of every pixel and channel; no gradient.

        Args:
            logits: ``[N, C, *spatial]``.
            labels: ``[N, *spatial]`` integers; outside ``[0, C)`` the shift is 0.

        Returns:
            float32 ``[N, C, *spatial]``.
        """
        num_classes = logits.shape[1]
        channel = torch.arange(num_classes, device=logits.device).view(-1, *[1] * (logits.dim() - 2))
        cell = self._row(labels, num_classes).unsqueeze(1) * num_classes + channel
        return self._look_up(self.shifts, cell, logits)

    def density(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``F[y, y](f_y)``, the cumulative density of every pixel's own logit; no gradient.

        Args:
            logits: ``[N, C, *spatial]``.
            labels: ``[N, *spatial]`` integers.

        Returns:
            float32 ``[N, *spatial]`` in [0, 1]; 0 where there is no label.
        """
        row = self._row(labels, logits.shape[1])
        own = logits.detach().gather(1, row.clamp(max=logits.shape[1] - 1).unsqueeze(1)).squeeze(1)
        return self._look_up(self.positive_cdf, row, own)

    @staticmethod
    def _row(labels: Tensor, num_classes: int) -> Tensor:
        labels = labels.long()
        return torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)

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
