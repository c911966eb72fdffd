"""``blda export``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blda_cli.commands.options import request_command
from blda_cli.pipelines.requests import ExportRequest
from blda_cli.text import printable

if TYPE_CHECKING:
    from blda_cli.pipelines.export import ExportRecord


@request_command(
    ExportRequest,
    "blda_cli.pipelines.export:export",
    "export",
    "DIR",
    "Where to write the network.",
    resumable=False,
)
def command(record: "ExportRecord", output: Path, as_json: bool) -> None:
    """Write the corrected network, to be run without blda.

    One offset per class goes into the bias of the network's last layer and norm statistics into its batch norms; other
    corrections are put behind the network, in formats that hold code. The export is loaded anew and compared with the
    predictions of blda align. model.toml describes it to every blda command, export.json says how it was made.
    """
    from blda_cli.commands.console import emit_json
    from blda_cli.pipelines.export import summary

    if as_json:
        emit_json({"output": str(output), **record.as_json()})
    else:
        click.echo(printable(summary(record, output)))
