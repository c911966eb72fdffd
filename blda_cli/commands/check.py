"""``blda check``."""

from typing import TYPE_CHECKING, Any

import click

from blda_cli.commands.options import all_option, json_option, option_of, quiet_option, together, usage_errors
from blda_cli.pipelines.requests import CheckRequest, options_of, request

if TYPE_CHECKING:
    from blda_cli.reporting.check_model import Check


@click.command("check")
@together(*map(option_of, options_of(CheckRequest).values()), all_option, json_option, quiet_option)
def command(all_classes: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Check a model's description, before anything is counted.

    Runs the model on a dozen images and shows the loaded model, its input, the common description that fits best, the
    predictions, and, with --labels, whether the order of the classes is right.
    """
    from blda_cli.commands.console import emit_json, monitored
    from blda_cli.pipelines.check import check
    from blda_cli.reporting.check_words import as_json as to_data

    with usage_errors():
        asked = request(CheckRequest, given)
        with monitored(quiet=quiet, resumable=False) as monitor:
            found = check(asked, monitor)
    if as_json:
        emit_json(to_data(found))
    else:
        _show(found, all_classes=all_classes)
    for path in (asked.model.write_model, None if asked.output is None else asked.output / "check.html"):
        if path is not None and not as_json:
            click.echo(path)


def _show(found: "Check", *, all_classes: bool) -> None:
    from rich.console import Console

    from blda_cli.reporting.check_words import print_check

    print_check(found, Console(markup=False, emoji=False), all_classes=all_classes)
