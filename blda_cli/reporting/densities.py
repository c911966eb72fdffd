"""The distributions of each class's logits beside the anchors, before and after a correction, ready to be drawn."""

from dataclasses import dataclass

import numpy as np
import torch

from blda_cli.core.corrections import Correction, LocationCorrection, OffsetCorrection, QuantileCorrection
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.shifts import MINIMUM_PIXELS

BINS = 56
"""Intervals that the common axis is divided into."""

_REACH = (0.005, 0.995)


@dataclass(frozen=True)
class Curve:
    """One distribution on the common axis.

    Attributes:
        heights: density in each of :data:`BINS` intervals, the highest being 1.
        mean: in logits.
    """

    heights: np.ndarray
    mean: float


@dataclass(frozen=True)
class Pair:
    """The positive and the negative distribution of a class, or of all: None where there are too few pixels.

    Attributes:
        positive: the class's channel at pixels of the class.
        negative: the class's channel at all other pixels.
    """

    positive: Curve | None
    negative: Curve | None


@dataclass(frozen=True)
class Densities:
    """All curves, on one axis.

    Attributes:
        low: left end of the axis, in logits.
        high: its right end.
        anchors: the pooled positive and negative cells that the correction moves all cells onto.
        before: one pair per class.
        after: the same pixels' corrected logits; None where there is no correction to show.
        reference: one pair per class, of images of the training domain; None where there are none.
    """

    low: float
    high: float
    anchors: Pair
    before: list[Pair]
    after: list[Pair] | None
    reference: list[Pair] | None = None


def densities(
    cells: LogitHistogram,
    anchors: LogitHistogram,
    correction: Correction | None,
    reference: LogitHistogram | None = None,
) -> Densities:
    """Compute all curves.

    After a correction a pixel is shifted as under the hypothesis of its own label.

    Args:
        cells: whose distributions are shown.
        anchors: whose pooled cells are the anchors.
        correction: None where there is none; one that mixes the channels is not shown either.
        reference: cells of images of the training domain, shown beside them.

    Returns:
        The curves.
    """
    counts = cells.counts.cpu().numpy()
    centers = cells.centers.cpu().numpy()
    shifts = None if correction is None else _shifts(correction, cells)
    pooled = (anchors.positive().cpu().numpy(), anchors.negative().cpu().numpy())
    low, high = _reach([(anchors.centers.cpu().numpy(), mass) for mass in pooled])
    sides = [(centers, counts)]
    if reference is not None:
        sides.append((reference.centers.cpu().numpy(), reference.counts.cpu().numpy()))
    for axis, side in sides:
        for label in range(len(side)):  # the axis must hold the bulk of every class, not only of the frequent ones
            reach = _reach([(axis, side[label, label]), (axis, side[:, label].sum(axis=0) - side[label, label])])
            low, high = min(low, reach[0]), max(high, reach[1])
    if not low < high:  # all logits are one value, or no class has enough of them
        middle, width = (low, centers[1] - centers[0]) if np.isfinite(low) else (0.0, 1.0)
        low, high = middle - width, middle + width
    edges = np.linspace(low, high, BINS + 1)

    def pairs(axis: np.ndarray, side: np.ndarray, moved: np.ndarray | None = None) -> list[Pair]:
        found = []
        for channel in range(len(side)):
            values = np.broadcast_to(axis, side[:, channel].shape)
            if moved is not None:
                # Clamped tails fold onto one value: a distribution's values must not decrease.
                values = np.maximum.accumulate(axis + moved[:, channel], axis=1)
            others = np.arange(len(side)) != channel
            found.append(
                Pair(
                    positive=_curve(values[[channel]], side[[channel], channel], edges),
                    negative=_curve(values[others], side[others, channel], edges),
                )
            )
        return found

    anchor_centers = anchors.centers.cpu().numpy()[None]
    return Densities(
        low=float(low),
        high=float(high),
        anchors=Pair(*(_curve(anchor_centers, mass[None], edges) for mass in pooled)),
        before=pairs(centers, counts),
        after=None if shifts is None else pairs(centers, counts, shifts),
        reference=pairs(*sides[1]) if reference is not None else None,
    )


def _shifts(correction: Correction, cells: LogitHistogram) -> np.ndarray | None:
    """The shift of each cell's logits, ``[C, C, B]`` or ``[C, C, 1]``: label, channel, bin.

    None of a correction that is no shift of single logits.
    """
    match correction:
        case OffsetCorrection(offsets):
            # A constant over the channels changes no prediction: without it the shifts are as small as they can be.
            shifts = (offsets - offsets.mean()).expand(len(offsets), -1).unsqueeze(2)
        case LocationCorrection(table):
            shifts = table.unsqueeze(2)
        case QuantileCorrection():
            shifts = _resampled(correction, cells)
        case _:
            return None
    values: np.ndarray = shifts.double().cpu().numpy()
    return values


def _resampled(correction: QuantileCorrection, cells: LogitHistogram) -> torch.Tensor:
    """The table at the bins of ``cells``, whose axis need not be the table's own."""
    bins = correction.shifts.shape[2]
    position = (cells.centers.cpu() * (bins / (2 * correction.limit))).floor().long() + bins // 2
    return correction.shifts[:, :, position.clamp(0, bins - 1)]


def _curve(values: np.ndarray, counts: np.ndarray, edges: np.ndarray) -> Curve | None:
    """Pool histograms ``counts[R, B]`` whose bins lie at the non-decreasing ``values[R, B]``."""
    total = counts.sum()
    if total < MINIMUM_PIXELS:
        return None
    mass = np.zeros(len(edges) - 1)
    for row, weights in zip(values, counts, strict=True):
        if weights.any():
            mass += np.diff(np.interp(edges, row, weights.cumsum() - weights / 2, left=0.0, right=weights.sum()))
    highest = mass.max()
    return Curve(mass / highest if highest > 0 else mass, float((values * counts).sum() / total))


def _reach(histograms: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The reach of the bulk of some histograms (bin centres and counts), without those with too few pixels."""
    low, high = np.inf, -np.inf
    for centers, counts in histograms:
        if counts.sum() >= MINIMUM_PIXELS:
            ends = centers[np.searchsorted(counts.cumsum() / counts.sum(), _REACH).clip(max=len(centers) - 1)]
            low, high = min(low, ends[0]), max(high, ends[1])
    return low, high
