"""The ways to correct logits after the fact, each fitted from the statistics of one pass.

A new method is one module with a ``fit`` function and one line in :data:`METHODS`.
"""

from blda_cli.core.choices import Method
from blda_cli.core.corrections import Correction
from blda_cli.core.fitting import blda, class_confidence, logit_adjustment, none, prior_shift, supervised
from blda_cli.core.fitting.settings import AlignmentSettings, Evidence, Fit, chosen_settings
from blda_cli.core.fitting.strength import label_free_strength

__all__ = [
    "METHODS",
    "AlignmentSettings",
    "Evidence",
    "Fit",
    "Method",
    "chosen_settings",
    "fit_correction",
    "resolve_strength",
]

METHODS: dict[Method, Fit] = {
    Method.BLDA: blda.fit,
    Method.LOGIT_ADJUST: logit_adjustment.fit,
    Method.PRIOR_SHIFT: prior_shift.fit,
    Method.CLASS_CONFIDENCE: class_confidence.fit,
    Method.SUPERVISED: supervised.fit,
    Method.NONE: none.fit,
}


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
    return METHODS[settings.method](settings, evidence, resolve_strength(settings, evidence))


def resolve_strength(settings: AlignmentSettings, evidence: Evidence) -> float:
    """The strength itself, found without labels where it is ``"auto"``."""
    return label_free_strength(settings, evidence) if settings.tau == "auto" else settings.tau
