"""A few labelled images: a regression on their pixels that starts from the label-free correction and stays near it.

The addition to that correction's scores is linear in the logits (matrix scaling; Guo et al., ICML 2017) and fitted by
multinomial regression to the labelled pixels and, as much as :data:`PRIOR_IMAGES` labelled images weigh, to unlabelled
pixels, whose targets are the softmax of the label-free correction (distillation): without a labelled pixel nothing is
added, and classes that no labelled image shows are still predicted. Logit adjustment follows, of every class as far as
the labelled images show it. The constants were chosen on the networks of ``tests/benchmarks/wide.py``.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.corrections import LinearCorrection
from blda_cli.core.fitting import blda
from blda_cli.core.fitting.evidence import Evidence
from blda_cli.core.fitting.strength import label_free_strength
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.sample import PixelSample, join

PRIOR_IMAGES = 2.0
"""Labelled images that the unlabelled pixels weigh as much as."""

HALF_TRUSTED = 5.0
"""Number of labelled images at which half of the fitted correction is applied."""

ADJUSTMENT = 0.4
"""Strength of the logit adjustment of a class that every labelled image shows; of others in proportion."""

_SMALLEST_SHARE = 0.3
"""Of an even share: no class is taken to be rarer, which keeps those that are absent from being pushed up."""

_PIXELS, _LOGITS = 20_000, 1_500_000
"""The most that the regression is fitted to, a fifth of them unlabelled: more pixels change it little."""

_RIDGE = 1e-3

Array = NDArray[np.float64]

_GRADIENT = 1e-8
"""Convergence threshold, so small that the result depends on neither the order of the classes nor the machine."""


def fit(settings: AlignmentSettings, evidence: Evidence, tau: float) -> LinearCorrection:
    """Fit the regression to the labelled pixels, with the label-free correction of the target as its prior.

    Raises:
        ValueError: no sampled pixel has a label.
    """
    sample = (evidence.labelled or evidence.statistics).sample
    labelled = sample.among(sample.labels != IGNORE_INDEX)
    if not len(labelled):
        raise ValueError("no labelled pixel is in the statistics: collect them with --labels")
    default = AlignmentSettings(label_source=settings.label_source)
    offsets = blda.negative(default, evidence, label_free_strength(default, evidence)).offsets.double()
    num_classes = len(offsets)

    most = min(_PIXELS, _LOGITS // num_classes)
    few, many = _thinned(labelled, most * 4 // 5), _thinned(evidence.statistics.sample, most // 5)
    count = len(few.images.unique())
    weights = [part / part.sum() for part in (few.weights(), many.weights())]
    scores = torch.cat([few.logits, many.logits]).double() + offsets
    own = scores[len(few) :]
    linear, bias = _regression(
        scores,
        torch.cat([torch.nn.functional.one_hot(few.labels, num_classes).double(), own.softmax(dim=1)]),
        torch.cat([count * weights[0], PRIOR_IMAGES * weights[1]]) / (count + PRIOR_IMAGES),
    )
    trust = count / (count + HALF_TRUSTED)
    showing = torch.stack([few.labels, few.images]).unique(dim=1)[0].bincount(minlength=num_classes)
    shares = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, own.argmax(dim=1), weights[1])
    adjustment = -ADJUSTMENT * shares.clamp(min=_SMALLEST_SHARE / num_classes).log()
    bias = offsets + trust * (offsets @ linear + bias + showing / count * adjustment)
    return LinearCorrection((tau * trust * linear).float(), (tau * bias).float())


def _thinned(sample: PixelSample, pixels: int) -> PixelSample:
    """A smaller sample of the same pixels: those that a sample of that capacity would have kept."""
    return join([replace(sample, capacity=min(sample.capacity, max(pixels // len(sample.seen), 1)))])


def _regression(scores: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted multinomial regression of the targets on the scores, starting from the scores, to convergence.

    Minimises the cross-entropy of the targets and ``softmax(s + s A + b)`` plus a ridge on A and b, in whitened scores.

    Args:
        scores: ``s``, float64 ``[S, C]``; what all classes have in common at a pixel does not matter.
        targets: probabilities, float64 ``[S, C]``.
        weights: float64 ``[S]``, of sum one.

    Returns:
        ``A``, float64 ``[C, C]`` (channel, class), and ``b``, float64 ``[C]``.
    """
    base, w = scores.numpy(), weights.numpy()[:, None]
    x = base - base.mean(axis=1, keepdims=True)
    mean = (w * x).sum(axis=0)
    values, vectors = np.linalg.eigh((x - mean).T @ (w * (x - mean)))
    large = values > 1e-6 * values[-1]
    whiten = vectors[:, large] / np.sqrt(values[large])
    problem = _Problem(base, np.hstack([(x - mean) @ whiten, np.ones((len(x), 1))]), targets.numpy(), w)
    fitted = np.zeros(problem.ridge.shape)
    for gradient in (1e-2, _GRADIENT):
        fitted = problem.minimised(fitted, gradient)
    linear = whiten @ fitted[:, :-1].T  # blind to what all classes have in common, as the whitened scores are centred
    return torch.from_numpy(linear), torch.from_numpy(fitted[:, -1] - mean @ linear)


class _Problem:
    """Cross-entropy of ``softmax(base + features Wᵀ)`` with a ridge; W is ``[C, D]``, the last feature constant."""

    def __init__(self, base: Array, features: Array, targets: Array, weights: Array) -> None:
        self._base, self._features, self._targets, self._weights = base, features, targets, weights
        self.ridge = np.full((base.shape[1], features.shape[1]), _RIDGE)
        self.ridge[:, -1] /= 100

    def minimised(self, start: Array, gradient: float) -> Array:
        """The W of the minimum, from a start, by Newton's method with conjugate gradients.

        Preconditioned: every class's block of the Hessian at the start becomes the identity. With many classes,
        conjugate gradients would otherwise take minutes.
        """
        features, weights, ridge = self._features, self._weights, self.ridge
        probabilities = np.exp(self._log_posterior(start))
        blocks = np.stack([_squares(features, one) for one in (weights * probabilities * (1 - probabilities)).T])
        straight = np.linalg.inv(np.linalg.cholesky(blocks + ridge[:, :, None] * np.eye(ridge.shape[1])))

        def along(unknowns: Array) -> Array:
            step: Array = np.matmul(straight.transpose(0, 2, 1), unknowns.reshape(*ridge.shape, 1))[:, :, 0]
            return step

        def across(gradient: Array) -> Array:
            product: Array = np.matmul(straight, gradient[:, :, None]).ravel()
            return product

        def loss(unknowns: Array) -> tuple[float, Array]:
            fitted = start + along(unknowns)
            logs = self._log_posterior(fitted)
            value = 0.5 * (ridge * fitted**2).sum() - (weights * self._targets * logs).sum()
            return float(value), across((weights * (np.exp(logs) - self._targets)).T @ features + ridge * fitted)

        @lru_cache(maxsize=1)  # many products follow at one point
        def posterior(unknowns: bytes) -> Array:
            return np.exp(self._log_posterior(start + along(np.frombuffer(unknowns))))

        def curvature(unknowns: Array, direction: Array) -> Array:
            """Product of the Hessian with a direction."""
            probabilities = posterior(unknowns.tobytes())
            step = along(direction)
            change = features @ step.T
            change -= np.einsum("sc,sc->s", probabilities, change)[:, None]
            change *= probabilities
            change *= weights
            return across(change.T @ features + ridge * step)

        from scipy.optimize import minimize  # half a second, which only this needs

        none = np.zeros(ridge.size)
        found = minimize(loss, none, jac=True, hessp=curvature, method="trust-ncg", options={"gtol": gradient})
        return start + along(found.x)

    def _log_posterior(self, fitted: Array) -> Array:
        found = self._base + self._features @ fitted.T
        found -= found.max(axis=1, keepdims=True)
        found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
        return found


def _squares(features: Array, weights: Array) -> Array:
    """``Σ_s w_s x_s x_sᵀ``, float64 ``[D, D]``; pixels of hardly any weight are left out."""
    counted = weights > 0.03 * weights.mean()
    part = features[counted]
    product: Array = part.T @ (weights[counted, None] * part)
    return product
