"""Fitting the correction methods of :mod:`blda_cli.core.methods` to the statistics of one pass."""

import pkgutil

from blda_cli.core.corrections import Correction
from blda_cli.core.fitting.evidence import Evidence, Fit
from blda_cli.core.fitting.strength import label_free_strength
from blda_cli.core.methods import AlignmentSettings

__all__ = ["Evidence", "fit_correction", "resolve_strength"]


def fit_correction(settings: AlignmentSettings, evidence: Evidence) -> Correction:
    """Fit the correction that ``settings`` describe.

    Args:
        settings: method, form and strength.
        evidence: the target's statistics and the anchors.

    Returns:
        The correction, its tensors on the CPU.

    Raises:
        ValueError: the statistics lack what the method needs.
    """
    evidence = evidence.cpu()
    fit: Fit = pkgutil.resolve_name(settings.entry.fit)
    return fit(settings, evidence, resolve_strength(settings, evidence))


def resolve_strength(settings: AlignmentSettings, evidence: Evidence) -> float:
    """The strength itself, found without labels where it is ``"auto"``."""
    return label_free_strength(settings, evidence) if settings.tau == "auto" else settings.tau
