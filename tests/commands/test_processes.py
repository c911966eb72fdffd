"""What only a process of its own shows: exit codes, streams, signals, imports, memory, several processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from blda_cli.pipelines.doubts import UNSAID
from blda_cli.store.statistics import StatisticsFile, read_statistics

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

Process = Callable[..., "subprocess.CompletedProcess[str]"]
Tree = Callable[[Path], dict[str, bytes]]

# Says the processor's seconds that an answer takes after the interpreter's own start, and what it imported.
TIMED = """
import atexit, sys, time
start = time.process_time()
def check():
    print("seconds", time.process_time() - start, file=sys.stderr)
    print("heavy", sorted({"torch", "numpy", "scipy", "h5py", "PIL"} & set(sys.modules)), file=sys.stderr)
atexit.register(check)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["align", "--help"], ["collect-stats", "--help"], ["--version"]])
def test_help_answers_at_once(process: Process, arguments: list[str]) -> None:
    done = process(*arguments, before=TIMED)
    assert done.returncode == 0
    assert done.stdout.startswith(("Usage: blda", "blda, version"))
    said = dict(line.split(" ", 1) for line in done.stderr.splitlines())
    assert said["heavy"] == "[]"
    assert float(said["seconds"]) < 0.5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(process: Process, shell: str) -> None:
    source = process(env={"_BLDA_COMPLETE": f"{shell}_source"}, before=TIMED)
    assert "_BLDA_COMPLETE" in source.stdout
    words = {"COMP_WORDS": "blda al", "COMP_CWORD": "1" if shell != "fish" else "al"}
    done = process(env={"_BLDA_COMPLETE": f"{shell}_complete", **words}, before=TIMED)
    assert "align" in re.split(r"[,\s]", done.stdout)
    said = dict(line.split(" ", 1) for line in done.stderr.splitlines())
    assert said["heavy"] == "[]"
    assert float(said["seconds"]) < 0.5


def test_every_command_and_option_says_what_it_does() -> None:
    from blda_cli.commands import cli

    for name, command in cli.commands.items():
        assert command.get_short_help_str(), name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_results_and_errors_go_their_own_ways(process: Process, scene: Scene) -> None:
    arguments = ["collect-stats", *scene.options(), "--output", scene.root / "s.h5"]
    done = process(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 6
    assert done.stderr == f"{UNSAID}\n"
    done = process(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"blda: {scene.root / 's.h5'} exists already: --overwrite replaces it\n"


def counts(content: StatisticsFile) -> dict[str, np.ndarray]:
    sample = content.statistics.sample
    assert content.statistics.confusion is not None
    return {
        **{str(source): cells.counts.numpy() for source, cells in content.statistics.cells.items()},
        "limit": np.array([cells.limit for cells in content.statistics.cells.values()]),
        "confusion": content.statistics.confusion.counts.numpy(),
        **{name: getattr(sample, name).numpy() for name in ("seen", "logits", "labels", "images", "priorities")},
    }


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = read_statistics(one), read_statistics(other)
    for name, values in counts(mine).items():
        np.testing.assert_array_equal(values, counts(theirs)[name], err_msg=name)
    for attribute in ("classes", "model", "images", "complete"):
        assert getattr(mine, attribute) == getattr(theirs, attribute), attribute


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(process: Process, run: Run, scene: Scene) -> None:
    output, whole = scene.root / "s.h5", scene.root / "whole.h5"
    arguments = ["collect-stats", *scene.options("--labels", str(scene.labels)), "--output"]
    done = process(*arguments, output, "--quiet", env={"TINY_SIGNAL": f"{int(signal.SIGINT)}@3"})
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("blda: interrupted; what was done is kept")
    assert done.stderr.count("\n") == 1
    run(*arguments, output)
    run(*arguments, whole)
    assert_same(output, whole)


def test_ctrl_c_before_the_work_has_begun(process: Process, scene: Scene) -> None:
    (scene.root / "slow.py").write_text("import os\n\ndef make():\n    os.kill(os.getpid(), 2)\n")
    model = scene.describe("slow.toml", factory="slow:make")
    done = process("collect-stats", *scene.options(model=model), "--output", scene.root / "s.h5")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "blda: stopped\n")


# Every image is a checkpoint.
OFTEN = """
import blda_cli.pipelines.align, blda_cli.pipelines.collect
blda_cli.pipelines.align.CHECKPOINT_SECONDS = blda_cli.pipelines.collect.CHECKPOINT_SECONDS = 0.0
"""


def test_a_killed_run_goes_on_from_its_checkpoint(process: Process, run: Run, scene: Scene, tree: Tree) -> None:
    stats, whole = scene.root / "s.h5", scene.root / "whole.h5"
    killed = {"TINY_SIGNAL": f"{int(signal.SIGKILL)}@4"}
    arguments: list[Any] = ["collect-stats", *scene.options("--labels", str(scene.labels)), "--output"]
    assert process(*arguments, stats, before=OFTEN, env=killed).returncode == -signal.SIGKILL
    assert not stats.exists()
    assert "going on after 3 of 6 images" in run(*arguments, stats).stderr
    run(*arguments, whole)
    assert_same(stats, whole)

    arguments = ["align", *scene.options("--save-scores"), "--stats", stats, "--output"]
    output = scene.root / "a"
    assert process(*arguments, output, before=OFTEN, env=killed).returncode == -signal.SIGKILL
    assert not (output / "run.json").exists()
    assert "going on after 3 of 6 images" in run(*arguments, output).stderr
    run(*arguments, scene.root / "b")
    one, other = tree(output), tree(scene.root / "b")
    records = [json.loads(files.pop("run.json")) for files in (one, other)]
    assert one == other
    for name in ("pixels_before", "pixels_after", "pixels_changed", "changed", "images"):
        assert records[0][name] == records[1][name]


def test_two_processes_write_what_one_writes(torchrun: Process, run: Run, scene: Scene, tree: Tree) -> None:
    (scene.images / "west" / "002.png").write_text("no picture")
    (scene.images / "east" / "003.png").write_text("no picture")
    options = scene.options("--on-error", "skip")
    stats, whole = scene.root / "s.h5", scene.root / "whole.h5"
    done = torchrun("collect-stats", *options, "--labels", scene.labels, "--output", stats, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["skipped"] == 2
    run("collect-stats", *options, "--labels", scene.labels, "--output", whole)
    assert_same(stats, whole)
    assert set(read_statistics(stats).provenance.skipped) == {"east/003", "west/002"}

    done = torchrun("align", *options, "--stats", stats, "--save-scores", "--output", scene.root / "a", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 4
    run("align", *options, "--stats", stats, "--save-scores", "--output", scene.root / "b")
    one, other = tree(scene.root / "a"), tree(scene.root / "b")
    records = [json.loads(files.pop("run.json")) for files in (one, other)]
    assert one == other
    for record in records:
        for name in ("command", "options", "date"):
            del record["provenance"][name]
        record["images"] = dict(sorted(record["images"].items()))
    assert records[0] == records[1]
    assert not list(scene.root.glob("*.partial"))


def test_one_process_of_two_that_fails_ends_both(torchrun: Process, scene: Scene) -> None:
    (scene.images / "west" / "002.png").write_text("no picture")
    done = torchrun("collect-stats", *scene.options(), "--output", scene.root / "s.h5")
    assert done.returncode != 0
    assert "002.png is not an image" in done.stderr
    assert "blda_cli/pipelines" not in done.stderr  # no traceback of ours
    assert not (scene.root / "s.h5").exists()


def test_world_size_without_torchrun(process: Process, scene: Scene) -> None:
    done = process("collect-stats", *scene.options(), "--output", scene.root / "s.h5", env={"WORLD_SIZE": "2"})
    assert done.returncode == 1
    assert done.stderr.startswith("blda: process 0 of 2 cannot reach the others")
    assert done.stderr.count("\n") == 1


MEMORY = """
import atexit, resource, sys
atexit.register(lambda: print("kilobytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(process: Process, scene: Scene) -> None:
    generator = np.random.default_rng(0)
    peaks = []
    for count in (8, 32):
        folder = scene.root / f"{count} images"
        folder.mkdir()
        for index in range(count):
            pixels = generator.integers(0, 256, (512, 512, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png", compress_level=1)
        options = ["--model", scene.model, "--images", folder, "--device", "cpu", "--quiet"]
        done = process("collect-stats", *options, "--output", scene.root / f"{count}.h5", before=MEMORY)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stderr.split()[-1]) / 1024)
    # one image's logits take 4 MiB: a list of them would show
    assert peaks[1] < peaks[0] + 24, peaks
