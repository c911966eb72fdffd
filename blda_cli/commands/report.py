"""``blda report``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blda_cli.commands.options import all_option, request_command
from blda_cli.pipelines.requests import ReportRequest

if TYPE_CHECKING:
    from blda_cli.reporting.model import Report


@request_command(
    ReportRequest,
    "blda_cli.pipelines.report:report",
    "report",
    "DIR",
    "Where to write report.html, report.json and report.csv.",
    all_option,
    resumable=False,
)
def command(made: "Report", output: Path, as_json: bool, all_classes: bool) -> None:
    """Show how over- or under-predicted each class is, and what a correction changed.

    The estimate needs no labels. With --labels the true bias, IoU and accuracy before and after stand beside it,
    pooled over pixels; a class that is absent is n/a and in no mean.
    """
    from rich.console import Console

    from blda_cli.reporting.data_files import to_json
    from blda_cli.reporting.terminal import print_report

    if as_json:
        click.echo(to_json(made), nl=False)
    else:
        print_report(made, Console(markup=False, emoji=False), all_classes=all_classes)
        click.echo(f"\n{output / 'report.html'}")
