"""Small charts as inline SVG, coloured by the page's style sheet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from blda_cli.reporting.densities import BINS, Curve, Densities, Pair
from blda_cli.reporting.model import Estimate, Verdict

_STEP = 4
_PANEL = 54
_WIDTH = BINS * _STEP
_AXIS = 14

_CHART_WIDTH, _CHART_HEIGHT, _CHART_MARGIN, _LEGEND_LINE = 640, 220, 30, 13

_STRIP = 200
_LANE = 13


def bias_strip(estimate: Estimate, true: Sequence[float], reach: float) -> str:
    """A class's bias on an axis that all classes share: interval, estimate and, as diamonds, the true biases.

    Args:
        estimate: a triangle that points up (over) or down (under), a circle where that is unclear.
        true: before and after a correction, as far as there are labels: hollow, then filled.
        reach: half the axis.

    Returns:
        An ``svg`` element.
    """
    height = _LANE * (2 if true else 1)

    def x(value: float) -> float:
        return round(_STRIP / 2 * (1 + 0.94 * value / reach), 1)

    marks = [f'<path class="zero" d="M{_STRIP / 2:g} 0V{height}"/>']
    middle = _LANE / 2
    if estimate.low == estimate.low:
        marks.append(f'<path class="whisker" d="M{x(estimate.low)} {middle:g}H{x(estimate.high)}"/>')
    shapes = {Verdict.OVER: "m-5 4h10l-5-9z", Verdict.UNDER: "m-5-4h10l-5 9z"}
    if estimate.bias == estimate.bias:
        shape = shapes.get(estimate.verdict, "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z")
        marks.append(f'<path class="{_css(estimate.verdict)}" d="M{x(estimate.bias)} {middle:g}{shape}"/>')
    known = [value for value in true if value == value]
    if len(known) > 1:
        marks.append(f'<path class="moved" d="M{x(known[0])} {middle + _LANE:g}H{x(known[1])}"/>')
    for value, css in zip(known, ("true", "true after"), strict=False):
        marks.append(f'<path class="{css}" d="M{x(value)} {middle + _LANE:g}m-4 0l4-4.5 4 4.5-4 4.5z"/>')
    return (
        f'<svg class="strip" viewBox="0 0 {_STRIP} {height}" width="{_STRIP}" height="{height}" '
        f'aria-hidden="true">{"".join(marks)}</svg>'
    )


def anchor_symbols(shown: Densities) -> str:
    """The anchors' curves, once, for all charts of :func:`density_chart` to refer to."""
    paths = "".join(
        f'<path id="anchor-{name}" d="{_path(curve)}"/>'
        for name, curve in (("positive", shown.anchors.positive), ("negative", shown.anchors.negative))
        if curve is not None
    )
    return f'<svg class="symbols" width="0" height="0" aria-hidden="true"><defs>{paths}</defs></svg>'


def density_chart(shown: Densities, index: int, label: str) -> str:
    """A class's distributions against the anchors: a panel of the reference, one before and one after, where there are.

    Args:
        shown: all curves.
        index: the class.
        label: what the chart shows, for those who cannot see it.

    Returns:
        An ``svg`` element.
    """
    panels = [] if shown.reference is None else [("reference", shown.reference[index])]
    panels.append(("before" if shown.reference is None else "these images", shown.before[index]))
    if shown.after is not None:
        panels.append(("after", shown.after[index]))
    drawn = "".join(
        f'<g transform="translate(0 {row * (_PANEL + 4)})">{_panel(name, pair, shown.anchors)}</g>'
        for row, (name, pair) in enumerate(panels)
    )
    bottom = len(panels) * (_PANEL + 4) - 4
    return (
        f'<svg class="density" viewBox="0 0 {_WIDTH} {bottom + _AXIS}" role="img" aria-label="{label}">{drawn}'
        f"{_axis(shown, bottom)}</svg>"
    )


def _panel(name: str, pair: Pair, anchors: Pair) -> str:
    parts = [f'<path class="base" d="M0 {_PANEL}H{_WIDTH}"/><text y="9">{name}</text>']
    for kind, curve, anchor in (
        ("negative", pair.negative, anchors.negative),
        ("positive", pair.positive, anchors.positive),
    ):
        if curve is not None:
            parts.append(f'<path class="{kind}" d="{_path(curve)}"/>')
        if anchor is not None:
            parts.append(f'<use class="anchor {kind}" href="#anchor-{kind}"/>')
    return "".join(parts)


def _path(curve: Curve) -> str:
    """Integer coordinates, relative: a chart of 150 classes must stay small."""
    heights = [round(float(height) * (_PANEL - 12)) for height in curve.heights]
    steps = "".join(f"l{_STEP} {before - after}" for before, after in pairwise(heights))
    return f"M{_STEP // 2} {_PANEL - heights[0]}{steps}".replace(" -", "-")


def _axis(shown: Densities, top: int) -> str:
    parts = []
    for tick in _ticks(shown.low, shown.high):
        x = round((tick - shown.low) / (shown.high - shown.low) * _WIDTH)
        if 8 <= x <= _WIDTH - 8:
            parts.append(f'<path class="base" d="M{x} {top}v3"/><text x="{x}" y="{top + 12}">{tick:g}</text>')
    return f'<g class="axis">{"".join(parts)}</g>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, at most six."""
    span = high - low
    step = 10 ** math.floor(math.log10(span / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    return [tick * step for tick in range(math.ceil(low / step), math.floor(high / step) + 1)]


@dataclass(frozen=True)
class Line:
    """A curve of :func:`line_charts`.

    Attributes:
        name: stands in the legend.
        color: of CSS.
        points: at least one, x ascending.
        bold: it matters more than the others.
    """

    name: str
    color: str
    points: Sequence[tuple[float, float]]
    bold: bool = False


def line_charts(charts: Mapping[str, Sequence[Line]]) -> str:
    """Charts by title, one below the other, with the last values in the legends, as an SVG file of its own.

    All share the range of x. The y axis of each begins at zero or at its least value below.
    """
    right = max(x for lines in charts.values() for line in lines for x, _ in line.points)
    left = min(x for lines in charts.values() for line in lines for x, _ in line.points)
    drawn, top = [], 0
    for title, lines in charts.items():
        height = max(_CHART_HEIGHT, _LEGEND_LINE * len(lines))
        drawn.append(f'<g transform="translate(0 {top})">{_line_chart(title, lines, left, right, height)}</g>')
        top += height + 3 * _CHART_MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_CHART_WIDTH + 240} {top}" font-family="sans-serif" '
        f'font-size="10" fill="none"><rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>\n'
    )


def _line_chart(title: str, lines: Sequence[Line], left: float, right: float, height: int) -> str:
    values = [value for line in lines for _, value in line.points]
    low, high = min(0.0, *values), max(1e-9, *values)

    def across(x: float) -> float:
        return round((x - left) / max(right - left, 1) * _CHART_WIDTH + _CHART_MARGIN, 1)

    def down(y: float) -> float:
        return round((high - y) / (high - low) * height + _CHART_MARGIN, 1)

    parts = [f'<text x="{_CHART_MARGIN}" y="14" fill="#222" font-weight="bold">{escape(title)}</text>']
    for tick in _ticks(low, high):
        parts.append(f'<path stroke="#ddd" d="M{_CHART_MARGIN} {down(tick)}h{_CHART_WIDTH}"/>')
        parts.append(f'<text x="2" y="{down(tick)}" dy="3" fill="#666">{tick:g}</text>')
    bottom = height + _CHART_MARGIN + 12
    for tick in _ticks(left, right) if right > left else [left]:
        parts.append(f'<text x="{across(tick)}" y="{bottom}" text-anchor="middle" fill="#666">{tick:g}</text>')
    legend = _CHART_WIDTH + 2 * _CHART_MARGIN
    for row, line in enumerate(sorted(lines, key=lambda line: -line.points[-1][1])):
        points = [(across(x), down(y)) for x, y in line.points]
        width, weight = (2.5, "bold") if line.bold else (1.2, "normal")
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        y = _CHART_MARGIN + _LEGEND_LINE * row + 6
        parts += [
            f'<path stroke="{line.color}" stroke-width="{width}" d="M{path}"/>',
            f'<circle r="2" cx="{points[-1][0]:g}" cy="{points[-1][1]:g}" fill="{line.color}"/>',
            f'<path stroke="{line.color}" stroke-width="4" d="M{legend - 16} {y - 3}h12"/>',
            f'<text x="{legend}" y="{y}" fill="#222" font-weight="{weight}">{escape(line.name)} '
            f"{line.points[-1][1]:.3g}</text>",
        ]
    return "".join(parts)


def _css(verdict: Verdict) -> str:
    return {Verdict.OVER: "over", Verdict.UNDER: "under"}.get(verdict, "unclear")
