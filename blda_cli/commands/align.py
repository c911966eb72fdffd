"""``blda align``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blda_cli.commands.options import request_command
from blda_cli.pipelines.requests import AlignRequest
from blda_cli.text import printable

if TYPE_CHECKING:
    from blda_cli.store.predictions import RunRecord


@request_command(AlignRequest, "blda_cli.pipelines.align:align", "align", "DIR", "Where to write the predictions.")
def command(record: "RunRecord", output: Path, as_json: bool) -> None:
    """Correct a segmenter's predictions.

    Writes predictions/ (after) and argmax/ (before) as PNG class ids in the images' tree, and run.json. An
    interrupted run is continued by the same command.
    """
    from blda_cli.commands.console import emit_json

    if as_json:
        emit_json(_summary(record, output))
    else:
        _show(record, output)


def _summary(record: "RunRecord", output: Path) -> dict[str, Any]:
    total = sum(record.pixels_before)
    return {
        "output": str(output),
        "images": len(record.changed),
        "changed": record.pixels_changed / total if total else None,
        "skipped": len(record.skipped),
        "skipped_images": record.skipped,
        "classes": {
            name: {"share_before": before / total, "share_after": after / total} if total else {}
            for name, before, after in zip(record.classes, record.pixels_before, record.pixels_after, strict=True)
        },
    }


def _show(record: "RunRecord", output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    summary = _summary(record, output)
    if not summary["images"]:  # of a shard that got none
        click.echo(f"{output}: 0 images")
        return
    table = Table()
    table.add_column("class")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for name, shares in summary["classes"].items():
        before, after = shares["share_before"], shares["share_after"]
        change = f"×{after / before:.2f}" if before > 0 else ("new" if after > 0 else "n/a")
        table.add_row(printable(name), f"{before:.2%}", f"{after:.2%}", change)
    console = Console(markup=False, emoji=False)
    console.print("Share of the pixels predicted as each class")
    console.print(table)
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    console.print(
        f"{printable(str(output))}: {summary['images']} images{skipped}, {summary['changed']:.1%} of the pixels "
        f"changed; {record.alignment.describe()}",
        highlight=False,
        soft_wrap=True,
    )
