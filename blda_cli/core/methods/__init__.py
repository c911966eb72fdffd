"""The ways to correct logits after the fact, each fitted from the statistics of one pass.

A new method is one module with a ``fit`` function and one line in :data:`METHODS`.
"""

from blda_cli.core.corrections import Correction
from blda_cli.core.methods import blda, class_confidence, logit_adjustment, none, prior_shift
from blda_cli.core.methods.settings import AlignmentSettings, Evidence, Fit, Method

__all__ = ["METHODS", "AlignmentSettings", "Evidence", "Fit", "Method", "fit_correction"]

METHODS: dict[Method, Fit] = {
    Method.BLDA: blda.fit,
    Method.LOGIT_ADJUST: logit_adjustment.fit,
    Method.PRIOR_SHIFT: prior_shift.fit,
    Method.CLASS_CONFIDENCE: class_confidence.fit,
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
    return METHODS[settings.method](settings, evidence)
