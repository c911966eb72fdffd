"""The report's tables: rows, columns and text of their fields, for terminal and page."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from blda_cli.reporting.model import Predictions, Report, Run, Scores, Verdict
from blda_cli.reporting.words import percent, points, score, signed, times

MARKS = {Verdict.OVER: "▲", Verdict.UNDER: "▼", Verdict.UNCLEAR: "●", Verdict.NEVER: "○", Verdict.UNKNOWN: "–"}


OPPOSED = "≠"
"""Mark of a class whose direction by pixels differs from that with every class weighing alike."""


@dataclass(frozen=True)
class Cell:
    """A field of a table: its text, its sort key (NaN last), and the small text below."""

    text: str
    value: float
    small: str = ""


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        heading: its name.
        short: its name where there is little room.
        title: its meaning, in full.
        cells: from the first row to the last.
        after: the same after a correction, where the two stand side by side.
        stage_names: names of the stages of ``cells`` and ``after``.
    """

    heading: str
    short: str
    title: str
    cells: list[Cell]
    after: list[Cell] | None = None
    stage_names: tuple[str, str] = ("before", "after")

    def stages(self) -> list["Column"]:
        """Before and after as columns of their own."""
        if self.after is None:
            return [self]
        return [
            replace(self, title=f"{self.title}, {self.stage_names[0]}", after=None),
            replace(
                self,
                heading=f"→ {self.heading}",
                title=f"{self.title}, {self.stage_names[1]}",
                cells=self.after,
                after=None,
            ),
        ]


@dataclass(frozen=True)
class NumberTable:
    """A table: a name for each row, and columns of numbers.

    Attributes:
        caption: what it shows.
        heading: of the names.
        rows: the names.
        columns: the numbers.
    """

    caption: str
    heading: str
    rows: Sequence[str]
    columns: list[Column]


@dataclass(frozen=True)
class Measure:
    """A number of the model, with its names and format.

    Attributes:
        key: its name in the model and in ``report.json``.
        heading: of its column.
        short: the same where there is little room.
        title: what it is, in full.
        show: writes it.
        detail: not among the page's headline numbers.
    """

    key: str
    heading: str
    short: str
    title: str
    show: Callable[[float], str]
    detail: bool = False

    def column(self, values: Sequence[float], after: Sequence[float] | None = None) -> Column:
        """A column of it."""
        return Column(
            self.heading,
            self.short,
            self.title,
            [Cell(self.show(value), value) for value in values],
            None if after is None else [Cell(self.show(value), value) for value in after],
        )


CLASS_MEASURES = (
    Measure("bias", "bias", "bias", "True bias, in percentage points", points),
    Measure("iou", "IoU", "IoU", "Intersection over union, in percent", score),
    Measure("accuracy", "accuracy", "acc.", "Share of the class's pixels predicted as it, in percent", score),
)
"""Scores of each class against labels; keys of :class:`Scores`."""

OVERALL_MEASURES = (
    Measure("mean_iou", "mean IoU", "mIoU", "Mean intersection over union, in percent", score),
    Measure("mean_accuracy", "mean accuracy", "mean acc.", "Mean accuracy of the classes, in percent", score),
    Measure(
        "pixel_accuracy",
        "pixel accuracy",
        "aAcc",
        "Share of the labelled pixels that are right, in percent",
        score,
    ),
    Measure(
        "frequency_weighted_iou",
        "frequency-weighted IoU",
        "fwIoU",
        "Mean of the IoU, each class weighted by its share of the labelled pixels, in percent",
        score,
    ),
    Measure("iou_spread", "std of IoU", "std IoU", "Standard deviation of the classes' IoU", score, detail=True),
    Measure(
        "accuracy_spread",
        "std of accuracy",
        "std acc.",
        "Standard deviation of the classes' accuracy",
        score,
        detail=True,
    ),
    Measure("total_bias", "Σ |Bias|", "Σ |Bias|", "Sum of the absolute true biases, in points", score),
)
"""Scores of all classes together against labels; keys of :class:`Scores`."""

_SCORES = (
    "Scores (percent, pooled over pixels; a class without a labelled pixel counts in no mean, pixels predicted as it "
    "count as wrong)"
)

_SHARE = Measure("share", "share", "share", "Share of all pixels predicted as the class, in percent", score)
_FREQUENCY = Measure(
    "frequency",
    "×",
    "×",
    "How often it is predicted over how often it should be, by pixels, as estimated without labels",
    times,
)
_CHANGED = Measure("changed", "changed", "changed", "Share of the pixels changed", percent)


def class_table(report: Report) -> NumberTable:
    """One row per class: the estimate, then the numbers before and after the first correction, side by side."""
    stages = [report.before, *(run.after for run in report.runs[:1])]
    interval = "in small its 90 % interval: where it lies when the images are drawn anew, in nine cases of ten"
    shown = [estimate.shown for estimate in report.estimates]
    estimates = [
        Cell(points(e.bias), e.bias, f"{points(e.low)} to {points(e.high)}" if e.low == e.low else "") for e in shown
    ]
    scored = report.before.scores is not None and not report.many_classes  # there is little room
    frequency = _FREQUENCY.column([estimate.frequency for estimate in shown])
    told = [e.opposed and e.verdict in (Verdict.OVER, Verdict.UNDER) for e in shown]
    cells = [
        replace(cell, text=f"{OPPOSED} {cell.text}") if one else cell
        for cell, one in zip(frequency.cells, told, strict=True)
    ]
    columns = [
        Column("estimate", "est.", f"Estimated bias, in percentage points, made without labels; {interval}", estimates),
        *([] if scored else [replace(frequency, cells=cells)]),
        *(measure.column(*(_of(stage, measure.key) for stage in stages)) for measure in _known(report)),
    ]
    caption = f"→ after {report.runs[0].name}: {report.runs[0].method}" if report.runs else ""
    return NumberTable(caption, "class", report.classes.names, columns)


def overall_table(report: Report) -> NumberTable:
    """One row per folder, the network's own predictions first, before them as it came; columns as far as there are
    labels."""
    first = report.first_scores
    names = [*first, _before(report), *(_after(run) for run in report.runs)]
    columns = _scores([*first.values(), report.before.scores, *(run.after.scores for run in report.runs)])
    changed = Column(
        _CHANGED.heading,
        _CHANGED.short,
        _CHANGED.title,
        [*[Cell("–", math.nan)] * (1 + len(first)), *(Cell(percent(run.changed), run.changed) for run in report.runs)],
    )
    caption = _SCORES if columns else "What changed"
    return NumberTable(caption, "predictions", names, [*columns, changed])


def steps_table(report: Report) -> NumberTable | None:
    """One row a class: shares of the predictions as the network came, with its norms mixed, aligned; None without."""
    if not report.steps:
        return None
    columns = [
        replace(_SHARE.column(share), heading=name, short=name, title=f"{_SHARE.title}: {name}")
        for name, share in report.steps.items()
    ]
    caption = "Predicted shares from step to step (percent)"
    if report.norms_changed is not None:
        caption += f"; the norms change the class of {percent(report.norms_changed)} of the pixels"
    return NumberTable(caption, "class", report.classes.names, columns)


def candidate_table(report: Report) -> NumberTable | None:
    """One row per method tried on the sampled pixels; None where none was."""
    tried = report.candidates
    if not tried:
        return None
    names = report.classes.names
    moved = [[new - old for old, new in zip(tried[0].share, one.share, strict=True)] for one in tried]

    def extreme(differences: Sequence[float], sign: int) -> Cell:
        index = max(range(len(differences)), key=lambda place: sign * differences[place])
        value = differences[index]
        return Cell(f"{names[index]} {points(value)}" if sign * value > 0 else "–", value)

    gains, losses = ([extreme(row, sign) for row in moved] for sign in (1, -1))
    columns = [
        *_scores([one.scores for one in tried]),
        _CHANGED.column([one.changed for one in tried]),
        Column("gains most", "gains", "Class whose share grows most, in points", gains),
        Column("loses most", "loses", "Class whose share shrinks most, in points", losses),
    ]
    return NumberTable("Methods on sampled pixels (percent)", "method", [one.method for one in tried], columns)


def reference_table(report: Report) -> NumberTable | None:
    """One row a class: the reference, then these images; None where there is no reference."""
    found = report.reference
    if found is None:
        return None
    measures = (
        _SHARE,
        Measure("confidence", "confidence", "conf.", "Mean probability of the pixels predicted as the class", score),
        Measure("level", "level", "level", "Level that the channel rests at where the class is not, in logits", signed),
    )
    columns = []
    for one in measures:
        usual, target = getattr(found.usual, one.key), getattr(found.target, one.key)
        columns.append(replace(one.column(usual, target), stage_names=("reference", "these images")))
    caption = f"Reference ({found.images:,} images) → these images (shares and confidence in percent)"
    return NumberTable(caption, "class", report.classes.names, columns)


def run_tables(report: Report) -> list[NumberTable]:
    """Per class, every folder side by side: a table for each measure; none of a single folder."""
    if len(report.runs) < 2:
        return []
    stages = {_before(report): report.before, **{run.name: run.after for run in report.runs}}
    return [
        NumberTable(
            measure.title,
            "class",
            report.classes.names,
            [
                replace(measure.column(_of(stage, measure.key)), heading=name, title=f"{measure.title}: {name}")
                for name, stage in stages.items()
            ],
        )
        for measure in _known(report)
    ]


def _after(run: Run) -> str:
    """Corrected predictions by name, and what their changes are counted from where that is not the first argmax."""
    return f"{run.name}: {run.method}{', changed from its own argmax' if run.own_before else ''}"


def _before(report: Report) -> str:
    """The predictions before a correction by name."""
    return "argmax with norms" if report.norms_adapted else "argmax"


def _known(report: Report) -> list[Measure]:
    """All columns known about each class."""
    return [_SHARE, *(CLASS_MEASURES if report.before.scores is not None else ())]


def _of(predictions: Predictions, key: str) -> list[float]:
    values: list[float] = predictions.share if key == _SHARE.key else getattr(predictions.scores, key)
    return values


def _scores(scores: Sequence[Scores | None]) -> list[Column]:
    known = [one for one in scores if one is not None]
    return [measure.column([getattr(one, measure.key) for one in known]) for measure in OVERALL_MEASURES if known]
