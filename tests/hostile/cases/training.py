"""Checkpoints and metrics with one thing edited, then ``--resume``."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.hostile.world import SIZE, Case, World, case, copy, invoke

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


def _without(name: str) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        command = _resuming(world)
        (world.root / "new" / name).unlink()
        return command

    return act


def _set(old: str, new: str) -> Callable[[World], list[str]]:
    """``config.toml`` edited by hand before the run is to go on."""

    def act(world: World) -> list[str]:
        _resuming(world)
        path = world.root / "new" / "config.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return ["finetune", "--resume", "--output", str(path.parent), "--device", "cpu", "--quiet"]

    return act


def _net(code: str, *options: str) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        world.describe(factory="odd", arguments=f"code = {json.dumps(code)}")
        return world.finetune(*options)

    return act


def _frozen(world: World) -> list[str]:
    path = world.root / "tiny.py"
    path.write_text(path.read_text().replace("Nearest(**arguments)", "Nearest(**arguments).requires_grad_(False)"))
    return world.finetune()


def _void(world: World) -> list[str]:
    for path in world.labels.rglob("*.png"):
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(path)
    return world.finetune()


def _another_label(world: World) -> list[str]:
    assert invoke(world.finetune()).exit_code == 0
    shutil.copy(world.labels / "east" / "3.png", world.labels / "east" / "1.png")
    return world.finetune("--resume")


def _one_image_more(world: World) -> list[str]:
    assert invoke(world.finetune()).exit_code == 0
    for folder in (world.images, world.labels):
        shutil.copy(folder / "east" / "3.png", folder / "east" / "5.png")
    return world.finetune("--resume")


def _cut_image(world: World) -> list[str]:
    world.first.write_bytes(world.first.read_bytes()[:300])
    return world.finetune("--iterations", 8)


LINES = (
    b'\xff\n[]\n{"iteration": "x"}\n{"iteration": 1, "losses": 7}\n{"iteration": 1, "validation": {"iou": 3}}\n'
    + b"[" * 9999
)


def _blur(world: World) -> list[str]:
    (world.root / "config.toml").write_text("[host]\nblur_sigma = [1.15, 0.15]\n")
    return world.finetune("--config", world.root / "config.toml")


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
    case("another label", _another_label, "1.png", "began"),
    case("one image more", _one_image_more, "5.png", "began"),
    case("a record of nothing", _bytes("run.json", b""), "run.json is missing or damaged"),
    case("a record of odd data", _bytes("run.json", b'{"format": "blda-run", "data": 7}'), "run.json"),
    case("no record", _without("run.json"), "run.json is missing or damaged"),
    *(
        case(f"no {name}", _without(name), "new/model.toml", code=0)
        for name in ("config.toml", "metrics.jsonl", "checkpoint.pth", "source_classes.npz", "model.toml")
    ),
    case("iterations in config.toml", _set("iterations = 2", "iterations = 4"), "training.iterations is 2, here 4"),
    case("a word in config.toml", _set("iterations = 2", 'iterations = "two"'), "config.toml", "training.iterations"),
    case("another key in config.toml", _set("iterations = 2", "iteration = 2"), "config.toml", "iteration"),
    case("an infinite rate in config.toml", _set("learning_rate = ", "learning_rate = inf #"), "learning_rate"),
    case("lines at other steps", _set("log_every = ", "log_every = 7 #"), "new/model.toml", code=0),
    case("a batch of 10^11", lambda w: w.finetune("--batch-size", 10**11), "--batch-size", code=2),
    case("10^12 batches a step", lambda w: w.finetune("--accumulate", 10**12), "--accumulate", code=2),
    case("a crop larger than an image", lambda w: w.finetune("--crop", 999), "1.png", "--crop 16"),
    case("a rate that breaks down", lambda w: w.finetune("--learning-rate", "1e30", "--iterations", 6), "loss is"),
    case("a network that is detached", _net("scores.detach()"), "no gradient"),
    case("a network that is detached, with DACS", _net("scores.detach()", "--method", "dacs"), "no gradient"),
    case("a network in inference mode", _net("torch.inference_mode()(self.head)(images)"), "no gradient"),
    case("a network of NaN", _net("scores * float('nan')"), "not finite"),
    case("a network that leaves", _net("sys.exit(3)"), "sys.exit"),
    case("a network that is frozen", _frozen, "nothing to train"),
    case("labels of no class", _void, "labels", "--source-encoding"),
    case("an image cut short", _cut_image, "1.png"),
    case("validation without labels", lambda w: w.finetune("--val-images", w.images), "--val-labels", code=2),
    case("a model that cannot be trained", lambda w: w.finetune("--model", f"logits:{w.logits}"), "logits"),
    case("a range of blur that is reversed", _blur, "blur_sigma", "smallest"),
    case("settings that are a folder", lambda w: w.finetune("--config", w.images), "images"),
]
