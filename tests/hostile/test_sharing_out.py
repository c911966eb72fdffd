"""Array jobs without a process group, and torchrun: what comes out is what one process makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.hostile.world import World, contents, invoke


def datasets(path: Path) -> dict[str, Any]:
    """All of a file of statistics but how it came to be."""
    held: dict[str, Any] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name != "provenance":
            held[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
        held |= {f"@{name}": np.asarray(value) for name, value in file.attrs.items()}
    return held


def assert_same(one: Path, other: Path) -> None:
    mine, theirs = datasets(one), datasets(other)
    assert mine.keys() == theirs.keys()
    for name, values in mine.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def ok(arguments: list[str]) -> str:
    result = invoke(arguments)
    assert result.exit_code == 0, result.output
    return result.output


def merged(world: World, parts: list[str], output: str) -> list[str]:
    return ["merge", *(str(world.root / part) for part in parts), "--output", str(world.root / output)]


def refused(arguments: list[str], *says: str) -> None:
    result = invoke(arguments)
    assert result.exit_code == 1
    assert all(text in result.stderr for text in says), result.stderr


@pytest.mark.parametrize("jobs", [2, 3, 6])
def test_shards_of_an_array_job_make_what_one_process_makes(world: World, jobs: int) -> None:
    (world.images / "west" / "0.png").write_text("no picture")  # of whichever shard
    skipping = ["--on-error", "skip"]
    ok(world.collect(*skipping, output="whole.h5"))
    numbers = range(1, jobs + 1)
    for number in numbers:
        ok(world.collect(*skipping, "--shard", f"{number}/{jobs}", output=f"{number}.h5"))
    assert "3 images" in ok(merged(world, [f"{number}.h5" for number in reversed(numbers)], "all.h5"))
    assert_same(world.root / "all.h5", world.root / "whole.h5")

    ok(world.align(*skipping, "--save-scores", stats="whole.h5", output="whole"))
    for number in numbers:
        shard = ["--shard", f"{number}/{jobs}"]
        ok(world.align(*skipping, "--save-scores", *shard, stats="whole.h5", output=f"part{number}"))
    ok(merged(world, [f"part{number}" for number in numbers], "all"))
    one, other = contents(world.root / "all"), contents(world.root / "whole")
    records = [json.loads(files.pop("run.json")) for files in (one, other)]
    assert one == other
    provenances = [record.pop("provenance") for record in records]
    assert records[0] == records[1]
    assert [list(provenance["skipped"]) for provenance in provenances] == [["west/0"]] * 2


def test_a_shard_that_is_missing_or_there_twice_is_named(world: World) -> None:
    for number in (1, 3):
        ok(world.collect("--shard", f"{number}/3", output=f"{number}.h5"))
        ok(world.align("--shard", f"{number}/3", output=f"part{number}"))
    refused(merged(world, ["1.h5", "3.h5"], "all.h5"), "shard 2 of 3 is missing", "--shard 2/3")
    refused(merged(world, ["part1", "part3"], "all"), "shard 2 of 3 is missing")
    shutil.copy(world.root / "1.h5", world.root / "again.h5")
    refused(merged(world, ["1.h5", "again.h5", "3.h5"], "all.h5"), "1.h5", "again.h5")
    refused(world.collect("--shard", "1/3", output="1.h5"), "1.h5 exists already")
    refused(world.align("--shard", "1/3", output="part1"), "part1 holds predictions already")
    ok(world.collect("--shard", "2/4", output="2.h5"))
    refused(merged(world, ["1.h5", "2.h5", "3.h5"], "all.h5"), "no shards of the same images")
    ok(world.collect("--shard", "2/3", "--overwrite", output="2.h5"))
    refused(merged(world, ["1.h5", "2.h5", "3.h5", "stats.h5"], "all.h5"), "stats.h5")
    assert not (world.root / "all.h5").exists()
    assert not (world.root / "all").exists()
    ok(merged(world, ["1.h5", "2.h5", "3.h5"], "all.h5"))
    ok(world.align("--shard", "2/3", output="part2"))
    ok(merged(world, ["part1", "part2", "part3"], "all"))


def test_two_processes_do_not_write_one_output(world: World) -> None:
    from blda_cli.files import locked

    other = (
        "import sys, time; from pathlib import Path; from blda_cli.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    for command in (world.collect(), world.align(), world.finetune(), world.report()):
        output = Path(command[command.index("--output") + 1])
        with subprocess.Popen([sys.executable, "-c", other, str(output)], stdout=subprocess.PIPE, text=True) as held:
            assert held.stdout is not None
            assert held.stdout.readline() == "held\n"
            refused(command, str(output), f"process {held.pid} on ")
            held.kill()
        assert not output.exists()
        with locked(output):  # a lock ends with its process
            pass


def test_a_lock_that_is_a_link_is_not_followed(world: World) -> None:
    from blda_cli.files import locked

    with locked(world.root / "new.h5"):
        lock = next(world.root.glob(".*.lock"))
    (world.root / "precious").write_text("precious")
    lock.symlink_to("precious")
    ok(world.collect())
    assert (world.root / "precious").read_text() == "precious"


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "blda_cli"]
    return subprocess.run(
        [sys.executable, *launcher, *arguments], capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.slow
def test_three_processes_share_unevenly_and_more_than_there_are_images(world: World) -> None:
    ok(world.collect(output="whole.h5"))
    done = torchrun(3, *world.collect(output="three.h5"))
    assert done.returncode == 0, done.stderr
    assert_same(world.root / "three.h5", world.root / "whole.h5")
    one = world.images / "east" / "1.png"
    ok(world.collect(images=one, output="one.h5"))
    done = torchrun(3, *world.collect(images=one, output="shared.h5"))
    assert done.returncode == 0, done.stderr
    assert_same(world.root / "one.h5", world.root / "shared.h5")


@pytest.mark.slow
def test_the_others_stop_where_one_of_three_processes_fails(world: World) -> None:
    (world.images / "west" / "2.png").write_text("no picture")
    done = torchrun(3, *world.align())
    assert done.returncode != 0
    assert "2.png is not an image" in done.stderr
    assert "blda_cli/pipelines" not in done.stderr  # no traceback of ours
    assert not (world.root / "new" / "run.json").exists()
