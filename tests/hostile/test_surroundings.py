"""What surrounds a command: terminals of few letters, full disks, Ctrl-C at a bad moment, libraries that talk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hostile.world import World, contents, invoke

# Runs one command line after the other in one process, whose streams have the encoding that is tried.
SEVERAL = """
import sys
from blda_cli.commands import cli
for words in eval(sys.argv[1]):
    print("$", *words[:1])
    cli(words, prog_name="blda", standalone_mode=False)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        pytest.param({"PYTHONIOENCODING": "cp1252"}, marks=pytest.mark.slow),
        pytest.param({"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, marks=pytest.mark.slow),
    ],
    ids=lambda names: " ".join(names.values()),
)
def test_help_and_output_on_terminals_of_few_letters(world: World, locale: dict[str, str]) -> None:
    names = ["straße", "drzewo\u0142", "車"]
    model = world.describe(names=names)
    (world.images / "east" / "1.png").rename(world.images / "east" / "été.png")
    (world.labels / "east" / "1.png").rename(world.labels / "east" / "été.png")
    trained = [word for word in world.finetune(output="run") if word != "--quiet"]
    lines = [
        *([name, "--help"] for name in ("collect-stats", "align", "report", "finetune", "merge")),
        world.collect("--labels", world.labels, model=model, output="s.h5"),
        [word for word in world.align(model=model, stats="s.h5", output="a") if word != "--quiet"],
        world.report("--labels", world.labels, stats="s.h5", aligned="a"),
        world.report("--json", "--compare", stats="s.h5", aligned="a", output="again"),
        trained,
        ["merge", str(world.root / "s.h5"), "--output", str(world.root / "m.h5")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, repr(lines)], env=environment(**locale), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"$ ") == len(lines)
    assert "車" in (world.root / "report" / "report.html").read_text(encoding="utf-8")
    # An error that names what the terminal cannot show.
    odd = world.collect(images=world.root / "été 車.png")
    done = subprocess.run([sys.executable, "-m", "blda_cli", *odd], env=environment(**locale), capture_output=True)
    assert done.returncode == 1
    assert done.stderr.startswith(b"blda: ")
    assert b"does not exist" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("command", ["collect", "align", "report", "finetune"])
@pytest.mark.parametrize("free", [0, 4, 12, 28])
def test_a_full_disk_is_called_that(world: World, small_disk: Path, command: str, free: int) -> None:
    arguments = getattr(world, command)(output=small_disk / "out")
    with (small_disk / "full").open("wb", buffering=0) as file:
        file.write(bytes((256 - free) << 10))
    before = contents(world.root)
    result = invoke(arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exc_info
    assert result.stderr.startswith("blda: ")
    assert "No space left on device" in result.stderr
    assert str(small_disk) in result.stderr
    assert result.stderr.count("\n") == 1
    assert contents(world.root) == before
    (small_disk / "full").unlink()  # and with room made, the same command does it
    more = ["--resume"] if command == "finetune" else []
    result = invoke([*arguments, *more])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_ctrl_c_at_any_moment_leaves_no_traceback(world: World) -> None:
    moments = random.Random(0)
    for number in range(16):
        command = (world.collect, world.align, world.report, world.finetune)[number % 4]()
        with subprocess.Popen(
            [sys.executable, "-m", "blda_cli", *command],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            time.sleep(0.3 + 5 * moments.random())
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
        assert "Traceback" not in said, said
        assert process.returncode in (0, 130, -signal.SIGINT), said
        for made in ("new", "new.h5", "report"):
            path = world.root / made
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def test_a_truncated_program_is_told_of_in_one_line(world: World) -> None:
    whole = world.root / "net.pt2"
    torch.export.save(torch.export.export(torch.nn.Conv2d(3, 3, 1), (torch.zeros(1, 3, 16, 20),)), whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    command = world.collect(model=str(whole))
    done = subprocess.run(
        [sys.executable, "-m", "blda_cli", *command], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith(f"blda: {whole}: not a file of torch.export.save")


def test_a_name_on_the_hub_that_cannot_be_reached_is_told_of_at_once(world: World) -> None:
    command = world.collect(model="hf:nobody/nothing-at-all")
    nowhere = environment(HF_ENDPOINT="http://localhost:9")  # where nothing listens
    done = subprocess.run(
        [sys.executable, "-m", "blda_cli", *command], env=nowhere, capture_output=True, text=True, check=False
    )
    # The library says every time that it tries again, for half a minute.
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "the Hugging Face hub cannot be reached" in done.stderr
