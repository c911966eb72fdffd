"""The plot of a run's metrics: losses, and the IoU of every class as validated."""

from collections.abc import Iterable
from typing import Any

from blda_cli.data.classes import ClassSet
from blda_cli.reporting.svg import Line, line_charts

_LOSS_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")


def learning_curves(entries: Iterable[dict[str, Any]], classes: ClassSet) -> str:
    """Draw the entries of ``metrics.jsonl``.

    Returns:
        An SVG file.
    """
    losses: dict[str, list[tuple[float, float]]] = {}
    scores: dict[str, list[tuple[float, float]]] = {}
    agreement: list[tuple[float, float]] = []
    for entry in entries:
        step = entry["iteration"]
        for name, value in entry.get("losses", {}).items():
            losses.setdefault(name, []).append((step, value))
        if validation := entry.get("validation"):
            classwise = {f"class {name}": value for name, value in validation["iou"].items()}
            for name, value in {"mean": validation["mean_iou"], **classwise}.items():
                if value is not None:
                    scores.setdefault(name, []).append((step, 100 * value))
        if looked := entry.get("unlabelled"):
            agreement.append((step, 100 * looked["agreement"]))
    colors = {f"class {name}": f"rgb{color}" for name, color in zip(classes.names, classes.palette, strict=True)}
    charts = {
        "losses": [
            Line(name, _LOSS_COLORS[number % len(_LOSS_COLORS)], points)
            for number, (name, points) in enumerate(losses.items())
        ],
        "IoU of the validation images, %": [
            Line(name.removeprefix("class "), colors.get(name, "#000"), points, bold=name == "mean")
            for name, points in scores.items()
        ],
        "pixels that keep their class in a smaller copy, %": [Line("agreement", "#000", agreement)]
        if agreement
        else [],
    }
    return line_charts({title: lines for title, lines in charts.items() if lines})
