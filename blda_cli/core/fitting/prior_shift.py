"""Prior-shift EM (Saerens, Latinne and Decaestecker, Neural Computation 2002)."""

import torch

from blda_cli.core.corrections import OffsetCorrection
from blda_cli.core.fitting.evidence import Evidence
from blda_cli.core.methods import AlignmentSettings

_ITERATIONS = 100


def fit(settings: AlignmentSettings, evidence: Evidence, tau: float) -> OffsetCorrection:  # noqa: ARG001
    """Re-estimate the target's priors by EM on the posteriors of the sampled pixels, then reweight by them.

    The training priors are unknown and taken as uniform over the classes, as a network trained with balanced
    classes has them; the strength scales the log of the reweighting.
    """
    sample = evidence.statistics.sample
    posteriors = torch.softmax(sample.logits.double(), dim=1)
    weights = sample.weights()
    weights = weights / weights.sum()
    priors = torch.full((posteriors.shape[1],), 1 / posteriors.shape[1], dtype=torch.float64)
    uniform = priors
    for _ in range(_ITERATIONS):
        reweighted = posteriors * (priors / uniform)
        priors = weights @ (reweighted / reweighted.sum(dim=1, keepdim=True))
    log_ratio = (priors / uniform).clamp(min=torch.finfo(torch.float32).tiny).log()
    return OffsetCorrection((tau * log_ratio).float())
