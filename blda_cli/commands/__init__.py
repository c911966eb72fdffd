"""The command line: one module per subcommand.

The modules import torch and all that needs it inside their functions, so that help and completion answer at once.
"""

import io
import sys
from itertools import pairwise
from typing import Any

import click

from blda_cli.commands import align, check, collect_stats, export, finetune, merge, report
from blda_cli.errors import BldaError
from blda_cli.text import printable, shortened
from blda_cli.version import __version__

_LONGEST = 900
"""Characters of an error's line."""


class _Commands(click.Group):
    """Lists commands in the order of their use; prints user-facing errors in one line with exit code 1."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        for stream in (sys.stdout, sys.stderr):  # which may lack τ, or a letter of a file's name
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")
        return super().make_context(info_name, args, parent, **extra)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        for before, argument in pairwise(args):
            if argument == "" or (argument.startswith("--") and argument.endswith("=")):
                name = argument[:-1] or (before if before.startswith("--") else "an argument")
                raise click.UsageError(f"{name} is empty: is a variable of the shell not set?", ctx)
            if "\0" in argument:
                raise click.UsageError(f"{printable(argument)[:80]} holds a NUL, which no file's name does", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader closed the pipe, which click ends quietly
        except click.UsageError as error:
            vars(error)["message"] = shortened(error.message, _LONGEST)
            raise
        except (BldaError, OSError) as error:
            if ctx.params["debug"]:
                raise
            click.echo(f"blda: {shortened(printable(' '.join(str(error).split())), _LONGEST)}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("blda: stopped", err=True)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="blda")
def cli(debug: bool) -> None:  # _Commands reads it
    """See and correct the class bias of a pretrained segmenter on images it was not trained on.

    \b
    blda check         --model MODEL --images DIR
    blda collect-stats --model MODEL --images DIR --output target.h5
    blda align         --model MODEL --images DIR --stats target.h5 --output aligned/
    blda report        --stats target.h5 --aligned aligned/ --output report/
    blda export        --model MODEL --images DIR --stats target.h5 --output exported/
    blda finetune      --model MODEL --source-images DIR --source-labels DIR --target-images DIR --output run/

    Tab completion: eval "$(_BLDA_COMPLETE=bash_source blda)" in bash, likewise zsh_source and fish_source.
    """


for _module in (check, collect_stats, align, report, export, finetune, merge):
    cli.add_command(_module.command)
