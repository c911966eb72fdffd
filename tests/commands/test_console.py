import time

import pytest

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
