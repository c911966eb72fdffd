"""BLDA (Li et al., ICML 2025): move every cell's logits onto shared anchors, in one of four forms."""

import torch
from torch import Tensor

from blda_cli.core.corrections import Correction, LocationCorrection, OffsetCorrection, QuantileCorrection
from blda_cli.core.distributions import Empirical
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.logit_space import to_space
from blda_cli.core.methods.settings import AlignmentSettings, Density, Evidence, Shift
from blda_cli.core.mixture import fit_mixtures
from blda_cli.core.shifts import Anchors, balanced_centre, location_shifts, occupied, pooled_means, quantile_shifts


def fit(settings: AlignmentSettings, evidence: Evidence) -> Correction:
    """Fit the form ``settings.shift``."""
    match settings.shift:
        case Shift.QUANTILE:
            return _quantile(settings, evidence)
        case Shift.LOCATION:
            return LocationCorrection((settings.tau * _location(settings, evidence)).float())
        case Shift.BALANCED:
            return OffsetCorrection((-settings.tau * _balanced(evidence.cells(settings.label_source))).float())
        case Shift.TWO_PASS:
            return LocationCorrection((settings.tau * _two_pass(settings, evidence)).float())


def _quantile(settings: AlignmentSettings, evidence: Evidence) -> QuantileCorrection:
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
    return QuantileCorrection((settings.tau * shifts).float(), cells.limit, evidence.statistics.space)


def _location(settings: AlignmentSettings, evidence: Evidence) -> Tensor:
    cells, pool = evidence.cells(settings.label_source), evidence.anchor_cells
    anchors = pooled_means(pool.means(), pool.label_pixels())
    return location_shifts(cells.means(), cells.label_pixels(), anchors)


def _balanced(cells: LogitHistogram) -> Tensor:
    return balanced_centre(cells.means(), cells.label_pixels())


def _two_pass(settings: AlignmentSettings, evidence: Evidence) -> Tensor:
    """``½ L + ½ mean over the hypotheses of L``, from labels that balanced centring gives the sampled pixels.

    The sample takes the place of a second pass over the images. The anchors are pooled from these labels too.
    """
    sample = evidence.statistics.sample
    logits = to_space(sample.logits.double(), evidence.statistics.space)
    labels = (logits - _balanced(evidence.cells(settings.label_source))).argmax(dim=1)
    membership = torch.nn.functional.one_hot(labels, logits.shape[1]).double() * sample.weights()[:, None]
    pixels = membership.sum(dim=0)
    means = membership.T @ logits / pixels[:, None]
    shifts = location_shifts(means, pixels)
    return (shifts + shifts.mean(dim=0, keepdim=True)) / 2
