"""Correction methods: inputs and options of each, one entry per method. No torch, so that options can be made from it.

A new method is one module with a ``fit`` function and one entry in :data:`METHODS`: choices, help, refusals of options
that it does not take, the rows of ``blda report --compare`` and the description of a run follow from the entry.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from blda_cli.core.choices import Density, Favour, LabelSource, Shift, Tails
from blda_cli.settings import fitted, setting


@dataclass(frozen=True)
class Form:
    """One form of a method: its own options and files.

    Attributes:
        options: names of fields of :class:`AlignmentSettings`.
        files: statistics files it is fitted to besides the target's.
        words: describes its options, a format string of their values.
    """

    options: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    words: str = ""


@dataclass(frozen=True)
class MethodEntry:
    """Options, files and abilities of a correction method.

    Attributes:
        fit: its fit, as ``package.module:function``; called with the settings, the evidence and the strength, it
            returns a :class:`blda_cli.core.corrections.Correction`.
        options: fields of :class:`AlignmentSettings` it takes, besides those of its forms.
        files: statistics files it is fitted to besides the target's.
        forms: its forms, chosen by ``shift``; empty where there is one only.
        moderate: the strength that helps out of domain, as ``package.module:function`` of the settings and the
            :class:`blda_cli.core.fitting.strength.DomainGap`; None where the method sets its own strength.
        moves_cells: its correction shifts the cells' distributions, so that a report can draw them afterwards.
        compared: ``blda report --compare`` tries it.
        label: name of a run with it; by default the method's name.
    """

    fit: str
    options: tuple[str, ...] = ("tau",)
    files: tuple[str, ...] = ()
    forms: Mapping[Shift, Form] = field(default_factory=dict)
    moderate: str | None = None
    moves_cells: bool = True
    compared: bool = True
    label: str | None = None


_FITTING = "blda_cli.core.fitting"

METHODS: dict[str, MethodEntry] = {
    "blda": MethodEntry(
        f"{_FITTING}.blda:fit",
        options=("tau", "label_source"),
        forms={
            Shift.NEGATIVE: Form(),
            Shift.QUANTILE: Form(("density", "tails"), ("reference",), "{density}, tails {tails}"),
            Shift.LOCATION: Form(files=("reference",)),
            Shift.BALANCED: Form(),
            Shift.TWO_PASS: Form(),
        },
        moderate=f"{_FITTING}.blda:moderate_strength",
    ),
    "logit-adjust": MethodEntry(
        f"{_FITTING}.logit_adjustment:fit",
        options=("tau", "label_source"),
        moderate=f"{_FITTING}.logit_adjustment:moderate_strength",
    ),
    "prior-shift": MethodEntry(f"{_FITTING}.prior_shift:fit"),
    "class-confidence": MethodEntry(f"{_FITTING}.class_confidence:fit", files=("spatial_priors",)),
    "supervised": MethodEntry(
        f"{_FITTING}.supervised:fit",
        files=("labelled",),
        moves_cells=False,  # it moves pixels
        compared=False,  # the labels it is fitted to are those it would be scored with
    ),
    "none": MethodEntry(f"{_FITTING}.none:fit", options=(), label="argmax"),
}


@dataclass(frozen=True)
class AlignmentSettings:
    """Which correction is fitted, and how strong it is."""

    method: str = setting("blda", "What corrects the logits.", choices=METHODS)
    shift: Shift = setting(Shift.NEGATIVE, "The form of BLDA's shift.")
    tau: float | Literal["auto"] = setting(
        "auto",
        "Strength of the correction; 0 leaves the argmax, auto finds it without labels.",
        at_least=0,
        at_most=1000,
        metavar="NUMBER|auto",
    )
    favour: Favour = setting(
        Favour.MIOU,
        "The score that auto finds the strength for: accuracy takes 1.3 times the strength of miou, pixels (pixel "
        "accuracy) 0.7 times.",
    )
    label_source: LabelSource = setting(LabelSource.PSEUDO, "The cells to use.")
    density: Density = setting(Density.EMPIRICAL, "How the quantile form describes a cell.")
    tails: Tails = setting(Tails.CONSTANT, "What the quantile form does with a cell's outermost hundredths.")

    @property
    def entry(self) -> MethodEntry:
        """The method's entry."""
        return METHODS[self.method]

    @property
    def form(self) -> Form:
        """The chosen form; an empty one where the method has no forms."""
        return self.entry.forms.get(self.shift, Form())

    @property
    def corrects(self) -> bool:
        """Whether anything is corrected at all."""
        return self.method != "none" and self.tau != 0

    @property
    def finds_strength(self) -> bool:
        """Whether ``tau`` is to be found from the unlabelled pixels."""
        return self.tau == "auto" and self.entry.moderate is not None

    @property
    def takes(self) -> set[str]:
        """Fields and statistics files that change the fit."""
        named = {"method", *self.entry.options, *self.entry.files, *self.form.options, *self.form.files}
        found = {"favour", "reference"} if self.finds_strength else set()
        return named | ({"shift"} if self.entry.forms else set()) | found

    def describe(self) -> str:
        """The correction in a few words."""
        entry, values = self.entry, vars(self)
        parts = [f"{entry.label or self.method}{f' {self.shift}' if entry.forms else ''}"]
        parts += [self.form.words.format_map(values)] if self.form.words else []
        if "tau" in entry.options:
            parts.append(f"τ {self.tau}" if isinstance(self.tau, str) else f"τ {self.tau:g}")
        if "label_source" in entry.options and self.label_source is not LabelSource.PSEUDO:
            parts.append(f"{self.label_source} cells".replace("_", " "))
        return ", ".join(parts)


PUBLISHED = AlignmentSettings(shift=Shift.QUANTILE, tau=0.2, density=Density.MIXTURE, tails=Tails.CLAMP)
"""The post-hoc alignment as Li et al. published it."""

PRESETS = {"published": PUBLISHED}


def chosen_settings(choices: Mapping[str, Any], preset: str | None = None) -> AlignmentSettings:
    """The default settings, or those of a preset, with some values replaced.

    Args:
        choices: fields of :class:`AlignmentSettings`, enumerations by name as options and records hold them.
        preset: ``"published"``, the post-hoc alignment as published; None for the defaults.

    Raises:
        ValueError: there is no such setting or preset, or a value does not fit.
    """
    if preset == "strong":
        raise ValueError(
            "preset 'strong' changes how the network is run (norm statistics, scales, flips), which a correction of "
            "logits cannot: use collect_stats and align with it"
        )
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there is {', '.join(PRESETS)}")
    return fitted(AlignmentSettings, choices, PRESETS[preset] if preset else AlignmentSettings())


def compared(source: LabelSource) -> Iterator[AlignmentSettings]:
    """The corrections that ``blda report --compare`` tries on the cells of a label source, argmax first."""
    yield AlignmentSettings(method="none", label_source=source)
    for name, entry in METHODS.items():
        plain = AlignmentSettings(method=name, label_source=source)
        if entry.compared and name != "none":
            yield from (replace(plain, shift=shift) for shift in entry.forms or [plain.shift])
        yield from (preset for preset in PRESETS.values() if preset.method == name and preset.label_source is source)
