"""BLDA (Li et al., ICML 2025): self-training with logits shifted onto shared distributions, and density regression."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.bias import estimated_bias
from blda_cli.core.float64 import float64_device
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.losses import AnchorQuantiles, ShiftTable, corrected_cross_entropy, cumulative_density_loss
from blda_cli.core.mixture import GaussianMixture
from blda_cli.core.online_mixture import ENOUGH, LogitGrid, OnlineMixture, count_cells, reach
from blda_cli.finetuning.methods.objective import Losses, MixedTargets, Objective
from blda_cli.finetuning.methods.pseudo_labels import debiased_labels
from blda_cli.finetuning.networks.student import Outputs
from blda_cli.finetuning.settings import PUBLISHED, BldaSettings, Settings
from blda_cli.runtime.graphs import GraphedCall
from blda_cli.runtime.process_group import all_maximum, all_sum
from blda_cli.runtime.shards import current_shard

_BINS = 256
"""Of the histograms that EM runs on."""

_DECAY = 40_000
"""Updates of the published training."""

_COSTS_STRIDE, _COSTS_MOMENTUM = 4, 0.9
"""The losses with and without shift are measured in every fourth row and column and averaged over some ten batches."""

_MOST_ADDED = 1.5
"""Most that the shift may add to the source's cross-entropy, as a multiple of it; with 1 rare classes gained a point
less."""

_TABLE_VALUES = 1 << 22
"""Most values of the shift table: with many classes it gets coarser."""


@dataclass(frozen=True)
class _Targets:
    """What the losses of a batch regress and correct by; no gradient.

    Attributes:
        shift: ``Δ[r, l](f_l)`` of every pixel and channel, float32 ``[N, C, h, w]``.
        density: ``F[r, y](f_y)``, float32 ``[N, h, w]``; NaN where there is none.
        tau: strength, a scalar.
    """

    shift: Tensor
    density: Tensor
    tau: Tensor


class Blda(Objective):
    """Cross-entropy of shifted logits, whatever method gives the labels.

    Source pixels are shifted by the source's cells, pseudo-labelled target pixels by the target's; both onto the
    source's pooled cells.

    Attributes:
        source: cells of the source in row-major order, then the two anchors: ``[C² + 2, K]``.
        target: cells of the target, ``[C², K]``, of the student's logits under the pseudo-labels.
        target_pixels: pixels of each pseudo-label a step, as an EMA, ``[C]``.
        costs: cross-entropy of source pixels without the shift and with all of it, as an EMA, ``[2]``.
    """

    uses_density = True

    @classmethod
    def of(cls, settings: Settings, num_classes: int, device: torch.device) -> Self:
        """See :class:`Objective`."""
        return cls(settings.blda, num_classes, device)

    def __init__(self, settings: BldaSettings, num_classes: int, device: torch.device) -> None:
        self.settings = settings
        self.num_classes = num_classes
        bank = partial(
            OnlineMixture,
            momentum=settings.momentum,
            warmup=settings.warmup,
            blend_first_fit=settings.blend_first_fit,
            device=device,
        )
        self.source, self.target = bank((num_classes**2 + 2,)), bank((num_classes**2,))
        self.target_pixels = torch.zeros(num_classes, device=device)
        self.costs = torch.zeros(2, device=device)
        self._anchors = AnchorQuantiles.of(self.source.mixture[-2:])
        self._table_bins = 1 << min((_TABLE_VALUES // num_classes**2).bit_length() - 1, 11)
        # Some five hundred small kernels a step, which take longer to launch than to run.
        self._see_source = GraphedCall(self._source_targets)
        self._see_mixed = GraphedCall(self._mixed_targets)
        self._see_masked = GraphedCall(self._masked_targets)

    @property
    def tau(self) -> Tensor:
        """The present strength, a scalar: the setting, or a value that decays with the updates so far and is limited.

        At the start cells are far apart and a run of some hundred steps has no time for small margins; the published
        strength is for 40 000 steps. The limit is where the shift adds :data:`_MOST_ADDED` times the source's plain
        cross-entropy to it, by the chord ``CE(0) + τ (CE(1) − CE(0))``, which lies above the corrected one, as that is
        convex. Beyond it, in a network without normalisation of the raised logits, shifts grow without bound: logits
        grow, the cells with them, and the shifts with the cells (DABNet's logits grew to some hundreds in 300 steps).
        """
        if self.settings.tau is not None:
            return torch.full_like(self.source.step, self.settings.tau)
        decayed = PUBLISHED["blda.tau"] ** (self.source.step / _DECAY).clamp(max=1.0)
        plain, full = self.costs
        limit: Tensor = _MOST_ADDED * plain / (full - plain).clamp(min=torch.finfo(plain.dtype).tiny)
        return limit.minimum(decayed)

    def source_losses(self, outputs: Outputs, labels: Tensor) -> Losses:
        """Corrected cross-entropy and density regression, after the banks are updated with the batch."""
        return self._losses("source", outputs, labels, self._see_source(outputs.logits.detach(), labels))

    def target_labels(self, logits: Tensor) -> Tensor | None:
        """Labels by the location form from the target's cells, if the settings ask for them."""
        if not self.settings.debias_pseudo_labels:
            return None
        means = self.target.means().view(self.num_classes, self.num_classes)
        return debiased_labels(logits, means, self._pixels())

    def mixed_losses(self, outputs: Outputs, targets: MixedTargets) -> Losses:
        """The same on mixed images, weighted."""
        seen = self._see_mixed(outputs.logits.detach(), targets.labels, targets.weights, targets.from_source)
        return self._losses("mixed", outputs, targets.labels, seen, targets.weights)

    def masked_loss(self, outputs: Outputs, labels: Tensor, weights: Tensor) -> Tensor:
        """Corrected cross-entropy by the target's cells, which are not updated with the masked images."""
        seen = self._see_masked(outputs.logits.detach(), labels)
        loss: Tensor = (weights * corrected_cross_entropy(outputs.logits, labels, seen.shift, seen.tau)).mean()
        return loss

    def metrics(self) -> dict[str, list[float]]:
        """Mean logit of every class at its own pixels in both domains, and the target's estimated class bias."""
        size = self.num_classes
        positive = {
            "source_positive_logit": (self.source.means(), self.source.fitted),
            "target_positive_logit": (self.target.means(), self.target.fitted),
        }
        values = {
            name: torch.where(fitted, means, torch.nan)[: size**2].view(size, size).diagonal().tolist()
            for name, (means, fitted) in positive.items()
        }
        values["estimated_bias"] = estimated_bias(self._expected_cells()).tolist()
        return values

    def state_dict(self) -> dict[str, Any]:
        """The banks."""
        return {
            "source": self.source.state_dict(),
            "target": self.target.state_dict(),
            "target_pixels": self.target_pixels,
            "costs": self.costs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Objective`."""
        self.source.load_state_dict(state["source"])
        self.target.load_state_dict(state["target"])
        self.target_pixels.copy_(state["target_pixels"])
        self.costs.copy_(state["costs"])

    def _source_targets(self, logits: Tensor, labels: Tensor) -> _Targets:
        """Update the source's banks with a batch, then look its pixels up."""
        span = all_maximum(reach(logits))
        self._update(self.source, logits, labels, span, anchors=True)
        self._anchors.table.copy_(AnchorQuantiles.of(self.source.mixture[-2:]).table)
        table = self._table(span, target=False)
        self._see_costs(logits, labels, table)
        return self._looked_up(table, logits, labels)

    def _mixed_targets(self, logits: Tensor, labels: Tensor, weights: Tensor, from_source: Tensor) -> _Targets:
        """Update the target's bank with a mixed batch, then look its pixels up."""
        span = all_maximum(reach(logits))
        own = torch.where(from_source | (weights == 0), IGNORE_INDEX, labels)
        counts = self._update(self.target, logits, own, span, anchors=False)
        self.target_pixels.copy_(torch.lerp(counts, self.target_pixels, self.settings.momentum))
        rows = torch.where(from_source | (labels == IGNORE_INDEX), labels, labels + self.num_classes)
        return self._looked_up(self._table(span, target=True), logits, rows)

    def _masked_targets(self, logits: Tensor, labels: Tensor) -> _Targets:
        rows = torch.where(labels == IGNORE_INDEX, -1, labels + self.num_classes)
        return self._looked_up(self._table(reach(logits), target=True), logits, rows)

    def _looked_up(self, table: ShiftTable, logits: Tensor, rows: Tensor) -> _Targets:
        return _Targets(table.shift(logits, rows), table.density(logits, rows), self.tau)

    def _update(self, bank: OnlineMixture, logits: Tensor, labels: Tensor, span: Tensor, *, anchors: bool) -> Tensor:
        """Update a bank with the batch of all processes; returns the pixels of each label, ``[C]``."""
        grid = LogitGrid.spanning(span, _BINS)
        counts = all_sum(count_cells(grid, logits, labels))
        rows = counts.flatten(0, 1)
        if anchors:
            positive = counts.diagonal().sum(dim=1)
            rows = torch.cat([rows, torch.stack([positive, rows.sum(dim=0) - positive])])
        pixels = labels.numel() * current_shard().world
        bank.update(grid.centers, rows, grid.width, ENOUGH * pixels)
        return counts[:, 0].sum(dim=1)

    def _see_costs(self, logits: Tensor, labels: Tensor, table: ShiftTable) -> None:
        """Update `costs` with the cross-entropy of source pixels without the shift and with it."""
        some = (..., slice(None, None, _COSTS_STRIDE), slice(None, None, _COSTS_STRIDE))
        logits, labels = logits[some], labels[some]
        shift = table.shift(logits, labels)
        costs = [corrected_cross_entropy(logits, labels, shift, tau).mean() for tau in (0.0, 1.0)]
        new = (1 / self.source.step).clamp(min=1 - _COSTS_MOMENTUM)
        self.costs.copy_(self.costs.lerp(all_sum(torch.stack(costs)), new))

    def _table(self, span: Tensor, *, target: bool) -> ShiftTable:
        """The source's shifts, and below them the target's."""
        cells, fitted = _cells(self.source, self.num_classes)
        if target:
            own, own_fitted = _cells(self.target, self.num_classes)
            cells = GaussianMixture(*map(torch.cat, zip(cells.parameters, own.parameters, strict=True)))
            fitted = torch.cat([fitted, own_fitted])
        return ShiftTable.build(cells, fitted, self._anchors, LogitGrid.spanning(span, self._table_bins))

    def _expected_cells(self) -> LogitHistogram:
        """The expected histogram of the target's cells under their mixtures; empty for cells that were never fitted."""
        cells, fitted = _cells(self.target, self.num_classes)
        reach = (cells.means.abs() + 4 * cells.variances.sqrt()).amax().log2().ceil().exp2()
        exact = float64_device(fitted.device)
        histogram = LogitHistogram(self.num_classes, _BINS, exact)
        histogram.limit = float(reach)
        mass = cells.to(exact).cdf(histogram.edges).diff()
        pixels = self._pixels().to(exact)[:, None, None]
        histogram.counts = torch.where(fitted.to(exact).unsqueeze(-1), mass, 0.0) * pixels
        return histogram

    def _losses(
        self, name: str, outputs: Outputs, labels: Tensor, seen: _Targets, weights: Tensor | float = 1.0
    ) -> Losses:
        assert outputs.density is not None
        density = cumulative_density_loss(outputs.density, seen.density)
        return {
            name: (weights * corrected_cross_entropy(outputs.logits, labels, seen.shift, seen.tau)).mean(),
            f"{name}_density": self.settings.density_weight * (weights * density).mean(),
        }

    def _pixels(self) -> Tensor:
        """Pixels of each pseudo-label, scaled so that every label whose cells are fitted counts as having enough."""
        fitted = self.target.fitted.view(self.num_classes, self.num_classes).diagonal()
        return torch.where(fitted, self.target_pixels.clamp(min=1) * 1e6, 0.0)


def _cells(bank: OnlineMixture, size: int) -> tuple[GaussianMixture, Tensor]:
    """A bank's cells ``[C, C, K]``, and which of them were ever updated."""
    shape = (size, size)
    cells = GaussianMixture(*(values[: size**2].unflatten(0, shape) for values in bank.mixture.parameters))
    return cells, bank.fitted[: size**2].unflatten(0, shape)
