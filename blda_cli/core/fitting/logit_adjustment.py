"""Logit adjustment (Menon et al., ICLR 2021): ``f_c − τ log π_c``, with the predicted shares as the prior."""

from blda_cli.core.corrections import OffsetCorrection
from blda_cli.core.fitting.settings import AlignmentSettings, Evidence


def fit(settings: AlignmentSettings, evidence: Evidence, tau: float) -> OffsetCorrection:
    """Subtract the log of each class's share of the labels in ``settings.label_source``.

    With soft cells the share is the mean softmax. A class without a pixel counts as one pixel.
    """
    pixels = evidence.cells(settings.label_source).label_pixels().cpu()
    shares = pixels.clamp(min=1) / pixels.sum().clamp(min=1)
    return OffsetCorrection((-tau * shares.log()).float())
