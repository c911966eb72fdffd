"""A few labelled images: a regression on their pixels that starts from the label-free correction.

Three opinions are added up, each a score per class: a multinomial regression on the logits (matrix scaling; Guo et al.,
ICML 2017), fitted to the labelled pixels and, as much as two labelled images weigh, to unlabelled pixels under the
labels of the label-free correction, which keeps classes without a labelled pixel alive; that correction's own scores;
and logit adjustment by the shares it predicts. All are linear in the logits, and so is what comes out.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.corrections import LinearCorrection
from blda_cli.core.fitting import blda
from blda_cli.core.fitting.settings import AlignmentSettings, Evidence
from blda_cli.core.fitting.strength import label_free_strength
from blda_cli.core.sample import PixelSample, join

PRIOR_IMAGES = 2.0
"""Labelled images that the unlabelled pixels weigh as much as."""

ADJUSTMENT = 0.4
"""Strength of the logit adjustment."""

_SMALLEST_SHARE = 0.3
"""Of an even share: no class is taken to be rarer, which keeps those that are absent from being pushed up."""

_LABELLED, _UNLABELLED = 16_000, 4_000
"""Pixels that the regression is fitted to: more change it little."""

_RIDGE = 1e-4

_GRADIENT = 1e-8
"""Where the regression has converged: so closely that neither the order of the classes nor the machine can be seen."""


def fit(settings: AlignmentSettings, evidence: Evidence, tau: float) -> LinearCorrection:
    """Fit the regression to the labelled pixels, pooled with the label-free correction of the target.

    Raises:
        ValueError: no sampled pixel has a label.
    """
    labelled = (evidence.labelled or evidence.statistics).sample
    kept = labelled.labels != IGNORE_INDEX
    if not bool(kept.any()):
        raise ValueError("no labelled pixel is in the statistics: collect them with --labels")
    default = AlignmentSettings(label_source=settings.label_source)
    label_free = blda.negative(default, evidence, label_free_strength(default, evidence))
    offsets = label_free.offsets.double()

    few = _thinned(labelled, _LABELLED)
    kept = few.labels != IGNORE_INDEX
    many = _thinned(evidence.statistics.sample, _UNLABELLED)
    own = (many.logits + offsets).argmax(dim=1)
    images = len(few.images[kept].unique())
    weights = [part / part.sum() for part in (few.weights()[kept], many.weights())]
    linear, bias = _regression(
        _centred(torch.cat([few.logits[kept], many.logits])),
        torch.cat([few.labels[kept], own]),
        torch.cat([images * weights[0], PRIOR_IMAGES * weights[1]]) / (images + PRIOR_IMAGES),
        len(offsets),
    )
    shares = torch.zeros(len(offsets), dtype=torch.float64).index_add_(0, own, weights[1])
    bias += offsets - ADJUSTMENT * shares.clamp(min=_SMALLEST_SHARE / len(shares)).log()
    # The regression saw centred logits; subtracting a pixel's mean is linear too.
    linear = linear - linear.mean(dim=0, keepdim=True)
    return LinearCorrection((tau * linear).float(), (tau * bias).float())


def _thinned(sample: PixelSample, pixels: int) -> PixelSample:
    """A smaller sample of the same pixels, as one of that capacity would have kept it."""
    return join([replace(sample, capacity=min(sample.capacity, max(pixels // len(sample.seen), 1)))])


def _centred(logits: Tensor) -> Tensor:
    return logits.double() - logits.double().mean(dim=1, keepdim=True)


def _regression(logits: Tensor, labels: Tensor, weights: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weighted multinomial regression of labels on logits, to convergence.

    Args:
        logits: float64 ``[S, C]``.
        labels: int64 ``[S]``.
        weights: float64 ``[S]``, of sum one.
        num_classes: C.

    Returns:
        Float64 coefficients ``[C, C]`` (channel, class) and bias ``[C]``.
    """
    x, y, w = logits.numpy(), labels.numpy(), weights.numpy()
    mean = w @ x
    values, vectors = np.linalg.eigh((x - mean).T @ ((x - mean) * w[:, None]))
    large = values > 1e-6 * values[-1]
    whiten = vectors[:, large] / np.sqrt(values[large])
    features = np.hstack([(x - mean) @ whiten, np.ones((len(x), 1))])
    ridge = np.full((num_classes, features.shape[1]), _RIDGE)
    ridge[:, -1] /= 100
    hits = np.zeros_like(ridge)
    np.add.at(hits, y, w[:, None] * features)

    def scores(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log-normaliser ``[S]`` and probabilities ``[S, C]``."""
        values = features @ flat.reshape(ridge.shape).T
        largest = values.max(axis=1, keepdims=True)
        powers = np.exp(values - largest)
        total = powers.sum(axis=1, keepdims=True)
        return (largest + np.log(total))[:, 0], powers / total

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(ridge.shape)
        normaliser, probabilities = scores(flat)
        value = w @ (normaliser - (features * weights[y]).sum(axis=1)) + 0.5 * (ridge * weights**2).sum()
        gradient = (w[:, None] * probabilities).T @ features - hits + ridge * weights
        return float(value), gradient.ravel()

    def curvature(flat: NDArray[np.float64], direction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Product of the Hessian with a direction."""
        along = direction.reshape(ridge.shape)
        probabilities = scores(flat)[1]
        change = features @ along.T
        change -= (probabilities * change).sum(axis=1, keepdims=True)
        product: NDArray[np.float64] = ((w[:, None] * probabilities * change).T @ features + ridge * along).ravel()
        return product

    found = minimize(
        loss, np.zeros(ridge.size), jac=True, hessp=curvature, method="trust-ncg", options={"gtol": _GRADIENT}
    )
    fitted = found.x.reshape(ridge.shape)
    linear = whiten @ fitted[:, :-1].T
    return torch.from_numpy(linear), torch.from_numpy(fitted[:, -1] - mean @ linear)
