"""Class-normalised confidence (CBST; Zou et al., ECCV 2018): ``argmax_c p_c / exp(−k_c)``; with spatial priors too."""

import torch

from blda_cli.core.corrections import Correction, OffsetCorrection, SpatialCorrection
from blda_cli.core.fitting.evidence import Evidence
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.self_training import ConfidenceHistogram
from blda_cli.core.spatial_priors import at_positions

_PORTION = 0.2


def fit(settings: AlignmentSettings, evidence: Evidence, tau: float) -> Correction:  # noqa: ARG001
    """Divide every class's score by the score that the most confident fifth of its predictions reaches.

    ``exp(−k_c)`` is the score ranked at ``round(p N_c)`` among the ``N_c`` pixels predicted ``c``, with the published
    first portion p = 20 %; a class that is never predicted keeps its score. The score is the probability, or with
    spatial priors ``q_n(c) p_n(c)``.

    Raises:
        ValueError: there are priors, but the sample has no positions of its pixels.
    """
    sample = evidence.statistics.sample
    scores = torch.log_softmax(sample.logits.double(), dim=1)
    if evidence.priors is not None:
        if not bool(sample.positions.isfinite().all()):
            raise ValueError(
                "the statistics do not tell where their pixels lie in the images, which spatial priors need: they are "
                "of an older version; collect them anew"
            )
        scores += at_positions(evidence.priors.double(), sample.positions.double()).log()
    histogram = ConfidenceHistogram(scores.shape[1])
    histogram.update(scores, sample.weights())
    offsets = (tau * histogram.class_thresholds(_PORTION)).float()
    if evidence.priors is None:
        return OffsetCorrection(offsets)
    return SpatialCorrection(offsets, evidence.priors, tau)
