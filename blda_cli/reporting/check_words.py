"""The findings of ``blda check`` as sentences, terminal lines and JSON."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blda_cli.reporting.check_model import Check
from blda_cli.reporting.model import MANY_CLASSES
from blda_cli.reporting.terminal import SHOWN_CLASSES, Field, print_table
from blda_cli.segmenters.descriptions import LATE, Comparison, Tried
from blda_cli.text import printable


def loaded_lines(check: Check) -> list[tuple[str, str]]:
    """The loaded model and its input, as pairs of heading and text."""
    lines: list[tuple[str, str]] = []
    seen = check.inspection
    if seen is None:
        return [("model", f"{check.kind}: ready-made logits of {len(check.classes)} classes")]
    size = f", {seen.parameters:,} parameters" if seen.parameters else ""
    lines.append(("network", f"{seen.network} ({check.kind}){size}"))
    if len(seen.outputs) > 1 or not seen.outputs[0].used:
        returned = "; ".join(
            f"{output.name or 'tensor'} {list(output.shape)}{' (used)' if output.used else ''}"
            for output in seen.outputs
        )
        lines.append(("returns", returned))
    kept = f"{seen.channels} channels"
    if seen.channels > check.outputs:
        kept += f", of which the first {check.outputs} are kept"
    grouped = f", grouped into {len(check.classes)} classes" if check.grouped else f" for {len(check.classes)} classes"
    resolution = "" if seen.size_out is None else f" at {seen.size_out[0]}x{seen.size_out[1]}"
    lines.append(("output", f"{kept}{grouped}{resolution}"))
    lines.append(("batch norms", str(seen.batch_norms) if seen.batch_norms else "none that can be reached"))
    if seen.feature_layer is not None:
        lines.append(("classifier", f"{seen.feature_layer}, on {seen.features} features"))
    lines.append(("size", f"image {check.size[0]}x{check.size[1]}, fed at {seen.size_in[0]}x{seen.size_in[1]}"))
    for index, (low, high, mean, spread) in enumerate(seen.fed):
        lines.append(
            (f"channel {index + 1}", f"{low:.3g} to {high:.3g}, mean {mean:.3g}, standard deviation {spread:.3g}")
        )
    return lines


def described(comparison: Comparison) -> list[str]:
    """The result of the comparison of descriptions, in sentences."""
    best = comparison.best
    if comparison.norms == 0:
        return [
            "Whether the description is right cannot be told from this network: it has no batch norms that can be "
            "reached. If they were folded into the convolutions (as exports do), check the network from before that. "
            "The agreement of predictions on changed copies is shown, but alone it decides nothing: look at the "
            "overlays."
        ]
    sentences = []
    if comparison.late > LATE:
        sentences.append(
            f"Weak evidence: the batch norms come after {comparison.late:.0%} of the parameters, as in a decoder, and "
            "see little of the input."
        )
    name = best.description.name
    if comparison.told:
        rival = comparison.rival
        by = (
            ""
            if rival is None
            else f"; the next, {rival.description.name}, is {_times(comparison, rival)} times farther"
        )
        sentences.append(f"Normalisation: {name} fits best, and clearly{by}.")
    elif comparison.tied:
        others = ", ".join(dict.fromkeys(one.name for one in comparison.tied))
        sentences.append(
            f"Normalisation: {name} fits best, but {others} fits as well: the images do not tell them apart."
        )
    else:
        rival = comparison.rival
        assert rival is not None
        sentences.append(
            f"Normalisation: {name} fits best, probably; {rival.description.name} is {_times(comparison, rival)} times "
            "farther."
        )
    order = best.description.section.color.upper()
    if comparison.colour_told:
        sentences.append(
            f"Colour order: {order}; swapped, the misfit (norm distance times disagreement) is {comparison.colour:.1f} "
            "times as large."
        )
    else:
        sentences.append(f"Colour order: unknown; {order} fits hardly better than swapped.")
    if comparison.chosen is comparison.own:
        sentences.append("The model's description fits.")
    return sentences


def _times(comparison: Comparison, one: Tried) -> str:
    return f"{one.fit.farther(comparison.best.fit):.1f}"


def table(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """Rows of the descriptions: name, norm distance, agreement, remark."""
    rows = []
    for one in comparison.tried:
        distance = "" if one.fit.distance is None else f"{one.fit.distance:.4f}"
        agreement = "" if one.fit.agreement is None else f"{one.fit.agreement:.0%}"
        marks = []
        if one is comparison.best:
            marks.append("best")
        if one is comparison.own:
            marks.append("the model's")
        if one.screened:
            marks.append("ruled out on cut-outs")
        rows.append((str(one.description), distance, agreement, ", ".join(marks)))
    return rows


def as_json(check: Check) -> dict[str, Any]:
    """The findings for programs."""
    seen, comparison, labels = check.inspection, check.comparison, check.labels
    names = check.classes.names
    return {
        "format_version": 1,
        "model": {
            "kind": check.kind,
            "classes": list(names),
            "channels_kept": check.outputs,
            **(
                {}
                if seen is None
                else {
                    "network": seen.network,
                    "parameters": seen.parameters,
                    "outputs": [{"name": one.name, "shape": list(one.shape), "used": one.used} for one in seen.outputs],
                    "channels": seen.channels,
                    "batch_norms": seen.batch_norms,
                    "feature_layer": seen.feature_layer,
                    "features": seen.features,
                }
            ),
        },
        "input": None
        if seen is None
        else {
            "image_size": list(check.size),
            "fed_size": list(seen.size_in),
            "output_size": None if seen.size_out is None else list(seen.size_out),
            "channels": [
                {"low": low, "high": high, "mean": mean, "deviation": spread} for low, high, mean, spread in seen.fed
            ],
        },
        "descriptions": None
        if comparison is None
        else {
            "batch_norms": comparison.norms,
            "parameters_before_norms": comparison.late,
            "normalisation_told": comparison.told,
            "tied": [str(one) for one in comparison.tied],
            "colour_order_told": comparison.colour_told,
            "best": str(comparison.best.description),
            "given": str(comparison.given),
            "tried": [
                {
                    "name": one.description.name,
                    "color": one.description.section.color,
                    "mean": one.description.section.mean,
                    "std": one.description.section.std,
                    "scale": one.description.section.scale,
                    "norm_distance": one.fit.distance,
                    "agreement": one.fit.agreement,
                    "ruled_out": one.screened,
                }
                for one in comparison.tried
            ],
        },
        "images": check.images,
        "predicted_share": dict(zip(names, check.shares.tolist(), strict=True)),
        "labels": None
        if labels is None
        else {
            "encoding": labels.encoding,
            "ignored_share": labels.ignored,
            "unmatched": list(labels.unmatched),
            "mean_iou": labels.confusion.mean_iou(),
            "mean_accuracy": labels.confusion.mean_accuracy(),
            "confusion": labels.confusion.counts.tolist(),
            "moved": [
                {"label": names[one.label], "predicted_as": names[one.channel], "own_iou": one.own_iou, "iou": one.iou}
                for one in labels.moved
            ],
        },
        "remarks": [{"finding": one.finding, "grave": one.grave, "text": one.text} for one in check.remarks],
    }


def label_lines(check: Check) -> list[str]:
    """How predictions and labels agree."""
    labels = check.labels
    if labels is None:
        return []
    iou, accuracy = labels.confusion.mean_iou(), labels.confusion.mean_accuracy()
    return [
        f"labels: {labels.encoding}; {labels.ignored:.1%} of the pixels have no class; "
        f"mIoU {iou:.1%}, mean accuracy {accuracy:.1%} on these {check.images} images"
    ]


def print_check(check: Check, console: Console, *, all_classes: bool = False) -> None:
    """Print the findings on a terminal: remarks, the gravest first, then the measurements.

    Args:
        check: the findings.
        console: where to.
        all_classes: show all, where they are many too.
    """
    for remark in check.remarks:
        style = "bold red" if remark.grave else "yellow"
        console.print(Text(f"{'Wrong' if remark.grave else 'Look'}: {remark.text}", style=style), end="\n\n")
    if not check.remarks:
        console.print(Text("Nothing speaks against the description.", style="green"), end="\n\n")
    loaded = Table(box=None, show_header=False)
    for heading, text in loaded_lines(check):
        loaded.add_row(heading, printable(text))
    console.print(loaded)
    console.print()
    if check.comparison is not None:
        rows = table(check.comparison)
        names = [f"{description} ({marks})" if marks else description for description, _, _, marks in rows]
        fields = [Field("norm distance", [row[1] for row in rows]), Field("agreement", [row[2] for row in rows])]
        print_table(console, "Descriptions of the input, the best first", "description", names, fields)
        for sentence in described(check.comparison):
            console.print(Text(sentence))
        console.print()
    order = np.argsort(-check.shares, kind="stable").tolist()
    if len(order) > MANY_CLASSES and not all_classes:
        order = order[: 2 * SHOWN_CLASSES]
    shares = [f"{share:.2%}" if share else "never" for share in check.shares.tolist()]
    title = f"Share of the pixels of {check.images} images predicted as each class"
    print_table(console, title, "class", check.classes.names, [Field("share", shares)], [order])
    for line in label_lines(check):
        console.print(Text(line))
