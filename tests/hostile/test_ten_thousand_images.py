"""Memory, open files and time do not grow with the number of images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.world import World

# The peak of memory in MiB and the most open files, looked at with every batch.
WATCHED = """
import atexit, json, os, sys, time
from blda_cli.commands import console
seen = [0]
advance = console.ConsoleMonitor.advance
def watch(self, count):
    seen[0] = max(seen[0], len(os.listdir("/proc/self/fd")))
    advance(self, count)
console.ConsoleMonitor.advance = watch
def say():
    # Not getrusage, which begins with the peak of the process that started this one.
    peak = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps({"peak": peak, "files": seen[0], "seconds": time.process_time()}), file=sys.stderr)
atexit.register(say)
from blda_cli.__main__ import main
main()
"""


def watched(arguments: list[str]) -> dict[str, float]:
    """Run a command in a process of its own; its peak, its open files and its processor's seconds."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return figures


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_memory_and_open_files_stay_and_the_report_is_quick(world: World) -> None:
    data = world.first.read_bytes()
    figures: dict[int, list[dict[str, float]]] = {}
    for count in (200, 10_000):
        images = world.root / f"{count} images"
        images.mkdir()
        for index in range(count):
            (images / f"{index:05}.png").write_bytes(data)
        stats, aligned = f"{count}.h5", f"aligned {count}"
        figures[count] = [
            watched(world.collect(images=images, output=stats)),
            watched(world.align(images=images, stats=stats, output=aligned)),
            watched(world.report(stats=stats, aligned=aligned, output=f"report {count}")),
        ]
        for name, values in zip(("collect-stats", "align", "report"), figures[count], strict=True):
            print(f"{name} of {count}: {values['peak']:.0f} MiB, {values['files']} files, {values['seconds']:.1f} s")
    few, many = figures[200], figures[10_000]
    for one, other in zip(few[:2], many[:2], strict=True):
        # Names and shares of the further images: 2.4 KiB each. A ratio would depend on what a process needs to start.
        assert other["peak"] < one["peak"] + 26
        assert other["files"] <= one["files"] + 6  # two threads read and four write, each a file at a time
    page = (world.root / "report 10000" / "report.html").stat().st_size
    print(f"report.html: {page / 1e6:.2f} MB")
    assert page < 2_000_000
    assert many[2]["seconds"] < 10
