"""Comparing corrections on the sampled pixels of the statistics: nothing is run again."""

from dataclasses import replace

import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.fitting import Evidence, fit_correction, resolve_strength
from blda_cli.core.methods import PUBLISHED, compared
from blda_cli.core.sample import PixelSample
from blda_cli.reporting.build import estimate_source
from blda_cli.reporting.model import Candidate, scores_of
from blda_cli.store.statistics import StatisticsFile

_FRACTION = 1 << 10


def compare_methods(content: StatisticsFile, reference: StatisticsFile | None = None) -> list[Candidate]:
    """Try every method and form that needs no labels, with default strength, on the sampled pixels.

    Args:
        content: the corrections are fitted to its cells and applied to its sample.
        reference: of images of the training domain, from which the strengths follow.

    Returns:
        The network's own predictions first, then one candidate per method. Each sampled pixel counts as often as the
        pixels it represents, so shares and scores estimate those of all pixels.
    """
    statistics = content.statistics
    source = estimate_source(statistics)
    cells = statistics.cells[source]
    sample = statistics.sample
    pixels = sample.logits.T.contiguous().unsqueeze(0)  # one image of many pixels, not many of one
    evidence = Evidence(
        statistics,
        cells,
        norms_shifted=content.norms_shifted and not (reference and reference.norms_shifted),
        norms_adapted=content.norms_adapted,
        reference=reference.statistics if reference else None,
    )
    settings = [replace(choice, tau=resolve_strength(choice, evidence)) for choice in compared(source)]
    return [
        _candidate(
            "blda as published" if choice == PUBLISHED else choice.describe(),
            sample,
            fit_correction(choice, evidence).predict(pixels).squeeze(0),
        )
        for choice in settings
    ]


def _candidate(method: str, sample: PixelSample, predictions: Tensor) -> Candidate:
    num_classes = len(sample.seen)
    weights = sample.weights()
    total = weights.sum().clamp(min=1)
    labelled = sample.labels != IGNORE_INDEX
    scores = None
    if bool(labelled.any()):
        index = sample.labels[labelled] * num_classes + predictions[labelled]
        counts = torch.bincount(index, weights[labelled], minlength=num_classes**2).view(num_classes, num_classes)
        # Scores do not depend on the unit of the counts: a fine one keeps the fractions of the weights.
        scores = scores_of(ConfusionMatrix.from_counts((counts * _FRACTION).round()))
    return Candidate(
        method=method,
        changed=float(weights[predictions != sample.predicted].sum() / total),
        share=(torch.bincount(predictions, weights, minlength=num_classes) / total).tolist(),
        scores=scores,
    )
