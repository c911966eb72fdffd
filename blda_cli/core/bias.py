"""How over- or under-predicted each class is, estimated from logit distributions without labels."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.logit_space import LogitSpace, to_space
from blda_cli.core.sample import PixelSample
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


INTERVAL_LEVEL = 0.9
"""Coverage of :func:`bias_interval`."""

_REPLICATES = 100
_BOOTSTRAP_BINS = 64


def bias_interval(
    estimate: Tensor, sample: PixelSample, labels: Tensor, space: LogitSpace, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """How far :func:`estimated_bias` would stray with other images of the same kind: a bootstrap over images.

    Images, not pixels, are drawn with replacement, since the pixels of one image are alike. Each draw weighs the
    sampled pixels of an image by how often it was drawn, times the pixels each stands for, counts the cells anew
    and estimates the bias from them. The estimate's interval holds the middle 90 % of the draws' deviations from
    the whole sample's estimate. Frames of one drive are alike too, so for video it is too narrow rather than too
    wide.

    Args:
        estimate: ``[C]``, of the full histograms; the interval lies about it.
        sample: random pixels.
        labels: int64 ``[S]``, the label each is counted under; pixels outside ``[0, C)`` are not counted.
        space: the logits that the cells hold.
        seed: of the draws.

    Returns:
        Lower and upper ends, float64 ``[C]``; NaN where there is no estimate or fewer than two images.
    """
    num_classes = len(sample.seen)
    kept = (labels >= 0) & (labels < num_classes)
    drawn_from, image = np.unique(sample.images[kept].numpy(), return_inverse=True)
    if len(drawn_from) < 2:
        nothing = torch.full_like(estimate, torch.nan)
        return nothing, nothing
    values = to_space(sample.logits[kept], space).numpy()
    low, high = values.min(), values.max()
    # The estimate does not depend on the axis, so that few bins over the range of the values serve.
    bins = ((values - low) * (_BOOTSTRAP_BINS / max(high - low, 1e-6))).astype(np.int64).clip(0, _BOOTSTRAP_BINS - 1)
    cells = (labels[kept].numpy()[:, None] * num_classes + np.arange(num_classes)) * _BOOTSTRAP_BINS + bins
    weights = np.repeat(sample.weights()[kept].numpy(), num_classes)
    size = num_classes**2 * _BOOTSTRAP_BINS
    per_image = sparse.csr_array(
        (weights, (cells.ravel(), np.repeat(image, num_classes))), shape=(size, len(drawn_from))
    )

    def estimate_of(times: np.ndarray) -> Tensor:
        counts = torch.from_numpy(per_image @ times).view(num_classes, num_classes, _BOOTSTRAP_BINS)
        # A label counts alike however many pixels a draw happens to give it, and none falls under the threshold.
        pixels = counts[:, :1].sum(dim=2, keepdim=True)
        return estimated_bias(LogitHistogram.from_counts(counts * (whole / pixels).nan_to_num(posinf=0.0), 1.0))

    ones = np.ones(len(drawn_from))
    whole = torch.from_numpy(per_image @ ones).view(num_classes, num_classes, -1)[:, :1].sum(dim=2, keepdim=True)
    centre = estimate_of(ones)
    draws = np.random.default_rng(seed).multinomial(len(ones), ones / len(ones), size=_REPLICATES)
    deviations = torch.stack([estimate_of(times.astype(np.float64)) for times in draws]) - centre
    tails = torch.tensor([(1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2], dtype=torch.float64)
    ends = torch.nanquantile(deviations, tails, dim=0)
    return estimate + ends[0], estimate + ends[1]
