"""How over- or under-predicted each class is, estimated from logit distributions without labels."""

import torch
from torch import Tensor

from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.shifts import occupied


def win_probabilities(cells: LogitHistogram) -> Tensor:
    """``P(l wins | c) ∝ ∫ dF[c, l](z) Π_{k ≠ l} F[c, k](z)``: the channels taken as independent given the label.

    Returns:
        float64 ``[C, C]``, rows sum to one; NaN rows for labels with too few pixels.
    """
    counts = cells.counts
    kept = occupied(cells)
    rates = torch.full(counts.shape[:2], torch.nan, dtype=torch.float64, device=counts.device)
    for label in kept.nonzero().squeeze(1).tolist():
        mass = counts[label] / counts[label].sum(dim=1, keepdim=True)
        # Half of a bin's own mass: two channels in one bin win equally often.
        cdf = mass.cumsum(dim=1) - mass / 2
        log_cdf = cdf.clamp(min=torch.finfo(torch.float64).tiny).log()
        wins = (mass * (log_cdf.sum(dim=0, keepdim=True) - log_cdf).exp()).sum(dim=1)
        rates[label] = wins / wins.sum()
    return rates


def estimated_bias(cells: LogitHistogram) -> Tensor:
    """``Bias(l)`` (Li et al., ICML 2025, eq. 2) with :func:`win_probabilities` in the place of the confusion matrix.

    Returns:
        float64 ``[C]``; positive over-, negative under-predicted; NaN for classes with too few pixels, which are
        left out of the mean.
    """
    rates = win_probabilities(cells)
    kept = occupied(cells)
    bias = rates[kept].mean(dim=0) - 1 / max(int(kept.sum()), 1)
    return torch.where(kept, bias, torch.nan)
