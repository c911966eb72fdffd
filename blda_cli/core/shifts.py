"""The shifts of BLDA: how far every cell's logits lie from the shared anchor distributions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blda_cli.core.choices import Tails
from blda_cli.core.distributions import Distributions
from blda_cli.core.histogram import LogitHistogram

QUANTILE_RANGE = (0.01, 0.99)
"""Levels outside are clamped before the anchor's CDF is inverted, as published."""

MINIMUM_PIXELS = 500
"""Cells with fewer pixels are not shifted, as published."""

TYPICAL_DISAGREEMENT = 2.0
"""The median of :attr:`AdditiveFit.disagreement` over the networks of ``tests/benchmarks/wide.py``."""


@dataclass(frozen=True)
class Anchors:
    """The distributions every cell is moved onto: all positive and all negative cells pooled (``P_p``, ``P_n``).

    Attributes:
        positive: one distribution, batch shape ``[]``.
        negative: one distribution, batch shape ``[]``.
    """

    positive: Distributions
    negative: Distributions


def occupied(cells: LogitHistogram) -> Tensor:
    """Labels with enough pixels for their cells to be shifted, bool ``[C]``."""
    return cells.label_pixels() >= MINIMUM_PIXELS


def quantile_shifts(
    cells: Distributions, anchors: Anchors, labels: Tensor, values: Tensor, tails: Tails = Tails.CONSTANT
) -> Tensor:
    """``Δ[c, l](z) = F_a⁻¹(F[c, l](z)) − z``, ``a`` positive where ``c = l``, else negative.

    Li et al., ICML 2025, eq. 5 and 6.

    Args:
        cells: ``[C, C]`` distributions, label and channel.
        anchors: the distributions they are moved onto.
        labels: bool ``[C]``; the cells of other labels are not shifted.
        values: float64 ``[V]`` or ``[C, V]`` (one row per channel), the logits z.
        tails: how levels outside :data:`QUANTILE_RANGE` are treated.

    Returns:
        float64 ``[C, C, V]``: label, channel, value.
    """
    num_classes = len(labels)
    values = values.double().expand(num_classes, values.shape[-1])
    shifts = values.new_zeros(num_classes, num_classes, values.shape[-1])
    bounds = torch.tensor(QUANTILE_RANGE, dtype=torch.float64, device=values.device)
    for label in labels.nonzero().squeeze(1).tolist():  # row by row, so that temporaries are C times smaller
        row = cells[label]
        start = values
        if tails is Tails.CONSTANT:
            reach = row.quantile(bounds.expand(num_classes, 2))
            start = values.clamp(reach[:, :1], reach[:, 1:])
        levels = row.cdf(start).clamp(*QUANTILE_RANGE)
        target = anchors.negative.quantile(levels)
        target[label] = anchors.positive.quantile(levels[label])
        shifts[label] = target - start
    return shifts


def pooled_means(means: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The anchors of the location form: ``m_p`` and ``m_n``, the means of all positive and of all negative cells.

    Args:
        means: ``μ``, float64 ``[C, C]``, label and channel; NaN allowed where a label has no pixel.
        pixels: float64 ``[C]``, pixels of each label.

    Returns:
        Two scalars.
    """
    means = means.nan_to_num()
    positive = (means.diagonal() * pixels).sum() / pixels.sum()
    negative = ((means.sum(dim=1) - means.diagonal()) * pixels).sum() / (pixels.sum() * (len(pixels) - 1))
    return positive, negative


def location_shifts(means: Tensor, pixels: Tensor, anchors: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The location form: every cell replaced by its mean, the anchors by the pooled means.

    ``L[c, l] = m_p − μ[c, l]`` where ``c = l``, else ``m_n − μ[c, l]``; 0 for labels with too few pixels.

    Args:
        means: ``μ``, float64 ``[C, C]``, label and channel; NaN allowed where a label has no pixel.
        pixels: float64 ``[C]``, pixels of each label.
        anchors: ``m_p`` and ``m_n``; by default the :func:`pooled_means` of these very cells.

    Returns:
        float64 ``[C, C]``.
    """
    positive, negative = anchors or pooled_means(means, pixels)
    own = torch.eye(len(pixels), dtype=torch.bool, device=means.device)
    shifts = torch.where(own, positive, negative) - means
    return torch.where((pixels >= MINIMUM_PIXELS)[:, None], shifts, 0.0)


def balanced_centre(means: Tensor, pixels: Tensor) -> Tensor:
    """Balanced centring: ``b_l``, the mean of ``μ[c, l]`` over the labels ``c`` that have enough pixels.

    The location shift averaged over the hypotheses does not depend on the hypothesis, up to a constant per channel
    kind, so it reduces to ``argmax_l f_l − τ b_l``; every class counts alike, however few pixels it has. A class
    that has too few pixels for a cell of its own is taken to have one at the positive anchor: without it, its
    centre would hold negative cells only, and a class that is not there would be pushed up.

    Args:
        means: ``μ``, float64 ``[C, C]``.
        pixels: float64 ``[C]``.

    Returns:
        float64 ``[C]``; zeros where no label has enough pixels.
    """
    kept = pixels >= MINIMUM_PIXELS
    if not bool(kept.any()):
        return means.new_zeros(len(pixels))
    positive, _ = pooled_means(means, torch.where(kept, pixels, 0.0))
    count = int(kept.sum())
    centre = means[kept].mean(dim=0)
    return torch.where(kept, centre, (centre * count + positive) / (count + 1))


def averaged_in(shifts: Tensor) -> Tensor:
    """``½ L + ½ mean over the hypotheses of L``: half of every shift is the one that all hypotheses share.

    Args:
        shifts: float64 ``[C, C]``, hypothesis and channel.

    Returns:
        float64 ``[C, C]``.
    """
    return (shifts + shifts.mean(dim=0, keepdim=True)) / 2


def two_pass_shifts(logits: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
    """The two-pass location form: labels from balanced centring, cells and shifts from those.

    Args:
        logits: float64 ``[S, C]``, random pixels.
        weights: float64 ``[S]``, pixels that each represents.
        centre: float64 ``[C]``, :func:`balanced_centre` under the network's own labels.

    Returns:
        float64 ``[C, C]``.
    """
    labels = (logits - centre).argmax(dim=1)
    membership = torch.nn.functional.one_hot(labels, logits.shape[1]).double() * weights[:, None]
    pixels = membership.sum(dim=0)
    return averaged_in(location_shifts(membership.T @ logits / pixels[:, None], pixels))


@dataclass(frozen=True)
class AdditiveFit:
    """Least squares fit ``μ[c, l] ≈ r_c + b_l`` of the negative cells' means, label by channel.

    The labels' part ``r_c`` holds what all channels share at the pixels of a label, as logits are defined only up to a
    constant per pixel; the channels' part ``b_l`` is the level of a channel at pixels of other classes.

    Attributes:
        levels: ``b``, float64 ``[C]``, with mean zero over the labels that have enough pixels.
        disagreement: how much the labels disagree about the levels: the variance that the fit leaves unexplained over
            the variance of the levels, both unbiased. 0 where the cells are exactly additive. It does not depend on
            the unit of the logits. :data:`TYPICAL_DISAGREEMENT` where fewer than four labels have enough pixels.
    """

    levels: Tensor
    disagreement: float


def additive_fit(means: Tensor, pixels: Tensor) -> AdditiveFit:
    """Fit labels and channels to the negative cells ``c ≠ l`` whose label has enough pixels.

    Over the labels that have enough pixels the cells are a square with an empty diagonal, for which the least squares
    estimate is known in closed form (the "round robin" of Warner, Kenny and Stoto, 1979, "A new round robin analysis of
    variance for social interaction data"). The channel of another class takes part in no row of its own: its level is
    the mean of its cells minus the labels' part.

    Args:
        means: ``μ``, float64 ``[C, C]``, label and channel; NaN allowed where a label has no pixel.
        pixels: float64 ``[C]``, pixels of each label.

    Returns:
        The fit; levels of zero where fewer than three labels have enough pixels, as two negative cells do not determine
        both parts.
    """
    kept = pixels >= MINIMUM_PIXELS
    count = int(kept.sum())
    if count < 3:
        return AdditiveFit(means.new_zeros(len(pixels)), TYPICAL_DISAGREEMENT)
    own = torch.eye(len(kept), dtype=torch.bool, device=means.device)
    cells = means.masked_fill(own, torch.nan)[kept]
    square = cells[:, kept]
    rows, columns = square.nanmean(dim=1), square.nanmean(dim=0)
    labels = (count - 1) / (count * (count - 2)) * ((count - 1) * rows + columns)
    labels = labels - labels.mean() + square.nanmean()
    levels = (cells - labels[:, None]).nanmean(dim=0)
    levels = levels - levels[kept].mean()
    if count < 4:
        return AdditiveFit(levels, TYPICAL_DISAGREEMENT)
    # n (n − 1) cells, 2 n − 1 parameters.
    left = (square - labels[:, None] - levels[kept]).square().nansum() / (count * (count - 1) - (2 * count - 1))
    return AdditiveFit(levels, float(left / levels[kept].var().clamp(min=1e-12)))
