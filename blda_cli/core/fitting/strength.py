"""Choosing the strength of a correction without labels."""

from collections.abc import Callable

import torch
from torch import Tensor

from blda_cli.core.bias import sampled_bias
from blda_cli.core.corrections import Correction
from blda_cli.core.sample import PixelSample


def bias_strength(sample: PixelSample) -> float:
    """As strong as the bias is large: ``τ = min(1, Σ_l |Bias(l)|)``, the bias estimated without labels.

    Meant for BLDA's location forms. Where a network is at home there is little bias, its classes' shares are mostly
    right, and the full shift would cost more IoU than it brings. Over eleven pairs of a network and a domain this
    strength never scored below argmax, and within 0.5 points of mIoU of the best strength up to 1.

    Args:
        sample: random pixels, not none.

    Returns:
        The strength in [0, 1], to two decimals.
    """
    return round(min(1.0, float(sampled_bias(sample, interval=False).bias.abs().nansum())), 2)


GRID = tuple(step / 20 for step in range(31))
"""The strengths tried: 0 to 1.5."""


def label_free_strength(fit: Callable[[float], Correction], sample: PixelSample) -> float:
    """``τ* = argmin_τ std over l of (1/|K|) Σ_c E_c[score_l(τ)]``: no channel is ahead on average.

    ``E_c`` averages over pixels weighted by the network's own softmax of class ``c``, so every class counts alike,
    however often it is predicted. The criterion says little about BLDA's quantile form with hard pseudo-labels and
    about logits that a calibrator has changed.

    Args:
        fit: makes the correction of a given strength.
        sample: random pixels.

    Returns:
        The strength, one of :data:`GRID`.
    """
    membership = torch.softmax(sample.logits, dim=1) * sample.weights()[:, None].float()
    membership /= membership.sum(dim=0)
    spreads = [float(_spread(fit(tau).scores(sample.logits), membership)) for tau in GRID]
    return GRID[spreads.index(min(spreads))]


def _spread(scores: Tensor, membership: Tensor) -> Tensor:
    return (membership.T @ scores).mean(dim=0).std()
