"""``blda merge``."""

from pathlib import Path

import click

from blda_cli.commands.options import overwrite_option, provenance


@click.command("merge")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE.h5 FILE.h5 ...")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="FILE.h5", help="The sum.")
@overwrite_option
def command(files: tuple[Path, ...], output: Path, overwrite: bool) -> None:
    """Add statistics of different images up.

    The result is the same, count by count, as that of one run over all the images. Files of different models or
    classes are refused, and so is an image that is counted twice.
    """
    from blda_cli.core.mixture import fit_mixtures
    from blda_cli.errors import BldaError
    from blda_cli.files import claim
    from blda_cli.store.statistics import merge_statistics, read_statistics, write_statistics

    claim(output, overwrite=overwrite)
    if len({path.resolve() for path in files}) < len(files):
        raise BldaError("a file is named twice: every image would count twice")
    whole = merge_statistics((path, read_statistics(path)) for path in files)
    whole.provenance = {**provenance(), **whole.provenance}
    whole.mixtures = {source: fit_mixtures(cells) for source, cells in whole.statistics.cells.items()}
    write_statistics(output, whole)
    click.echo(f"{output}: {whole.statistics.images} images, {whole.statistics.pixels:,} pixels")
