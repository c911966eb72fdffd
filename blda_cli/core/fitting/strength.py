"""How strong a correction should be, from the unlabelled pixels alone: nothing at home, moderate away from it.

The constants were chosen on the networks of ``tests/benchmarks/wide.py``, whole networks left out; its table says what
they bring.
"""

import pkgutil
from dataclasses import dataclass

import torch
from torch import Tensor

from blda_cli.core.choices import Favour
from blda_cli.core.fitting.evidence import Evidence
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.sample import PixelSample
from blda_cli.core.shifts import MINIMUM_PIXELS, disagreement, negative_centre

AT_HOME, AWAY = 0.05, 0.065
"""Contested shares up to which nothing is corrected, and from which the full moderate strength holds."""

FEWEST_IMAGES = 4
"""With fewer images the contested share says little: single frames at home exceed what all of them have."""

_PROBE = 0.4

_ENOUGH_CLASSES = 10
_FAVOUR_ACCURACY = 1.3


@dataclass(frozen=True)
class DomainGap:
    """How far from home a network is, as its logits on unlabelled images tell.

    Attributes:
        contested: share of the pixels that the *opposite* of the negative form, ``f + 0.4 b``, would relabel: pixels
            that under-predicted classes hold by a narrow margin. At home few pixels lie near any border.
        disagreement: see :func:`blda_cli.core.shifts.disagreement`.
        classes: those predicted often enough for cells of their own.
        norms_shifted: see :class:`Evidence`.
    """

    contested: float
    disagreement: float
    classes: int
    norms_shifted: bool = False

    @property
    def distance(self) -> float:
        """0 at home, 1 away, linear in the contested share between :data:`AT_HOME` and :data:`AWAY`.

        Where the batch norms say that the network is away, it is: a network may be sure of what is wrong.
        """
        return 1.0 if self.norms_shifted else min(max((self.contested - AT_HOME) / (AWAY - AT_HOME), 0.0), 1.0)

    @property
    def support(self) -> float:
        """1 with ten classes and more, 0 with two: few cells tell a channel's level from what its class is like."""
        return min(max(self.classes - 2, 0) / (_ENOUGH_CLASSES - 2), 1.0)


def domain_gap(sample: PixelSample, norms_shifted: bool = False) -> DomainGap:
    """Tell home from away.

    Args:
        sample: random pixels, not none.
        norms_shifted: see :class:`Evidence`; false where nothing is known of batch norms.

    Returns:
        The gap; contested 0 where fewer than three classes are predicted often enough.
    """
    means, pixels = predicted_means(sample)
    probe = sample.logits + _PROBE * negative_centre(means, pixels).float()
    relabelled = probe.argmax(dim=1) != sample.logits.argmax(dim=1)
    weights = sample.weights()
    contested = float(weights[relabelled].sum() / weights.sum())
    classes = int((pixels >= MINIMUM_PIXELS).sum())
    return DomainGap(contested, disagreement(means, pixels), classes, norms_shifted)


def predicted_means(sample: PixelSample) -> tuple[Tensor, Tensor]:
    """``μ[c, l]`` under the network's own labels, float64 ``[C, C]``, and the pixels of each label, float64 ``[C]``."""
    count = len(sample.seen)
    # Within a predicted class every sampled pixel stands for equally many: no weights are needed.
    sums = torch.zeros(count, count, dtype=torch.float64).index_add_(0, sample.predicted, sample.logits.double())
    kept = torch.bincount(sample.predicted, minlength=count)
    return sums / kept[:, None], sample.seen.double()


def label_free_strength(settings: AlignmentSettings, evidence: Evidence) -> float:
    """Choose the strength for ``tau="auto"``.

    BLDA's forms and logit adjustment are measured to help at a moderate strength out of domain and to harm in domain,
    so theirs is a moderate one times :attr:`DomainGap.distance`. The other methods set their own strength: 1.

    Raises:
        ValueError: the statistics hold no sampled pixels.
    """
    moderate_strength = settings.entry.moderate
    if moderate_strength is None:
        return 1.0
    sample = evidence.statistics.sample
    if not len(sample):
        raise ValueError("the statistics hold no sampled pixels to find a strength from: give --tau a number")
    gap = domain_gap(sample, evidence.norms_shifted)
    moderate: float = pkgutil.resolve_name(moderate_strength)(settings, gap)
    if settings.favour is Favour.ACCURACY:
        moderate *= _FAVOUR_ACCURACY
    return round(moderate * gap.distance, 3)
