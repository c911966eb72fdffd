from pathlib import Path

import pytest
import torch

from blda_cli.errors import BldaError
from blda_cli.runtime.device import choose_device
from blda_cli.runtime.process_group import process_group, wait_for_all
from blda_cli.runtime.shards import Shard, current_shard, processors


def test_every_item_has_one_owner() -> None:
    items = list(range(11))
    for world in (1, 2, 3, 20):
        shares = [Shard(rank, world).of(items) for rank in range(world)]
        assert sorted(item for share in shares for item in share) == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_parts_have_their_own_names() -> None:
    output = Path("/x/target.h5")
    assert Shard().path(output) == Path("/x/target.h5.partial")
    assert Shard(1, 2).path(output) == Path("/x/target.h5.1-of-2.partial")
    assert Shard(1, 2).path(output, 0) == Path("/x/target.h5.0-of-2.partial")


def test_torchrun_says_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert current_shard() == Shard(0, 1)
    assert current_shard().first
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert current_shard() == Shard(1, 3)
    assert not current_shard().first


def test_one_process_waits_for_nobody() -> None:
    with process_group():
        wait_for_all(Shard())
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:x", ""])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(BldaError, match="there is no such device here; --device cpu always works"):
        choose_device(name)


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("local", "share"), [(None, 16), ("1", 16), ("3", 5), ("16", 1), ("40", 1), ("0", 16), ("x", 16)]
)
def test_processes_on_one_machine_share_its_processors(
    monkeypatch: pytest.MonkeyPatch, local: str | None, share: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert processors() == share
