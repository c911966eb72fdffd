"""Progress reporting and cancellation of long-running work."""

from collections.abc import Callable, Iterable
from typing import Protocol

COMMAND = "  "
"""Begins a remark that is a command to copy, which is not wrapped."""


class Interrupted(Exception):  # noqa: N818  # a request, not an error
    """The user asked to stop; finished work is kept, and the same command continues from there."""


class Monitor(Protocol):
    """Watches a pipeline; a command's is a progress bar that listens for Ctrl-C."""

    def start(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:
        """Announce ``total`` images (or other units), ``done`` of which were done by an earlier run."""

    def advance(self, count: int) -> None:
        """Report that ``count`` more are done."""

    def say(self, line: str) -> None:
        """Show a remark to the user."""

    def warn(self, lines: Iterable[str]) -> None:
        """Show remarks even where ``--quiet`` hides the others."""

    def check(self) -> None:
        """Raise if the user asked to stop; called between batches, when the state is consistent.

        Raises:
            Interrupted: the user asked to stop.
        """


class SilentMonitor:
    """A monitor that shows nothing and never stops the work."""

    def start(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:
        """See :class:`Monitor`."""

    def advance(self, count: int) -> None:
        """See :class:`Monitor`."""

    def say(self, line: str) -> None:
        """See :class:`Monitor`."""

    def warn(self, lines: Iterable[str]) -> None:
        """See :class:`Monitor`."""

    def check(self) -> None:
        """See :class:`Monitor`."""


def advancing(monitor: Monitor) -> Callable[[int], None]:
    """A function that reports progress to the monitor, and raises :class:`Interrupted` if the user asked to stop."""

    def advance(count: int) -> None:
        monitor.advance(count)
        monitor.check()

    return advance
