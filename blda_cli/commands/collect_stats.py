"""``blda collect-stats``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blda_cli.commands.options import request_command
from blda_cli.pipelines.requests import CollectRequest

if TYPE_CHECKING:
    from blda_cli.store.statistics import StatisticsFile


@request_command(
    CollectRequest,
    "blda_cli.pipelines.collect:collect_stats",
    "collect-stats",
    "FILE.h5",
    "Where to write the statistics.",
)
def command(written: "Mapping[Path, StatisticsFile]", output: Path, as_json: bool) -> None:  # noqa: ARG001
    """Count a segmenter's logits over images.

    Writes one HDF5 file with a histogram for every pair of label and class, from which blda align and blda report
    work. Needs no labels. An interrupted run is continued by the same command.
    """
    from blda_cli.commands.console import emit_json

    if as_json:
        found = [_summary(path, content) for path, content in written.items()]
        emit_json(found[0] if len(found) == 1 else {"files": found})
        return
    for path, content in written.items():
        statistics = content.statistics
        click.echo(
            f"{path}: {statistics.images} images, {statistics.pixels:,} pixels, {len(content.skipped)} skipped, "
            f"{len(content.classes)} classes, labels from {', '.join(statistics.cells)}"
        )


def _summary(path: Path, content: "StatisticsFile") -> dict[str, Any]:
    statistics = content.statistics
    return {
        "output": str(path),
        "images": statistics.images,
        "pixels": statistics.pixels,
        "skipped": len(content.skipped),
        "skipped_images": content.skipped,
        "label_sources": [str(source) for source in statistics.cells],
        "predicted_share": dict(zip(content.classes.names, statistics.predicted_share().tolist(), strict=True)),
    }
