"""A few labelled images: a calibrator fitted to their pixels, pooled with BLDA's location form.

Three opinions are added up, each a score per class: a quadratic matrix scaling fitted to the labelled pixels, which
knows how classes look here but predicts rare ones too seldom; BLDA's shifts, which treat classes alike; and logit
adjustment by the labelled shares, at the strength that a pooled opinion still needs.
"""

from dataclasses import replace

import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import LabelSource, Shift
from blda_cli.core.corrections import LocationCorrection, SupervisedCorrection
from blda_cli.core.fitting import blda
from blda_cli.core.fitting.settings import AlignmentSettings, Evidence
from blda_cli.core.sample import PixelSample

SHIFT_WEIGHT = 0.5
"""Weight of BLDA's score beside the calibrator's; measured, mIoU is flat between 0.3 and 0.7."""

ADJUSTMENT = 0.5
"""Strength of logit adjustment by the labelled shares; from 0.3 to 0.5 accuracy gains 1.6 points, mIoU loses 0.7."""

_DECAY = 1e-5
_ITERATIONS = 100


def fit(settings: AlignmentSettings, evidence: Evidence, tau: float) -> SupervisedCorrection:
    """Fit the calibrator to the labelled pixels and BLDA's shifts to the target.

    Raises:
        ValueError: no sampled pixel has a label.
    """
    labelled = evidence.labelled or evidence.statistics
    linear, square, bias, present, shares = _matrix_scaling(labelled.sample)
    # With labels on the target itself its cells are known; labels from other images leave it the two passes.
    source = LabelSource.GROUND_TRUTH if evidence.labelled is None else LabelSource.PSEUDO
    shifts = blda.fit(replace(settings, shift=Shift.TWO_PASS, label_source=source), evidence, 1.0)
    assert isinstance(shifts, LocationCorrection)
    return SupervisedCorrection(
        linear=linear,
        square=square,
        bias=bias,
        present=present,
        offsets=(-ADJUSTMENT * shares.log()).float(),
        shifts=shifts,
        weight=SHIFT_WEIGHT,
        tau=tau,
    )


def _matrix_scaling(sample: PixelSample) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Multinomial regression of the labels on logits and their squares.

    Returns:
        Float32 coefficients of the logits and of their squares, each ``[C, C]`` (channel, class), and the bias
        ``[C]``; which classes have a label, bool ``[C]``; their shares, ``[C]``, 1 for the others.
    """
    num_classes = sample.logits.shape[1]
    kept = sample.labels != IGNORE_INDEX
    if not bool(kept.any()):
        raise ValueError("no labelled pixel is in the statistics: collect them with --labels")
    logits, labels, weights = sample.logits[kept], sample.labels[kept], sample.weights()[kept].float()
    weights = weights / weights.sum()
    pixels = torch.zeros(num_classes).index_add_(0, labels, weights)
    present = pixels > 0
    features = torch.cat([logits, logits.square()], dim=1)
    centre = weights @ features
    scale = (weights @ (features - centre).square()).sqrt().clamp(min=1e-6)
    features = (features - centre) / scale
    coefficients = torch.zeros(features.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    excluded = torch.where(present, 0.0, -torch.inf)
    optimiser = torch.optim.LBFGS(
        [coefficients, bias], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = torch.log_softmax(features @ coefficients + bias + excluded, dim=1)
        value = -(weights * scores.gather(1, labels[:, None]).squeeze(1)).sum() + _DECAY * coefficients.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    raw = coefficients.detach() / scale[:, None]
    return (
        raw[:num_classes],
        raw[num_classes:],
        bias.detach() - centre @ raw,
        present,
        torch.where(present, pixels, 1.0),
    )
