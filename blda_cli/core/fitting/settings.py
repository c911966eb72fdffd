"""What a correction is fitted with: the user's choices and the statistics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import EnumType
from typing import Any, Literal, get_type_hints

from torch import Tensor

from blda_cli.core.choices import Density, Favour, LabelSource, Method, Shift, Tails
from blda_cli.core.corrections import Correction
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.statistics import LogitStatistics


@dataclass(frozen=True)
class AlignmentSettings:
    """What the user chose.

    Attributes:
        method: what corrects the logits.
        shift: the form of BLDA's shift.
        tau: strength; 0 leaves the argmax, each method scales its own correction by it. ``"auto"`` finds it
            without labels.
        favour: what ``"auto"`` favours where mIoU and mean accuracy want different strengths.
        label_source: the cells that are used.
        density: for the quantile form.
        tails: for the quantile form.
    """

    method: Method = Method.BLDA
    shift: Shift = Shift.NEGATIVE
    tau: float | Literal["auto"] = "auto"
    favour: Favour = Favour.MIOU
    label_source: LabelSource = LabelSource.PSEUDO
    density: Density = Density.EMPIRICAL
    tails: Tails = Tails.CONSTANT


PUBLISHED = AlignmentSettings(shift=Shift.QUANTILE, tau=0.2, density=Density.MIXTURE, tails=Tails.CLAMP)
"""The post-hoc alignment as Li et al. published it."""


def chosen_settings(choices: Mapping[str, Any], preset: str | None = None) -> AlignmentSettings:
    """The default settings, or those of a preset, with what was chosen in their place.

    Args:
        choices: values of :class:`AlignmentSettings`, enumerations by name as options and records hold them.
        preset: ``"published"``, the post-hoc alignment as published; None for the defaults.

    Raises:
        ValueError: there is no such setting, name or preset.
    """
    if preset not in (None, "published"):
        raise ValueError(f"there is no preset {preset!r}; one is called published")
    types = get_type_hints(AlignmentSettings)
    unknown = set(choices) - set(types)
    if unknown:
        raise ValueError(f"there is no setting {min(unknown)!r}; there are {', '.join(types)}")
    named = {key: types[key](value) if isinstance(types[key], EnumType) else value for key, value in choices.items()}
    return replace(PUBLISHED if preset else AlignmentSettings(), **named)


@dataclass(frozen=True)
class Evidence:
    """What corrections are fitted to.

    Attributes:
        statistics: of the images to be corrected.
        anchor_cells: the cells whose pools are the anchors: the source's where there are some, else the target's own.
        labelled: statistics with ground truth of a few images like the target's, for the supervised method.
        priors: frequencies of the classes at each place, ``[C, rows, columns]``, for class-normalised confidence.
        norms_shifted: the averages of the images lie far from those of the network's batch norms, see
            :mod:`blda_cli.core.norms`: it is away from home, whatever its logits say.
    """

    statistics: LogitStatistics
    anchor_cells: LogitHistogram
    labelled: LogitStatistics | None = None
    priors: Tensor | None = None
    norms_shifted: bool = False

    def cells(self, source: LabelSource) -> LogitHistogram:
        """The target's cells of a label source.

        Raises:
            ValueError: they were not counted.
        """
        if source not in self.statistics.cells:
            counted = ", ".join(self.statistics.cells)
            raise ValueError(f"the statistics hold no {source} cells (only {counted})")
        return self.statistics.cells[source]

    def cpu(self) -> "Evidence":
        """The same evidence with every histogram on the CPU, where the samples are."""
        return replace(self, statistics=self.statistics.cpu(), anchor_cells=self.anchor_cells.cpu())


Fit = Callable[[AlignmentSettings, Evidence, float], Correction]
"""A method: fits the correction of a given strength."""
