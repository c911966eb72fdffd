"""Training methods, and corrections of their cross-entropy: data and options of each, one entry each.

Nothing here imports torch, so that options and help are made from it at once. A new method is a module with a class
derived from :class:`blda_cli.finetuning.methods.base.TrainingMethod` and one entry in :data:`METHODS`; choices, help,
refused options and required data follow from the entry.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class MethodEntry:
    """Data and options of a training method.

    Attributes:
        make: its class, as ``package.module:class``; it is called with a
            :class:`blda_cli.finetuning.methods.base.MethodContext`.
        summary: describes it in the help.
        source: whether it needs labelled source images, takes the target's own labels in their place or beside them
            (``"optional"``), or uses no source (``"unused"``).
        target: it learns from target images.
        rounds: it divides the iterations into rounds or stages, each begun by a pass over all images.
        parts: large images may be run in parts; else it needs whole ones, for their features or their geometry.
        options: settings that change something under this method and not under every other: ``section.name``, or
            ``section.*`` for all of a section.
        correction: corrects its cross-entropy, whatever ``training.correction`` says.
        defaults: its own defaults, where they differ from the general ones.
    """

    make: str
    summary: str
    source: Literal["needed", "optional", "unused"] = "needed"
    target: bool = True
    rounds: bool = False
    parts: bool = True
    options: tuple[str, ...] = ()
    correction: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CorrectionEntry:
    """Options of a correction of the cross-entropy.

    Attributes:
        make: its class, as ``package.module:class``, derived from
            :class:`blda_cli.finetuning.methods.objective.Objective`.
        options: as of :class:`MethodEntry`.
    """

    make: str
    options: tuple[str, ...] = ()


_HERE = "blda_cli.finetuning.methods"

_SOURCE = (
    *("host.rare_class_sampling", "host.rare_class_temperature", "host.rare_class_share"),
    *("host.feature_distance", "host.thing_classes"),
)
"""Settings for source images."""

_TARGET = (
    *_SOURCE,
    *("host.ignore_rows", "host.classmix", "host.color_jitter", "host.color_strength", "host.blur", "host.blur_sigma"),
    *("host.masked_consistency", "host.mask_ratio", "host.mask_block"),
)
"""Settings for source images and mixed target images."""

_TEACHER = (*_TARGET, "host.confidence", "host.whole_images")
"""The same where a teacher labels batch by batch."""

_OWN = ("start.*",)
"""Settings of the target's own labels."""

_ROUNDS = (*_TARGET, "rounds.rounds")

_SELECTION = (
    *_ROUNDS,
    *("rounds.portion", "rounds.portion_step", "rounds.portion_limit", "rounds.label_scales", "rounds.label_flip"),
)
"""Options of methods that keep the most confident predictions of a round."""

_PLAIN_HOST = {"host.classmix": False, "host.color_jitter": 0.0, "host.blur": 0.0, "host.rare_class_sampling": False}
"""Methods in rounds were published without the augmentation and mixing of DACS and DAFormer."""

METHODS: dict[str, MethodEntry] = {
    "blda": MethodEntry(
        f"{_HERE}.dacs:Dacs",
        "dacs with BLDA's corrected losses",
        source="optional",
        options=(*_TEACHER, *_OWN),
        correction="blda",
    ),
    "dacs": MethodEntry(
        f"{_HERE}.dacs:Dacs",
        "a teacher, the network's moving average, labels mixed images",
        source="optional",
        options=(*_TEACHER, *_OWN),
    ),
    "source": MethodEntry(
        f"{_HERE}.source:SourceOnly",
        "the labelled source alone",
        target=False,
        options=_SOURCE,
    ),
    "st": MethodEntry(
        f"{_HERE}.cbst:Cbst",
        "rounds of labelling the whole target with one threshold",
        rounds=True,
        options=_SELECTION,
        defaults=_PLAIN_HOST,
    ),
    "cbst": MethodEntry(
        f"{_HERE}.cbst:Cbst",
        "the same with a threshold for each class",
        source="optional",
        rounds=True,
        options=(*_SELECTION, *_OWN, "rounds.mined_share"),
        defaults={**_PLAIN_HOST, "start.own_labels": False},
    ),
    "cbst-sp": MethodEntry(
        f"{_HERE}.cbst:Cbst",
        "cbst with spatial priors",
        rounds=True,
        parts=False,
        options=(*_SELECTION, "rounds.mined_share"),
        defaults=_PLAIN_HOST,
    ),
    "cag": MethodEntry(
        f"{_HERE}.cag:Cag",
        "stages of labels by the distance to the classes' centroids",
        rounds=True,
        parts=False,
        options=(*_ROUNDS, "cag.*"),
        defaults=_PLAIN_HOST,
    ),
    "tent": MethodEntry(
        f"{_HERE}.tent:Tent",
        "the target's entropy, by the weights of norms alone; no source",
        source="unused",
        correction="none",
        defaults={"training.norms": "batch", "host.rare_class_sampling": False, "run.export": "student"},
    ),
}

CORRECTIONS: dict[str, CorrectionEntry] = {
    "none": CorrectionEntry(f"{_HERE}.objective:Objective"),
    "blda": CorrectionEntry(f"{_HERE}.blda:Blda", options=("blda.*",)),
}


def takes(options: Iterable[str], name: str) -> bool:
    """Whether a setting ``section.name`` is among some options."""
    return any(name == one or (one.endswith(".*") and name.startswith(one[:-1])) for one in options)


def takers(name: str) -> list[str]:
    """The methods and corrections, as command-line options, that use a setting; empty where all methods use it."""
    corrections = [correction for correction, entry in CORRECTIONS.items() if takes(entry.options, name)]
    methods = [
        f"--method {method}"
        for method, entry in METHODS.items()
        if takes(entry.options, name) or entry.correction in corrections
    ]
    return [*methods, *(f"--correction {correction}" for correction in corrections)]
