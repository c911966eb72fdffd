"""How over- or under-predicted each class is, estimated from logit distributions without labels."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blda_cli.core.corrections import LocationCorrection
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.neighbours import Blocks, blocks_of, natural_order
from blda_cli.core.sample import PixelSample, image_digest
from blda_cli.core.shifts import MINIMUM_PIXELS, balanced_centre, occupied, two_pass_shifts


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


_STRENGTH = 0.5
"""Strength of the correction whose scores replace the labels: the full shift over-corrects."""

_DOUBTED = 0.5
"""A class of whose debiased pixels the network predicts fewer than this share may not be there at all."""

_SCALE = 0.75
"""Factor of the estimate: part of what the correction moves is not bias but common to all networks."""

INTERVAL_LEVEL = 0.9
"""Coverage of :class:`BiasEstimate`'s interval."""

_REPLICATES = 1000

_MOST_GROUPS = 256
"""Above so many images, groups of images are drawn: memory stays bounded, and the interval is hardly another."""


@dataclass(frozen=True)
class BiasEstimate:
    """A label-free estimate of ``Bias(l)`` with its interval; NaN for classes without enough pixels.

    Attributes:
        bias: float64 ``[C]``; positive over-, negative under-predicted.
        low: lower ends, float64 ``[C]``; NaN where there are fewer than two images.
        high: upper ends.
        frequency: how often a class is predicted over how often it should be, float64 ``[C]``: 0.1 is a tenth as often
            as it should. With many classes it says more than the bias, which averages over them.
        blocks: the blocks of images that the interval is drawn from; None where there is no interval.
    """

    bias: Tensor
    low: Tensor
    high: Tensor
    frequency: Tensor
    blocks: Blocks | None = None


def sampled_bias(
    sample: PixelSample, *, keys: Collection[str] = (), interval: bool = True, seed: int = 0
) -> BiasEstimate:
    """``Bias(l)`` of the network's argmax, the debiased scores in the place of the labels.

    The two-pass location form at half strength gives every sampled pixel a probability of each class; the confusion
    matrix of argmax against these gives the bias as Li et al., ICML 2025, eq. 2 do against labels, see
    :func:`_bias_of`. ``tests/benchmarks/wide.py`` compares it with the true bias of many networks.

    The interval holds the middle 90 % of a bootstrap over images: images, not pixels, are drawn with replacement,
    since the pixels of one image are alike. The correction is kept as it is. Frames of one drive are alike too: where
    the images' keys are given, blocks of neighbours are drawn that are as long as these are alike (`blocks_of`).

    Args:
        sample: random pixels, not none.
        keys: of the images; without them each image is drawn by itself.
        interval: also draw the interval; its ends are NaN otherwise.
        seed: of the draws.

    Returns:
        The estimate.
    """
    matrices = _soft_confusion(sample, [image_digest(key) for key in natural_order(keys)])
    whole = matrices.sum(dim=0)
    bias = _bias_of(whole[None], whole.sum(dim=1) >= MINIMUM_PIXELS)[0]
    frequency = torch.where(bias.isnan(), torch.nan, whole.sum(dim=0) / whole.sum(dim=1))
    count = len(matrices)
    if count < 2 or not interval:
        return BiasEstimate(bias, torch.full_like(bias, torch.nan), torch.full_like(bias, torch.nan), frequency)
    blocks = Blocks(count)
    if keys:
        predicted = matrices.sum(dim=1)
        blocks = blocks_of(predicted / predicted.sum(dim=1, keepdim=True).clamp(min=1e-12))
        block = torch.arange(count) * blocks.count // count
        matrices = matrices.new_zeros(blocks.count, *whole.shape).index_add_(0, block, matrices)
        count = blocks.count
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_REPLICATES)
    drawn = torch.from_numpy(draws).to(matrices.dtype)
    replicates = torch.cat(
        [
            _bias_of((part @ matrices.flatten(1)).view(-1, *whole.shape), ~bias.isnan())
            for part in drawn.split(_REPLICATES // 20)
        ]
    )
    tails = torch.tensor([(1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2], dtype=torch.float64)
    low, high = torch.nanquantile(replicates, tails, dim=0)
    return BiasEstimate(bias, low, high, frequency, blocks)


def _soft_confusion(sample: PixelSample, order: Sequence[int]) -> Tensor:
    """Per image, the pixels predicted as each class, spread over the debiased classes.

    Args:
        sample: the pixels.
        order: the images' digests in their order, or none.

    Returns:
        float64 ``[I, C, C]``: image (or group of neighbours), debiased class, predicted class.
    """
    num_classes = len(sample.seen)
    weights = sample.weights()
    logits = sample.logits.double()
    shares = torch.zeros(num_classes, num_classes, dtype=torch.float64).index_add_(
        0, sample.predicted, logits * weights[:, None]
    )
    pixels = sample.seen.double()
    shifts = two_pass_shifts(logits, weights, balanced_centre(shares / pixels[:, None], pixels))
    debiased = (
        LocationCorrection((_STRENGTH * shifts).float()).scores(sample.logits).double().softmax(dim=1)
        * weights[:, None]
    )
    images, image = torch.unique(sample.images, return_inverse=True)
    if order:
        place = {digest: index for index, digest in enumerate(order)}
        image = torch.tensor([place.get(one, -1) for one in images.tolist()]).argsort().argsort()[image]
    groups = min(len(images), _MOST_GROUPS)
    image = image * groups // len(images)
    matrices = torch.zeros(groups * num_classes, num_classes, dtype=torch.float64)
    matrices.index_add_(0, image * num_classes + sample.predicted, debiased)
    return matrices.view(-1, num_classes, num_classes).transpose(1, 2)


def _bias_of(confusion: Tensor, present: Tensor) -> Tensor:
    """Bias from confusion matrices ``[R, C, C]`` (debiased class, prediction) over the present classes, bool ``[C]``.

    With the rates ``R[c, l]``, a class misses ``1 − R[l, l]`` of its pixels and gains ``o_l = Σ_{c≠l} v_c R[c, l]`` of
    the others', where ``v_c = min(1, 2 R[c, c])`` lowers the weight of classes that the network hardly predicts. The
    gains are scaled to sum to what is missed, as the bias of any confusion matrix sums to zero; the whole by 0.75.
    Without these three it is eq. 2 of Li et al., ICML 2025; the constants were chosen with whole networks left out.

    Returns:
        float64 ``[R, C]``; NaN for absent classes.
    """
    pixels = confusion.sum(dim=2)
    present = present & (pixels > 0)  # a draw may happen to hold no pixel of a label
    rates = torch.where(present[..., None], confusion / pixels.unsqueeze(2), 0.0)
    own = rates.diagonal(dim1=1, dim2=2)
    trust = (own / _DOUBTED).clamp(max=1)
    missed = torch.where(present, 1 - own, 0.0)
    gained = torch.where(present, (trust[:, None] @ rates).squeeze(1) - trust * own, 0.0)
    gained = gained * missed.sum(dim=1, keepdim=True) / gained.sum(dim=1, keepdim=True).clamp(min=1e-12)
    bias = _SCALE * (gained - missed) / present.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(present, bias, torch.nan)
