"""``blda collect-stats``."""

from pathlib import Path
from typing import TYPE_CHECKING

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
def command(content: "StatisticsFile", output: Path, as_json: bool) -> None:
    """Count a segmenter's logits over images.

    Writes one HDF5 file with a histogram for every pair of label and class, from which blda align and blda report
    work. Needs no labels. An interrupted run is continued by the same command.
    """
    from blda_cli.commands.console import emit_json

    statistics = content.statistics
    sources = [str(source) for source in statistics.cells]
    if as_json:
        emit_json(
            {
                "output": str(output),
                "images": statistics.images,
                "pixels": statistics.pixels,
                "skipped": len(content.skipped),
                "skipped_images": content.skipped,
                "label_sources": sources,
                "predicted_share": dict(zip(content.classes.names, statistics.predicted_share().tolist(), strict=True)),
            }
        )
    else:
        click.echo(
            f"{output}: {statistics.images} images, {statistics.pixels:,} pixels, {len(content.skipped)} skipped, "
            f"{len(content.classes)} classes, labels from {', '.join(sources)}"
        )
