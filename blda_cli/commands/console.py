"""Console output: results on stdout; progress, remarks and errors on stderr."""

import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from blda_cli.files import to_json
from blda_cli.runtime.monitor import COMMAND, Interrupted
from blda_cli.text import printable

_PLAIN_SECONDS = 10.0


class ConsoleMonitor:
    """Progress as a bar on a terminal and as plain lines elsewhere; Ctrl-C asks to stop after the current batch."""

    def __init__(self, *, quiet: bool) -> None:
        """Prepare.

        Args:
            quiet: say nothing but errors and :meth:`warn`.
        """
        self._quiet = quiet
        self._console = Console(stderr=True, quiet=quiet)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._unit = ""
        self._what, self._total, self._done, self._before = "", 0, 0, 0
        self._said = self._since = 0.0
        self._asked = self._working = False

    def start(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:
        """See :class:`blda_cli.runtime.monitor.Monitor`."""
        self.stop()
        self._working = True
        self._unit = unit
        self._what, self._total, self._done, self._before = what, total, done, done
        self._said = self._since = time.monotonic()
        if done:
            self.say(f"{what}: going on after {done} of {total} {unit}")
        if self._console.is_terminal and not self._quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(what, total=total, completed=done)
            self._bar.start()

    def advance(self, count: int) -> None:
        """See :class:`blda_cli.runtime.monitor.Monitor`."""
        self._done += count
        if self._bar is not None:
            self._bar.advance(self._task, count)
        elif time.monotonic() - self._said > _PLAIN_SECONDS:
            self._said = time.monotonic()
            pace = (self._said - self._since) / (self._done - self._before)
            left = timedelta(seconds=round(pace * (self._total - self._done)))
            self.say(f"{self._what}: {self._done} of {self._total} {self._unit}, {left} left")

    def say(self, line: str) -> None:
        """See :class:`blda_cli.runtime.monitor.Monitor`."""
        # A terminal's own line breaks are not copied with a command, but they cut words.
        whole = line.startswith(COMMAND) or not self._console.is_terminal
        self._console.print(printable(line), highlight=False, markup=False, emoji=False, soft_wrap=whole)

    def warn(self, lines: Iterable[str]) -> None:
        """See :class:`blda_cli.runtime.monitor.Monitor`."""
        self.stop()
        for line in lines:
            click.echo(printable(line), err=True)

    def check(self) -> None:
        """See :class:`blda_cli.runtime.monitor.Monitor`."""
        if self._asked:
            raise Interrupted

    def stop(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # a signal handler's arguments
        """Ask to stop; a second time, or before the work has begun, stop at once."""
        if self._asked or not self._working:
            raise KeyboardInterrupt
        self._asked = True
        self.say("stopping after this batch (Ctrl-C again stops at once)")


@contextmanager
def monitored(*, quiet: bool, resumable: bool = True) -> Iterator[ConsoleMonitor]:
    """Run a pipeline under a :class:`ConsoleMonitor`; an interruption ends in one line and exit code 130.

    Output that a network prints goes to stderr: stdout is for results.

    Args:
        quiet: say nothing but errors.
        resumable: finished work is kept when the user stops it.
    """
    monitor = ConsoleMonitor(quiet=quiet)
    before = signal.signal(signal.SIGINT, monitor.ask)
    try:
        with redirect_stdout(sys.stderr):
            yield monitor
    except Interrupted:
        monitor.stop()
        kept = "what was done is kept: the same command, without --overwrite, goes on from there"
        click.echo(f"blda: interrupted; {kept if resumable else 'nothing was written'}", err=True)
        sys.exit(130)
    finally:
        monitor.stop()
        signal.signal(signal.SIGINT, before)


def emit_json(value: Any) -> None:
    """Print data for programs on stdout; NaN and infinities become null."""
    click.echo(to_json(value), nl=False)
