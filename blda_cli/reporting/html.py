"""``report.html``: one self-contained page, rendered from the report by a Jinja2 template."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from blda_cli.reporting.densities import Curve, Densities
from blda_cli.reporting.gallery import Frame
from blda_cli.reporting.matrices import Matrix, confusion_matrix, shift_matrix
from blda_cli.reporting.model import Predictions, Report, Verdict
from blda_cli.reporting.page import rendered
from blda_cli.reporting.svg import anchor_symbols, bias_strip, density_chart
from blda_cli.reporting.tables import (
    MARKS,
    OPPOSED,
    OVERALL_MEASURES,
    candidate_table,
    class_table,
    overall_table,
    reference_table,
    run_tables,
    steps_table,
)
from blda_cli.reporting.words import next_steps, percent, points, score, signed, subject, summary

_CHARTS_OPEN = 12
_FEW_CLASSES = 12
"""Classes up to which a table is taken in without a filter."""
_PICTURES_FIRST = 2
"""Rows of pictures above the text."""
_COLORS_NAMED = 24
"""Classes that a legend shows at once."""

_CSS = {
    Verdict.OVER: "over",
    Verdict.UNDER: "under",
    Verdict.UNCLEAR: "unclear",
    Verdict.NEVER: "unknown",
    Verdict.UNKNOWN: "unknown",
}


@dataclass(frozen=True)
class Tile:
    """A number on top: before and, where there is one, after."""

    label: str
    before: str
    after: str | None = None


@dataclass(frozen=True)
class Chart:
    """A class's distributions."""

    index: int
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
    """
    names = report.classes.names
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in report.classes.palette]
    charts = _charts(report, shown)
    return rendered(
        "report.html.j2",
        report=report,
        names=names,
        colors=colors,
        subject=subject(report),
        sentences=summary(report),
        steps=next_steps(report),
        tiles=_tiles(report),
        verdicts=[(MARKS[e.verdict], str(e.verdict), _CSS[e.verdict]) for e in report.estimates],
        strips=[Markup(strip) for strip in _strips(report)],
        reach=points(_reach(report)).lstrip("+"),
        classes=class_table(report),
        overall=overall_table(report),
        shares_by_step=steps_table(report),
        candidates=candidate_table(report),
        reference=reference_table(report),
        per_run=run_tables(report),
        symbols=Markup(anchor_symbols(shown)),
        charts=charts[:_CHARTS_OPEN],
        more_charts=charts[_CHARTS_OPEN:],
        safe=Markup,
        has_after=shown.after is not None,
        shifts=shift_matrix(report.mean_shifts, names),
        confusions=_confusions(report),
        gallery=gallery,
        legend=_legend,
        first=max(1, _PICTURES_FIRST // max(1, len(report.runs))),
        verdict_counts={verdict: len(report.named(verdict)) for verdict in Verdict},
        filtered=len(names) > _FEW_CLASSES,
        marks=MARKS,
        opposed=OPPOSED,
        percent=percent,
        score=score,
        made=report.made,
        pretty=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )


def _legend(frames: Sequence[Frame]) -> tuple[list[int], list[int]]:
    """The classes in some frames in their order: those with the most pixels, and the others."""
    pixels: Counter[int] = Counter()
    for frame in frames:
        pixels.update(frame.classes)
    ids = [index for index, _ in pixels.most_common()]
    return sorted(ids[:_COLORS_NAMED]), sorted(ids[_COLORS_NAMED:])


def _strips(report: Report) -> list[str]:
    stages = [report.before, *(run.after for run in report.runs[:1])]
    reach = _reach(report)
    return [
        bias_strip(estimate.shown, [stage.scores.bias[index] for stage in stages if stage.scores], reach)
        for index, estimate in enumerate(report.estimates)
    ]


def _reach(report: Report) -> float:
    """Half the axis of the strips, so that it holds every estimate, interval and true bias."""
    stages = [report.before, *(run.after for run in report.runs[:1])]
    shown = [estimate.shown for estimate in report.estimates]
    values = [end for estimate in shown for end in (estimate.bias, estimate.low, estimate.high)]
    values += [bias for stage in stages if stage.scores for bias in stage.scores.bias]
    return max((abs(value) for value in values if not math.isnan(value)), default=0.01) or 0.01


def _tiles(report: Report) -> list[Tile]:
    run = report.runs[0] if report.runs else None
    one, other = report.before.scores, run.after.scores if run else None
    which = f", {run.name}" if run is not None and len(report.runs) > 1 else ""
    tiles = []
    if one is not None:
        for measure in (one for one in OVERALL_MEASURES if not one.detail):
            after = None if other is None else score(getattr(other, measure.key))
            tiles.append(Tile(measure.heading + which, score(getattr(one, measure.key)), after))
    else:
        for label, verdict in (("over-predicted", Verdict.OVER), ("under-predicted", Verdict.UNDER)):
            tiles.append(Tile(f"classes {label}", str(len(report.named(verdict)))))
        tiles.append(Tile("direction unclear", str(len(report.named(Verdict.UNCLEAR)))))
        never = len(report.named(Verdict.NEVER))
        if never:
            tiles.append(Tile("never predicted", str(never)))
    if run is not None:
        norms = ", beyond norms" if report.norms_adapted else ""
        tiles.append(Tile(f"pixels changed{norms}{which}", percent(run.changed)))
    return tiles


def _charts(report: Report, shown: Densities) -> list[Chart]:
    """The classes with the largest estimated bias first, those without an estimate last."""
    charts = []
    for index in sorted(range(len(report.classes)), key=report.oddity, reverse=True):
        name, verdict = report.classes.names[index], report.estimates[index].verdict
        note = _distances(shown, index)
        charts.append(
            Chart(
                index=index,
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
    stages: list[tuple[str, Predictions]] = [("With norms" if report.norms_adapted else "Before", report.before)]
    stages += [(f"After {run.name}" if len(report.runs) > 1 else "After", run.after) for run in report.runs]
    return [
        confusion_matrix(title, stage.scores.confusion, report.classes.names) for title, stage in stages if stage.scores
    ]
