"""Options of commands, made from the fields of their requests, and the job that a command starts."""

import functools
import math
import pkgutil
import re
import shlex
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from blda_cli.commands.completion import completer
from blda_cli.errors import OptionError
from blda_cli.pipelines.requests import options_of, request
from blda_cli.settings import Setting

if TYPE_CHECKING:  # these import torch, which --help and completion do without
    from blda_cli.pipelines.job import Job
    from blda_cli.store.provenance import Provenance

F = TypeVar("F", bound=Callable[..., Any])

_MOST_SCALES = 32


def size(value: Any) -> tuple[int, int]:
    """Parse ``512x1024``, height first.

    Raises:
        click.BadParameter: it is not a size.
    """
    parts = value if isinstance(value, tuple) else str(value).lower().split("x")
    if len(parts) != 2 or not all(re.fullmatch("0*[1-9][0-9]{0,5}", str(part)) for part in parts):
        raise click.BadParameter(f"{str(value)[:60]!r} is not a size such as 512x1024 (height first)")
    return int(parts[0]), int(parts[1])


def scales(value: Any) -> tuple[float, ...]:
    """Parse ``0.5,1.0``.

    Raises:
        click.BadParameter: it is not a list of scales.
    """
    try:
        numbers = tuple(float(part) for part in str(value).split(","))
    except ValueError:
        numbers = ()
    if not 0 < len(numbers) <= _MOST_SCALES or not all(0.01 <= number <= 100 for number in numbers):
        raise click.BadParameter(f"{str(value)[:60]!r} is not a list of scales such as 0.5,0.75,1.0 (0.01 to 100)")
    return numbers


def number_or_word(value: Any) -> float | str:
    """Parse a number; other text is left as it is, for its setting to validate."""
    try:
        return float(value)
    except ValueError:
        return str(value)


def count_or_word(value: Any) -> int | str:
    """The same of a whole number."""
    try:
        return int(value)
    except ValueError:
        return str(value)


def together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that is several, the first outermost."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def option_of(one: Setting, name: str | None = None, parse: Callable[[Any], Any] | None = None) -> Callable[[F], F]:
    """A click option of a setting; not given, its parameter is None and the setting's default holds.

    Args:
        one: the setting; the option is called like it.
        name: of the parameter; by default the setting's.
        parse: turns text into a value, where the setting's type does not determine how.
    """

    def fit(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if context.get_parameter_source(str(parameter.name)) is ParameterSource.DEFAULT:
            return None
        try:
            return one.fit(value)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from error

    kind = one.kind
    required = one.default is MISSING
    default = None if required or one.default in ("", ()) else one.default
    flag = f"--{one.name.replace('_', '-')}"
    attributes: dict[str, Any] = {
        "default": default,
        "required": required,
        "show_default": default is not None,
        "metavar": one.metavar,
        **({} if one.options(kind) else completer(one.name, path=one.path)),
    }
    parse = parse or (_PARSERS.get(kind) if one.metavar else None)
    item = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
    if kind is bool:
        attributes["is_flag"] = True
        flag += f"/--no-{flag[2:]}" if one.default or name else ""
    elif parse:
        attributes["type"] = parse
        if isinstance(default, tuple):
            attributes["default"] = ("," if parse is scales else "x").join(map(str, default))
    elif item in (int, float):
        attributes |= {"type": item, "nargs": len(one.default), "show_default": " ".join(map(str, one.default))}
    elif item is not None:
        attributes |= {"type": _type_of(item, one.options(item), one), "multiple": True}
    else:
        attributes["type"] = _type_of(kind, one.options(kind), one)
        attributes["default"] = str(default) if isinstance(default, StrEnum) else default
    return click.option(flag, name or one.name, help=one.help, callback=fit, **attributes)


def _type_of(kind: Any, choices: tuple[str, ...], one: Setting) -> Any:
    if choices:
        return click.Choice(choices)
    if kind in (int, float):
        limits: dict[str, Any] = {
            "min": None if math.isinf(one.low) else one.low,
            "max": None if math.isinf(one.high) else one.high,
        }
        return click.IntRange(**limits) if kind is int else click.FloatRange(**limits)
    return click.Path(path_type=Path) if kind is Path else click.Path() if one.path else click.STRING


_PARSERS: dict[Any, Callable[[Any], Any]] = {
    tuple[int, int]: size,
    tuple[float, ...]: scales,
    (float, typing.Literal["auto"]): number_or_word,
    (int, typing.Literal["all"]): count_or_word,
}


def request_command(
    cls: type,
    call: str,
    name: str,
    output: str,
    help: str,
    *more: Callable[[Callable[..., Any]], Callable[..., Any]],
    resumable: bool = True,
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command: options to a request, one call, and the decorated function, which shows the result of the call.

    The command has the options of the request, ``--output``, ``--overwrite``, ``--json`` and ``--quiet``. The function
    is called as ``function(result, output, as_json)`` and the values of ``more``, its docstring is the command's help.

    Args:
        cls: the request.
        call: the pipeline, as ``package.module:function`` of the request and the job.
        name: of the command.
        output: stands for the value of ``--output`` in ``--help``.
        help: of ``--output``.
        more: options of how the result is shown, which are none of the request.
        resumable: an interrupted run can be continued by the same command.
    """
    settings = options_of(cls)
    needed = [one for one in settings.values() if one.default is MISSING]
    others = [one for one in settings.values() if one.default is not MISSING]

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(output: Path, overwrite: bool, as_json: bool, quiet: bool, **given: Any) -> None:
            values = {name: value for name, value in given.items() if name in settings and value not in (None, ())}
            with usage_errors():
                asked: Any = request(cls, values)
                with started(output, overwrite=overwrite, quiet=quiet, resumable=resumable) as job:
                    result = pkgutil.resolve_name(call)(asked, job)
            if job.shard.first:
                function(result, output, as_json, **{name: given[name] for name in given.keys() - settings.keys()})

        return click.command(name)(
            together(
                *map(option_of, needed),
                click.option("--output", required=True, type=click.Path(path_type=Path), metavar=output, help=help),
                *map(option_of, others),
                click.option("--overwrite", is_flag=True, help="Replace an existing output."),
                *more,
                json_option,
                quiet_option,
            )(run)
        )

    return decorate


quiet_option = click.option("--quiet", is_flag=True, help="No progress and no remarks but of images left out.")
all_option = click.option("--all", "all_classes", is_flag=True, help="Print all classes, where they are many.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@contextmanager
def usage_errors() -> Iterator[None]:
    """End errors of options that do not go together as click ends wrong usage: exit code 2."""
    try:
        yield
    except OptionError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error


@contextmanager
def started(output: Path, *, overwrite: bool, quiet: bool, resumable: bool = True) -> "Iterator[Job]":
    """Start the job of a command, under a monitor that listens for Ctrl-C.

    Args:
        output: the file or folder to write.
        overwrite: replace what is there.
        quiet: no progress and no remarks.
        resumable: an interrupted run can be continued by the same command.
    """
    from blda_cli.commands.console import monitored
    from blda_cli.pipelines.job import Job
    from blda_cli.runtime.shards import current_shard

    shard = current_shard()
    with monitored(quiet=quiet or not shard.first, resumable=resumable) as monitor:
        yield Job(output, overwrite, provenance(), monitor, shard)


def provenance() -> "Provenance":
    """Provenance record of this command: command line, options, versions, timestamp."""
    from blda_cli.store.provenance import current_provenance

    context = click.get_current_context()
    return current_provenance(
        shlex.join(["blda", *sys.argv[1:]]),
        {
            one.opts[0]: _as_written(context.params[str(one.name)], several=one.nargs > 1 or one.multiple)
            for one in context.command.params
            if isinstance(one, click.Option)
            and context.get_parameter_source(str(one.name)) is ParameterSource.COMMANDLINE
        },
    )


def _as_written(value: Any, *, several: bool) -> bool | str | list[str]:
    """An option's value as it is given on a command line."""
    if isinstance(value, bool):
        return value
    if several:
        return [str(one) for one in value]
    if isinstance(value, tuple):  # a size or scales
        return ("x" if isinstance(value[0], int) else ",").join(map(str, value))
    return str(value)
