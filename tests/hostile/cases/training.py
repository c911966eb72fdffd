"""Checkpoints and metrics with one thing edited, then ``--resume``."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hostile.world import Case, World, case, copy, invoke

_PLACE = tempfile.TemporaryDirectory()


_TRAINED: list[World] = []
"""A copy of the world with a run of two steps, made once for all cases."""


def _resuming(world: World) -> list[str]:
    """A copy of the run and the command that goes on with it."""
    if not _TRAINED:
        _TRAINED.append(copy(world, Path(_PLACE.name) / "world"))
        assert invoke(_TRAINED[0].finetune()).exit_code == 0
    shutil.copytree(_TRAINED[0].root / "new", world.root / "new")
    return _TRAINED[0].finetune("--resume", output=world.root / "new")


def resumed(change: Callable[[dict[str, Any]], Any]) -> Callable[[World], list[str]]:
    """A run whose checkpoint is edited before it is to go on."""

    def act(world: World) -> list[str]:
        command = _resuming(world)
        path = world.root / "new" / "checkpoint.pth"
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
        return command

    return act


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> None:
        *path, last = name.split("/")
        inner: Any = state
        for key in path:
            inner = inner[int(key) if key.isdigit() else key]
        inner[last] = value

    return change


def _weight(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
    def edit(state: dict[str, Any]) -> None:
        student = state["trainer"]["student"]
        name = next(iter(student))
        student[name] = change(student[name])

    return edit


def _bytes(name: str, data: bytes) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        command = _resuming(world)
        (world.root / "new" / name).write_bytes(data)
        return command

    return act


def _other_source(world: World) -> list[str]:
    assert invoke(world.finetune()).exit_code == 0
    world.first.write_bytes((world.images / "east" / "3.png").read_bytes())
    return world.finetune("--resume")


LINES = (
    b'\xff\n[]\n{"iteration": "x"}\n{"iteration": 1, "losses": 7}\n{"iteration": 1, "validation": {"iou": 3}}\n'
    + b"[" * 9999
)

CASES: list[Case] = [
    case("a step beyond", resumed(put("trainer/step", 10**30)), "checkpoint.pth", "trainer.step"),
    case("a step below nothing", resumed(put("trainer/step", -1)), "checkpoint.pth", "trainer.step"),
    case("a step of text", resumed(put("trainer/step", "one")), "checkpoint.pth", "trainer.step"),
    case("no teacher", resumed(lambda state: state["trainer"].pop("teacher")), "checkpoint.pth", "teacher"),
    case("a teacher of nothing", resumed(put("trainer/teacher", {})), "checkpoint.pth", "teacher"),
    case("a weight of NaN", resumed(_weight(lambda one: one / 0)), "checkpoint.pth", "trainer.student"),
    case("a weight of another shape", resumed(_weight(lambda one: one[:1])), "checkpoint.pth", "trainer.student"),
    case("a weight of text", resumed(_weight(lambda one: "heavy")), "checkpoint.pth", "trainer.student"),
    case("a sparse weight", resumed(_weight(lambda one: one.to_sparse())), "checkpoint.pth", "trainer.student"),
    case("an optimiser of text", resumed(put("trainer/optimizer", "AdamW")), "checkpoint.pth", "trainer.optimizer"),
    case(
        "a moment of another shape",
        resumed(put("trainer/optimizer/state/0/exp_avg", torch.zeros(7))),
        "checkpoint.pth",
        "trainer.optimizer.state",
    ),
    case("settings of a number", resumed(put("settings", 5)), "checkpoint.pth", "settings"),
    case("settings that are no TOML", resumed(put("settings", "[")), "checkpoint.pth"),
    case("a trainer of a list", resumed(put("trainer", [1])), "checkpoint.pth", "trainer"),
    case("a model of text", resumed(put("model", "other")), "checkpoint.pth", "model"),
    case("a checkpoint of noise", _bytes("checkpoint.pth", bytes(range(256)) * 9), "checkpoint.pth"),
    case("a checkpoint of nothing", _bytes("checkpoint.pth", b""), "checkpoint.pth"),
    case("metrics of noise", _bytes("metrics.jsonl", LINES), "new/model.toml", code=0),
    case("class pixels of noise", _bytes("source_classes.npz", b"PK" + bytes(99)), "new/model.toml", code=0),
    case("a config of noise", _bytes("config.toml", b"\xff\xfe"), "config.toml"),
    case("another image", _other_source, "1.png", "began"),
]
