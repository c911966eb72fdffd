"""Logit adjustment (Menon et al., ICLR 2021): ``f_c − τ log π_c``, with the predicted shares as the prior."""

import torch

from blda_cli.core.choices import LabelSource
from blda_cli.core.corrections import OffsetCorrection
from blda_cli.core.fitting.evidence import Evidence
from blda_cli.core.fitting.strength import DomainGap
from blda_cli.core.methods import AlignmentSettings


def moderate_strength(settings: AlignmentSettings, gap: DomainGap) -> float:  # noqa: ARG001
    """The strength that helped out of domain in the benchmarks, by the source of the shares."""
    return 0.3 if settings.label_source is LabelSource.SOFT else 0.2


def fit(settings: AlignmentSettings, evidence: Evidence, tau: float) -> OffsetCorrection:
    """Subtract the log of each class's share of the labels in ``settings.label_source``.

    With soft cells the share is the mean softmax. A class without a pixel gets no offset: it may be absent from the
    images, and the log of its share would let it take them all.
    """
    pixels = evidence.cells(settings.label_source).label_pixels().cpu()
    shares = torch.where(pixels >= 1, pixels / pixels.sum().clamp(min=1), 1.0)
    return OffsetCorrection((-tau * shares.log()).float())
