"""``blda merge``."""

from pathlib import Path

import click

from blda_cli.commands.options import started, usage_errors
from blda_cli.pipelines.requests import MergeRequest, request


@click.command("merge")
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PART PART ...")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="FILE.h5|DIR", help="The whole.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
def command(parts: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Merge statistics, or folders of predictions, of different images.

    Statistics (FILE.h5 of blda collect-stats) add up to the same, count by count, as one run over all the images.
    Folders (of blda align) become one with one run.json. Parts of different models, classes or settings are refused,
    and so is an image that is in two of them. Of the parts that --shard made none may be missing.
    """
    from blda_cli.pipelines.merge import merge
    from blda_cli.store.statistics import StatisticsFile

    with usage_errors(), started(output, overwrite=overwrite, quiet=False, resumable=False) as job:
        whole = merge(request(MergeRequest, {"parts": parts}), job)
    if isinstance(whole, StatisticsFile):
        click.echo(f"{output}: {whole.statistics.images} images, {whole.statistics.pixels:,} pixels")
    else:
        click.echo(f"{output}: {len(whole.changed)} images")
