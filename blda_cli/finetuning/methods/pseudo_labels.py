"""How target pixels get labels and weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from blda_cli.core.corrections import LocationCorrection
from blda_cli.core.float64 import float64_device
from blda_cli.core.shifts import location_shifts


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of target pixels: one labelling of N images, or several one after the other, whose losses are averaged.

    Attributes:
        labels: int64 ``[N, H, W]``.
        weights: float32 ``[N, H, W]``.
        kept: bool ``[N, H, W]``, the pixels that were confident.
    """

    labels: Tensor
    weights: Tensor
    kept: Tensor


def confidence_weighted(logits: Tensor, threshold: float, labels: Tensor | None = None) -> PseudoLabels:
    """Label by argmax, weight every pixel of an image by the share of its pixels that are confident.

    Tranheden et al., WACV 2021, eq. 4.

    Args:
        logits: the teacher's, ``[N, C, H, W]``.
        threshold: probability from which on a pixel is confident.
        labels: in place of the argmax, int64 ``[N, H, W]``.
    """
    # The largest probability without the others': max − logsumexp.
    highest, argmax = logits.float().max(dim=1)
    kept = highest - logits.float().logsumexp(dim=1) >= torch.tensor(threshold).log()
    share = kept.float().mean(dim=(1, 2), keepdim=True)
    return PseudoLabels(argmax if labels is None else labels, share.expand_as(highest), kept)


def debiased_labels(logits: Tensor, means: Tensor, pixels: Tensor) -> Tensor:
    """Label by the location form: half the shift of each cell, half its mean over the hypotheses.

    Args:
        logits: the teacher's, ``[N, C, H, W]``.
        means: mean of channel ``l`` at pseudo-label ``c``, ``[C, C]``.
        pixels: of each pseudo-label, ``[C]``; labels with none are not shifted.

    Returns:
        int64 ``[N, H, W]``.
    """
    exact = float64_device(logits.device)
    shifts = location_shifts(means.to(exact).double(), pixels.to(exact).double())
    shifts = ((shifts + shifts.mean(dim=0, keepdim=True)) / 2).float().to(logits.device)
    return LocationCorrection(shifts).predict(logits)
