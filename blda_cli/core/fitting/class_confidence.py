"""Class-normalised confidence (CBST; Zou et al., ECCV 2018): ``argmax_c p_c / exp(−k_c)``."""

import torch

from blda_cli.core.corrections import OffsetCorrection
from blda_cli.core.fitting.settings import AlignmentSettings, Evidence
from blda_cli.core.self_training import class_thresholds

_PORTION = 0.2


def fit(settings: AlignmentSettings, evidence: Evidence, tau: float) -> OffsetCorrection:  # noqa: ARG001
    """Divide every class's probability by the confidence that its most confident fifth of predictions reach.

    ``exp(−k_c)`` is the confidence ranked at ``round(p N_c)`` among the ``N_c`` pixels predicted ``c``, with the
    published first portion p = 20 %; a class that is never predicted keeps its probability.
    """
    sample = evidence.statistics.sample
    confidence = torch.softmax(sample.logits.double(), dim=1).amax(dim=1)
    # Within a predicted class every sampled pixel stands for equally many, so ranks need no weights.
    thresholds = class_thresholds(confidence, sample.predicted, sample.logits.shape[1], _PORTION)
    return OffsetCorrection((-tau * thresholds.log()).float())
