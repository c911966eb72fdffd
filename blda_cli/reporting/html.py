"""``report.html``: one self-contained page, rendered from the report by a Jinja2 template."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from blda_cli import __version__
from blda_cli.errors import require_extra
from blda_cli.reporting.densities import Curve, Densities
from blda_cli.reporting.gallery import Frame
from blda_cli.reporting.matrices import Matrix, confusion_matrix, shift_matrix
from blda_cli.reporting.model import Candidate, Predictions, Report, Scores, Verdict
from blda_cli.reporting.svg import anchor_symbols, bias_strip, density_chart
from blda_cli.reporting.words import next_steps, percent, points, score, signed, summary

_CHARTS_OPEN = 12

MARKS = {Verdict.OVER: "▲", Verdict.UNDER: "▼", Verdict.UNCLEAR: "●", Verdict.UNKNOWN: "–"}
_CSS = {Verdict.OVER: "over", Verdict.UNDER: "under", Verdict.UNCLEAR: "unclear", Verdict.UNKNOWN: "unknown"}


@dataclass(frozen=True)
class Cell:
    """A field of a table: what it says, what it is sorted by (NaN last), and what it says in small below."""

    text: str
    value: float
    small: str = ""


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        heading: its short name.
        title: what it is, in full.
        cells: from the first row to the last.
    """

    heading: str
    title: str
    cells: list[Cell]


@dataclass(frozen=True)
class Tile:
    """A number on top: before and, where there is one, after."""

    label: str
    before: str
    after: str | None = None


@dataclass(frozen=True)
class Chart:
    """A class's distributions."""

    name: str
    color: str
    mark: str
    css: str
    note: str
    svg: str


def to_html(report: Report, shown: Densities, gallery: Sequence[Frame]) -> str:
    """Render the page.

    Args:
        report: the numbers.
        shown: the distributions.
        gallery: the frames that changed most.

    Returns:
        The page; it loads nothing from anywhere.

    Raises:
        BldaError: Jinja2 is not installed.
    """
    jinja2 = require_extra("jinja2", "report", "to write report.html")
    folder = resources.files("blda_cli.reporting").joinpath("templates")

    def text(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(text), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    safe: Callable[[str], str] = jinja2.utils.markupsafe.Markup
    names = report.classes.names
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in report.classes.palette]
    charts = _charts(report, shown, colors)
    page: str = environment.get_template("report.html.j2").render(
        report=report,
        style=safe(text("style.css")),
        script=safe(text("script.js")),
        version=__version__,
        names=names,
        colors=colors,
        sentences=summary(report),
        steps=next_steps(report),
        tiles=_tiles(report),
        verdicts=[(MARKS[e.verdict], str(e.verdict), _CSS[e.verdict]) for e in report.estimates],
        strips=[safe(strip) for strip in _strips(report)],
        reach=points(_reach(report)).lstrip("+"),
        columns=_columns(report),
        overall=_overall(report),
        candidates=_candidates(report.candidates, names),
        per_run=_per_run(report),
        symbols=safe(anchor_symbols(shown)),
        charts=charts[:_CHARTS_OPEN],
        more_charts=charts[_CHARTS_OPEN:],
        safe=safe,
        has_after=shown.after is not None,
        shifts=shift_matrix(report.mean_shifts, names),
        confusions=_confusions(report),
        gallery=gallery,
        legend=sorted({index for frame in gallery for index in frame.classes}),
        percent=percent,
        made=report.made,
        pretty=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )
    return page


def _strips(report: Report) -> list[str]:
    stages = [report.before, *(run.after for run in report.runs[:1])]
    reach = _reach(report)
    return [
        bias_strip(estimate, [stage.scores.bias[index] for stage in stages if stage.scores], reach)
        for index, estimate in enumerate(report.estimates)
    ]


def _reach(report: Report) -> float:
    """Half the axis of the strips: what holds every estimate, interval and true bias."""
    stages = [report.before, *(run.after for run in report.runs[:1])]
    values = [end for estimate in report.estimates for end in (estimate.bias, estimate.low, estimate.high)]
    values += [bias for stage in stages if stage.scores for bias in stage.scores.bias]
    return max((abs(value) for value in values if not math.isnan(value)), default=0.01) or 0.01


def _columns(report: Report) -> list[Column]:
    after = report.runs[0].after if report.runs else None
    columns = [
        Column(
            "estimate",
            "Estimated bias, in percentage points, made without labels; in small its 90 % interval: where it lies when "
            "the images are drawn anew, in nine cases of ten",
            [
                Cell(points(e.bias), e.bias, f"{points(e.low)} to {points(e.high)}" if e.low == e.low else "")
                for e in report.estimates
            ],
        ),
        *_stages("share", "Share of all pixels predicted as the class", percent, report.before, after, _share),
    ]
    if report.before.scores is not None:
        columns += [
            *_stages("bias", "True bias, in percentage points", points, report.before, after, _measure("bias")),
            *_stages("IoU", "Intersection over union, in percent", score, report.before, after, _measure("iou")),
            *_stages(
                "accuracy",
                "Share of the class's pixels predicted as it, in percent",
                score,
                report.before,
                after,
                _measure("accuracy"),
            ),
        ]
    return columns


def _stages(
    heading: str,
    title: str,
    show: Callable[[float], str],
    before: Predictions,
    after: Predictions | None,
    of: Callable[[Predictions], list[float]],
) -> list[Column]:
    columns = [_column(heading, f"{title}, before" if after else title, show, of(before))]
    if after is not None:
        columns.append(_column(f"→ {heading}", f"{title}, after", show, of(after)))
    return columns


def _share(predictions: Predictions) -> list[float]:
    return predictions.share


def _measure(name: str) -> Callable[[Predictions], list[float]]:
    def of(predictions: Predictions) -> list[float]:
        values: list[float] = getattr(predictions.scores, name)
        return values

    return of


def _column(heading: str, title: str, show: Callable[[float], str], values: Sequence[float]) -> Column:
    return Column(heading, title, [Cell(show(value), value) for value in values])


def _tiles(report: Report) -> list[Tile]:
    run = report.runs[0] if report.runs else None
    one, other = report.before.scores, run.after.scores if run else None
    which = f", {run.name}" if run is not None and len(report.runs) > 1 else ""
    tiles = []
    if one is not None:
        for label, name in (
            ("mean IoU", "mean_iou"),
            ("mean accuracy", "mean_accuracy"),
            ("Σ |Bias|", "total_bias"),
            ("spread of IoU", "iou_spread"),
        ):
            after = None if other is None else score(getattr(other, name))
            tiles.append(Tile(label + which, score(getattr(one, name)), after))
    else:
        for label, verdict in (("over-predicted", Verdict.OVER), ("under-predicted", Verdict.UNDER)):
            tiles.append(Tile(f"classes {label}", str(len(report.named(verdict)))))
        tiles.append(Tile("direction unclear", str(len(report.named(Verdict.UNCLEAR)))))
    if run is not None:
        tiles.append(Tile(f"pixels changed{which}", percent(run.changed)))
    return tiles


def _overall(report: Report) -> tuple[list[str], list[Column]]:
    """One row per folder, the network's own predictions first; columns as far as there are labels."""
    stages = [report.before, *(run.after for run in report.runs)]
    names = ["argmax", *(f"{run.name}: {run.method}" for run in report.runs)]
    changed = [math.nan, *(run.changed for run in report.runs)]
    columns = _score_columns([stage.scores for stage in stages if stage.scores])
    return names, [
        *columns,
        Column("changed", "Share of pixels changed", [Cell("–" if v != v else percent(v), v) for v in changed]),
    ]


def _score_columns(scores: Sequence[Scores]) -> list[Column]:
    if not scores:
        return []
    return [
        _column(heading, title, score, [getattr(entry, name) for entry in scores])
        for heading, title, name in (
            ("mIoU", "Mean intersection over union, in percent", "mean_iou"),
            ("mean accuracy", "Mean accuracy of the classes, in percent", "mean_accuracy"),
            ("spread of IoU", "Standard deviation of the IoU over the classes, in points", "iou_spread"),
            ("spread of accuracy", "Standard deviation of the accuracy over the classes", "accuracy_spread"),
            ("Σ |Bias|", "Sum of the absolute true biases, in points", "total_bias"),
        )
    ]


def _candidates(candidates: Sequence[Candidate], names: Sequence[str]) -> tuple[list[str], list[Column]]:
    if not candidates:
        return [], []
    base = candidates[0].share
    moved = [[new - old for old, new in zip(base, tried.share, strict=True)] for tried in candidates]

    def extreme(differences: Sequence[float], sign: int) -> Cell:
        index = max(range(len(differences)), key=lambda place: sign * differences[place])
        value = differences[index]
        return Cell(f"{names[index]} {points(value)}" if sign * value > 0 else "–", value)

    columns = _score_columns([tried.scores for tried in candidates if tried.scores])
    columns.append(_column("changed", "Share of the pixels changed", percent, [tried.changed for tried in candidates]))
    columns.append(Column("gains most", "Class whose share grows most, in points", [extreme(row, 1) for row in moved]))
    columns.append(
        Column("loses most", "Class whose share shrinks most, in points", [extreme(row, -1) for row in moved])
    )
    return [tried.method for tried in candidates], columns


def _per_run(report: Report) -> list[tuple[str, list[Column]]]:
    """Per class, every folder side by side; one table per measure."""
    if len(report.runs) < 2:
        return []
    stages = [("argmax", report.before), *((run.name, run.after) for run in report.runs)]
    measures: list[tuple[str, Callable[[float], str], Callable[[Predictions], list[float]]]] = []
    if report.before.scores is not None:
        measures += [("IoU, in percent", score, _measure("iou")), ("True bias, in points", points, _measure("bias"))]
    measures.append(("Share of the pixels", percent, _share))
    return [
        (title, [_column(name, f"{title}: {name}", show, of(stage)) for name, stage in stages])
        for title, show, of in measures
    ]


def _charts(report: Report, shown: Densities, colors: Sequence[str]) -> list[Chart]:
    """The classes with the largest estimated bias first, those without an estimate last."""
    order = sorted(
        range(len(colors)),
        key=lambda index: (
            -abs(report.estimates[index].bias) if report.estimates[index].bias == report.estimates[index].bias else 1
        ),
    )
    charts = []
    for index in order:
        name, verdict = report.classes.names[index], report.estimates[index].verdict
        note = _distances(shown, index)
        charts.append(
            Chart(
                name=name,
                color=colors[index],
                mark=MARKS[verdict],
                css=_CSS[verdict],
                note=note,
                svg=density_chart(shown, index, escape(f"Logits of {name}: {note}", quote=True)),
            )
        )
    return charts


def _distances(shown: Densities, index: int) -> str:
    """How far a class's means lie from the anchors', in words."""

    def distance(curve: Curve | None, anchor: Curve | None) -> str:
        return "n/a" if curve is None or anchor is None else signed(curve.mean - anchor.mean)

    stages = [shown.before[index], *([shown.after[index]] if shown.after else [])]
    positive = " → ".join(distance(pair.positive, shown.anchors.positive) for pair in stages)
    negative = " → ".join(distance(pair.negative, shown.anchors.negative) for pair in stages)
    return f"positive {positive}, negative {negative}"


def _confusions(report: Report) -> list[Matrix]:
    stages: list[tuple[str, Predictions]] = [("Before", report.before)]
    stages += [(f"After {run.name}" if len(report.runs) > 1 else "After", run.after) for run in report.runs]
    return [
        confusion_matrix(title, stage.scores.confusion, report.classes.names) for title, stage in stages if stage.scores
    ]
