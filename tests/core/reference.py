"""The method's formulas as they read: float64, one cell and one hypothesis at a time, no speed and no shared code."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from scipy.stats import norm

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Shift = Callable[[int, int, Array], Array]
"""``Δ(label, channel, values)``."""


def cell(logits: Array, labels: Ints, label: int, channel: int) -> Array:
    """``M[c, l]``: the values of one channel where the label is ``c``."""
    return np.asarray(np.moveaxis(logits, 1, -1)[labels == label][:, channel], dtype=np.float64)


def pooled(logits: Array, labels: Ints, *, positive: bool) -> Array:
    """All diagonal cells, or all others."""
    classes = range(logits.shape[1])
    return np.concatenate([cell(logits, labels, c, k) for c in classes for k in classes if (c == k) is positive])


def histogram(values: Array, bins: int, limit: float) -> Array:
    """Values counted one by one."""
    counts = np.zeros(bins)
    width = 2 * limit / bins
    for value in values:
        counts[int(np.floor((value + limit) / width))] += 1
    return counts


def histogram_cdf(counts: Array, edges: Array, z: float) -> float:
    """The share of the mass below z, mass being spread evenly within a bin."""
    below = 0.0
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        below += count * min(max((z - low) / (high - low), 0.0), 1.0)
    return below / float(counts.sum())


def histogram_quantile(counts: Array, edges: Array, level: float) -> float:
    """The lowest z with ``F(z) >= level``."""
    wanted = level * float(counts.sum())
    below = 0.0
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count > 0 and below + count >= wanted:
            return float(low + (wanted - below) / count * (high - low))
        below += count
    raise AssertionError("no mass above the level")


def mixture_cdf(weights: Array, means: Array, variances: Array, z: Array) -> Array:
    """``Σ_k w_k Φ((z − μ_k) / σ_k)``."""
    parts = [w * norm.cdf(z, m, np.sqrt(v)) for w, m, v in zip(weights, means, variances, strict=True)]
    return np.asarray(sum(parts), dtype=np.float64)


def mixture_quantile(weights: Array, means: Array, variances: Array, levels: Array) -> Array:
    """``F⁻¹`` by bisection."""
    reach = 40 * np.sqrt(variances.max())
    low = np.full(levels.shape, means.min() - reach)
    high = np.full(levels.shape, means.max() + reach)
    for _ in range(100):
        middle = (low + high) / 2
        below = mixture_cdf(weights, means, variances, middle) < levels
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high


def em_on_samples(values: Array, means: Array, iterations: int) -> tuple[Array, Array, Array]:
    """Expectation maximisation of a Gaussian mixture from given means, equal weights and the sample's variance."""
    weights = np.full(len(means), 1 / len(means))
    variances = np.full(len(means), values.var())
    for _ in range(iterations):
        density = np.stack(
            [w * norm.pdf(values, m, np.sqrt(v)) for w, m, v in zip(weights, means, variances, strict=True)]
        )
        belongs = density / density.sum(axis=0)
        share = belongs.sum(axis=1)
        weights = share / len(values)
        means = (belongs * values).sum(axis=1) / share
        variances = np.array([(b * (values - m) ** 2).sum() / s for b, m, s in zip(belongs, means, share, strict=True)])
    return weights, means, variances


def aligned_log_scores(logits: Array, shift: Shift) -> Array:
    """``log softmax over l of (f_l + Δ[c, l](f_l))`` read at ``l = c``, for every hypothesis ``c``."""
    scores = np.empty_like(logits)
    classes = range(logits.shape[1])
    for c in classes:
        shifted = np.stack([logits[:, channel] + shift(c, channel, logits[:, channel]) for channel in classes], axis=1)
        scores[:, c] = shifted[:, c] - logsumexp(shifted, axis=1)
    return scores


def class_bias(labels: Ints, predictions: Ints, num_classes: int) -> Array:
    """``Bias(l)`` over the classes that have pixels; NaN for the others."""
    present = [c for c in range(num_classes) if (labels == c).any()]
    bias = np.full(num_classes, np.nan)
    for channel in present:
        rates = [(predictions[labels == c] == channel).mean() for c in present]
        bias[channel] = sum(rates) / len(present) - 1 / len(present)
    return bias


def iou(labels: Ints, predictions: Ints, num_classes: int) -> Array:
    """Intersection over union of each class over labelled pixels; NaN for classes without a pixel."""
    valid = (labels >= 0) & (labels < num_classes)
    result = np.full(num_classes, np.nan)
    for c in range(num_classes):
        truth, found = valid & (labels == c), valid & (predictions == c)
        if truth.any():
            result[c] = (truth & found).sum() / (truth | found).sum()
    return result


def class_thresholds(confidence: Array, predicted: Ints, num_classes: int, portion: float) -> Array:
    """The confidence ranked at ``round(p N_c)`` among the pixels predicted ``c``; 1 where there is none."""
    thresholds = np.ones(num_classes)
    for c in range(num_classes):
        ranked = sorted(confidence[predicted == c], reverse=True)
        if ranked:
            thresholds[c] = ranked[max(round(portion * len(ranked)), 1) - 1]
    return thresholds
