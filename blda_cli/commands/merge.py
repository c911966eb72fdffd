"""``blda merge``."""

from pathlib import Path

import click

from blda_cli.commands.options import overwrite_option, provenance


@click.command("merge")
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PART PART ...")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="FILE.h5|DIR", help="The whole.")
@overwrite_option
def command(parts: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Put together what was made of different images: statistics, or folders of predictions.

    Statistics (FILE.h5 of blda collect-stats) add up to the same, count by count, as one run over all the images.
    Folders (of blda align) become one with one run.json. Parts of different models, classes or settings are refused,
    and so is an image that is in two of them. Of the parts that --shard made none may be missing.
    """
    from blda_cli.files import locked
    from blda_cli.pipelines.merge import merge_files, merge_folders

    with locked(output):
        if all(path.is_dir() for path in parts):
            record = merge_folders(parts, output, provenance=provenance(), overwrite=overwrite)
            click.echo(f"{output}: {len(record.changed)} images")
        else:
            statistics = merge_files(parts, output, provenance=provenance(), overwrite=overwrite).statistics
            click.echo(f"{output}: {statistics.images} images, {statistics.pixels:,} pixels")
