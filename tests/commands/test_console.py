import io
import time

import pytest
from rich.console import Console

from blda_cli.commands.console import ConsoleMonitor


def test_progress_without_a_terminal_tells_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monitor = ConsoleMonitor(quiet=False)
    monitor.start("training", 800, done=200, unit="steps")
    now += 30
    monitor.advance(10)  # 3 seconds a step, the earlier run's 200 not counted
    assert capsys.readouterr().err.splitlines()[-1] == "training: 210 of 800 steps, 0:29:30 left"


def test_a_terminal_wraps_remarks_at_words_and_leaves_commands_whole() -> None:
    monitor = ConsoleMonitor(quiet=False)
    for terminal in (True, False):
        monitor._console = Console(width=60, file=io.StringIO(), force_terminal=terminal, color_system=None)
        remark, command = "a remark of many words " * 5, "  blda report --stats " + "x" * 70
        monitor.say(remark)
        monitor.say(command)
        *lines, last = monitor._console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert last == command
        assert [len(line) <= 60 for line in lines] == [True] * 2 if terminal else [False]
        assert all(line.startswith(("a ", "remark ", "of ", "many ", "words ")) for line in lines)
