"""BLDA (Li et al., ICML 2025): move every cell's logits onto shared anchors, in one of five forms."""

import torch
from torch import Tensor

from blda_cli.core.choices import Density, LabelSource, Shift
from blda_cli.core.corrections import Correction, LocationCorrection, OffsetCorrection, QuantileCorrection
from blda_cli.core.distributions import Empirical
from blda_cli.core.fitting.evidence import Evidence
from blda_cli.core.fitting.strength import DomainGap
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.logit_space import to_space
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.mixture import fit_mixtures
from blda_cli.core.shifts import (
    MINIMUM_PIXELS,
    Anchors,
    additive_fit,
    averaged_in,
    balanced_centre,
    location_shifts,
    occupied,
    pooled_means,
    quantile_shifts,
    two_pass_shifts,
)


def fit(settings: AlignmentSettings, evidence: Evidence, tau: float) -> Correction:
    """Fit the form ``settings.shift``."""
    match settings.shift:
        case Shift.NEGATIVE:
            return negative(settings, evidence, tau)
        case Shift.QUANTILE:
            return _quantile(settings, evidence, tau)
        case Shift.LOCATION:
            return LocationCorrection((tau * _location(settings, evidence)).float())
        case Shift.BALANCED:
            return OffsetCorrection((-tau * _balanced(evidence.cells(settings.label_source))).float())
        case Shift.TWO_PASS:
            return LocationCorrection((tau * _two_pass(settings, evidence)).float())


_MODERATE = {Shift.QUANTILE: 0.2, Shift.LOCATION: 0.4, Shift.BALANCED: 0.4, Shift.TWO_PASS: 0.3}
_NEGATIVE = 0.9


def moderate_strength(settings: AlignmentSettings, gap: DomainGap) -> float:
    """The strength that helped out of domain in the benchmarks.

    That of the negative form falls with the disagreement ρ of the cells about what to correct, and with fewer than ten
    classes: ``τ = 0.9 / (1 + ρ) · support``.
    """
    if settings.shift is Shift.NEGATIVE:
        return gap.support * _NEGATIVE / (1 + gap.disagreement)
    return _MODERATE[settings.shift]


_SECOND_LOOK = 0.5
"""Share of a border's imbalance, in standard deviations of the levels, that is undone; flat between 0.2 and 0.6."""

_SMALLEST_SHARE = 1e-3


def negative(settings: AlignmentSettings, evidence: Evidence, tau: float) -> OffsetCorrection:
    """The negative form: offsets ``−τ (b_l + 0.5 s a_l)``, the channels' levels and a correction at class borders.

    After ``−τ b`` a class may have more pixels just outside its border than just inside: it was pushed into pixels
    where it is no candidate. ``a_l`` is the log of the ratio of the two, counted within ``τ s`` of the border, with
    ``s`` the standard deviation of ``b``; classes with too few pixels for a cell are left as they are.
    """
    cells = evidence.cells(settings.label_source)
    pixels = cells.label_pixels()
    centre = additive_fit(cells.means(), pixels).levels
    sample, kept = evidence.statistics.sample, pixels >= MINIMUM_PIXELS
    if tau == 0 or not len(sample) or not bool(kept.any()):
        return OffsetCorrection((-tau * centre).float())
    spread = float(centre[kept].std(correction=0))
    scores = sample.logits.double() - tau * centre
    (best, second), order = scores.topk(2, dim=1).values.unbind(dim=1), scores.argmax(dim=1)
    weights = sample.weights()
    weights = weights / weights.sum()
    near = abs(tau) * spread
    own = torch.nn.functional.one_hot(order, len(centre)).bool()
    outside = weights @ ((best[:, None] - scores < near) & ~own).double()
    inside = torch.zeros_like(outside).index_add_(0, order, weights * (best - second < near))
    balance = ((outside + _SMALLEST_SHARE) / (inside + _SMALLEST_SHARE)).log().clamp(-2, 2)
    balance = torch.where(kept, balance - balance[kept].mean(), 0.0)
    return OffsetCorrection((-tau * (centre + _SECOND_LOOK * spread * balance)).float())


def _quantile(settings: AlignmentSettings, evidence: Evidence, tau: float) -> QuantileCorrection:
    cells, pool = evidence.cells(settings.label_source), evidence.anchor_cells
    if settings.density is Density.MIXTURE:
        labels = occupied(cells)
        pooled = fit_mixtures(torch.stack([pool.positive(), pool.negative()]), pool.edges)
        cellwise = fit_mixtures(cells.counts * labels[:, None, None], cells.edges)  # others are not shifted
        shifts = quantile_shifts(cellwise, Anchors(pooled[0], pooled[1]), labels, cells.centers, settings.tails)
    else:
        anchors = Anchors(Empirical(pool.positive(), pool.edges), Empirical(pool.negative(), pool.edges))
        own = Empirical(cells.counts, cells.edges)
        shifts = quantile_shifts(own, anchors, occupied(cells), cells.centers, settings.tails)
    return QuantileCorrection((tau * shifts).float(), cells.limit, evidence.statistics.space)


def _location(settings: AlignmentSettings, evidence: Evidence) -> Tensor:
    cells, pool = evidence.cells(settings.label_source), evidence.anchor_cells
    anchors = pooled_means(pool.means(), pool.label_pixels())
    return location_shifts(cells.means(), cells.label_pixels(), anchors)


def _balanced(cells: LogitHistogram) -> Tensor:
    return balanced_centre(cells.means(), cells.label_pixels())


def _two_pass(settings: AlignmentSettings, evidence: Evidence) -> Tensor:
    """The first pass are the cells, the second the sampled pixels: no second pass over the images is needed.

    Ground truth leaves nothing for a first pass to find: its cells are used as they are.
    """
    if settings.label_source is LabelSource.GROUND_TRUTH:
        return averaged_in(_location(settings, evidence))
    sample = evidence.statistics.sample
    logits = to_space(sample.logits.double(), evidence.statistics.space)
    return two_pass_shifts(logits, sample.weights(), _balanced(evidence.cells(settings.label_source)))
