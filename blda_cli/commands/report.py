"""``blda report``."""

from pathlib import Path

import click

from blda_cli.commands.options import (
    json_option,
    label_options,
    overwrite_option,
    provenance,
    quiet_option,
    refuse_alone,
)


@click.command("report")
@click.option(
    "--stats",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.h5",
    help="Statistics of the images, from blda collect-stats.",
)
@click.option(
    "--aligned",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Corrected predictions, from blda align. Give it several times to have them side by side.",
)
@click.option(
    "--compare",
    is_flag=True,
    help="Also try every method on the pixels that the statistics keep: nothing is run again. Scores need statistics "
    "collected with --labels.",
)
@label_options
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to write report.html, report.json and report.csv.",
)
@overwrite_option
@json_option
@quiet_option
def command(
    stats: Path,
    aligned: tuple[Path, ...],
    compare: bool,
    labels: str | None,
    label_encoding: str | None,
    ignore_label: int | None,
    output: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show how over- or under-predicted each class is, and what a correction changed.

    The estimate needs no labels. With --labels the true bias, IoU and accuracy before and after stand beside it,
    pooled over pixels; a class that is absent is n/a and in no mean.
    """
    from rich.console import Console

    from blda_cli.commands.console import monitored
    from blda_cli.files import locked
    from blda_cli.pipelines.report import report
    from blda_cli.reporting.data_files import to_json
    from blda_cli.reporting.terminal import print_report

    refuse_alone("--labels", labels, {"--label-encoding": label_encoding, "--ignore-label": ignore_label})
    with monitored(quiet=quiet, resumable=False) as monitor, locked(output):
        made = report(
            stats,
            aligned,
            labels=labels,
            label_encoding=label_encoding,
            ignore_label=ignore_label,
            compare=compare,
            output=output,
            overwrite=overwrite,
            provenance=provenance(),
            monitor=monitor,
        )
    if as_json:
        click.echo(to_json(made), nl=False)
    else:
        print_report(made, Console(markup=False, emoji=False))
        click.echo(f"\n{output / 'report.html'}")
