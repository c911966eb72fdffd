"""BLDA (Li et al., ICML 2025): move every cell's logits onto shared anchors, in one of four forms."""

from torch import Tensor

from blda_cli.core.choices import Density, LabelSource, Shift
from blda_cli.core.corrections import Correction, LocationCorrection, OffsetCorrection, QuantileCorrection
from blda_cli.core.distributions import Empirical
from blda_cli.core.fitting.settings import AlignmentSettings, Evidence
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.logit_space import to_space
from blda_cli.core.mixture import fit_mixtures
from blda_cli.core.shifts import (
    Anchors,
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
        case Shift.QUANTILE:
            return _quantile(settings, evidence, tau)
        case Shift.LOCATION:
            return LocationCorrection((tau * _location(settings, evidence)).float())
        case Shift.BALANCED:
            return OffsetCorrection((-tau * _balanced(evidence.cells(settings.label_source))).float())
        case Shift.TWO_PASS:
            return LocationCorrection((tau * _two_pass(settings, evidence)).float())


def _quantile(settings: AlignmentSettings, evidence: Evidence, tau: float) -> QuantileCorrection:
    cells = evidence.cells(settings.label_source)
    if settings.density is Density.MIXTURE:
        target, anchor = evidence.mixtures or (fit_mixtures(cells), fit_mixtures(evidence.anchor_cells))
        anchors = Anchors(anchor.anchors[0], anchor.anchors[1])
        shifts = quantile_shifts(target.cells, anchors, occupied(cells), cells.centers, settings.tails)
    else:
        pool = evidence.anchor_cells
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
