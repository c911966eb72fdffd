"""``blda align``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blda_cli.commands.options import all_option, request_command
from blda_cli.pipelines.requests import AlignRequest
from blda_cli.text import printable

if TYPE_CHECKING:
    from blda_cli.store.predictions import RunRecord


@request_command(
    AlignRequest, "blda_cli.pipelines.align:align", "align", "DIR", "Where to write the predictions.", all_option
)
def command(record: "RunRecord", output: Path, as_json: bool, all_classes: bool) -> None:
    """Correct a segmenter's predictions.

    Writes predictions/ (after) and argmax/ (before, with adapted norms) as PNG class ids in the images' tree, and
    run.json. An interrupted run is continued by the same command.
    """
    from blda_cli.commands.console import emit_json

    if as_json:
        emit_json(_summary(record, output))
    else:
        _show(record, output, all_classes=all_classes)


def _summary(record: "RunRecord", output: Path) -> dict[str, Any]:
    total = sum(record.pixels_before)
    settings = record.alignment
    return {
        "output": str(output),
        "images": len(record.changed),
        "method": settings.method,
        **({"shift": settings.shift} if settings.entry.forms else {}),
        "strength": settings.tau,
        "verdict": record.verdict,
        "evidence": record.evidence,
        "changed": record.pixels_changed / total if total else None,
        "skipped": len(record.skipped),
        "skipped_images": record.skipped,
        "classes": {
            name: {"share_before": before / total, "share_after": after / total} if total else {}
            for name, before, after in zip(record.classes, record.pixels_before, record.pixels_after, strict=True)
        },
    }


def _show(record: "RunRecord", output: Path, *, all_classes: bool) -> None:
    from rich.console import Console

    from blda_cli.reporting.model import MANY_CLASSES
    from blda_cli.reporting.terminal import SHOWN_CLASSES, Field, print_table

    summary = _summary(record, output)
    if not sum(record.pixels_before):  # of a shard that got no image, or of images without data
        click.echo(f"{printable(str(output))}: {summary['images']} images, no pixels")
        return
    shares = [(one["share_before"], one["share_after"]) for one in summary["classes"].values()]
    title, groups = "Share of the pixels predicted as each class", None
    if len(shares) > MANY_CLASSES:
        title += ", those that grew most first, then those that shrank most"
        growth = [after - before for before, after in shares]
        order = sorted(range(len(shares)), key=growth.__getitem__, reverse=True)
        grown, shrunk = [i for i in order if growth[i] > 0], [i for i in reversed(order) if growth[i] < 0]
        if all_classes:
            groups = [grown, shrunk, [index for index in order if growth[index] == 0]]
        else:
            groups = [grown[:SHOWN_CLASSES], shrunk[:SHOWN_CLASSES]]
    fields = [
        Field("with norms" if record.norms_adapted else "before", [f"{before:.2%}" for before, _ in shares]),
        Field("after", [f"{after:.2%}" for _, after in shares]),
        Field("change", [_change(before, after) for before, after in shares]),
    ]
    if groups is None or any(groups):  # of many classes some changed
        print_table(Console(markup=False, emoji=False), title, "class", record.classes, fields, groups)
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    verdict = f"; {record.verdict}" if record.verdict else ""
    click.echo(
        f"{printable(str(output))}: {summary['images']} images{skipped}, {summary['changed']:.1%} of the pixels "
        f"changed{', the norms not counted' if record.norms_adapted else ''}; {record.alignment.describe()}{verdict}"
    )


def _change(before: float, after: float) -> str:
    from blda_cli.reporting.model import LEAST_SHARE

    if before >= LEAST_SHARE:
        return f"×{after / before:.2f}"
    return "new" if after >= LEAST_SHARE else "n/a"
