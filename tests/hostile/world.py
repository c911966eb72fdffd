"""A small world to do harm to: images, labels, a network, ready-made logits, statistics, predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from blda_cli.commands import cli
from blda_cli.core.choices import LabelSource

CLASSES = ("road", "tree", "car")
COLORS = np.array([[110, 100, 105], [60, 120, 60], [170, 60, 60]])
SIZE = (16, 20)

NETWORK = f"""
import sys

import torch
from torch import nn

COLORS = torch.tensor({COLORS.tolist()}) / 255


class Nearest(nn.Module):
    def __init__(self, bias=0.5, **_):
        super().__init__()
        self.head = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.head.weight.copy_(24 * COLORS[:, :, None, None])
            self.head.bias.copy_(-12 * COLORS.square().sum(dim=1) + torch.tensor([bias, 0, 0]))

    def forward(self, images):
        return self.head(images)


def make(**arguments):
    return Nearest(**arguments)


class Odd(Nearest):
    def __init__(self, code):
        super().__init__()
        self.code = code

    def forward(self, images):
        return eval(self.code, globals(), {{"scores": self.head(images), "images": images, "self": self}})


def odd(code):
    return Odd(code)


def leave():
    sys.exit(3)
"""

BEGUN = {f"new/{name}" for name in ("config.toml", "run.json", "source_classes.npz", "metrics.jsonl")}
"""What a training leaves that stops before its first checkpoint."""

TOML = """[segmenter]
kind = "python"
factory = "tiny:{factory}"
arguments = {{{arguments}}}

[classes]
names = {names}
"""


@dataclass(frozen=True)
class World:
    """The world of one case.

    Attributes:
        root: holds all of it.
    """

    root: Path

    def __getattr__(self, name: str) -> Path:
        """``world.images``, ``world.labels``, ``world.stats`` and so on: what lies at ``root``."""
        return self.root / {"stats": "stats.h5", "toml": "tiny.toml"}.get(name, name)

    @property
    def first(self) -> Path:
        """The first image."""
        return self.images / "east" / "1.png"

    def describe(self, *, factory: str = "make", arguments: str = "", names: Any = CLASSES, more: str = "") -> str:
        """Write the network's description anew."""
        listed = names if isinstance(names, str) else json.dumps(list(names))
        self.toml.write_text(TOML.format(factory=factory, arguments=arguments, names=listed) + more)
        return str(self.toml)

    def collect(self, *more: Any, model: str | None = None, images: Any = None, output: str = "new.h5") -> list[str]:
        """A ``collect-stats`` command."""
        how = ["--model", model or self.toml, "--images", images or self.images, "--device", "cpu", "--quiet"]
        return [*map(str, ["collect-stats", *how, "--output", self.root / output, *more])]

    def align(
        self, *more: Any, model: str | None = None, images: Any = None, output: Any = "new", stats: Any = "stats.h5"
    ) -> list[str]:
        """An ``align`` command."""
        how = ["--model", model or self.toml, "--images", images or self.images, "--device", "cpu", "--quiet"]
        given = ["--stats", self.root / stats] if stats else []
        return [*map(str, ["align", *how, *given, "--output", self.root / output, *more])]

    def report(
        self, *more: Any, stats: str = "stats.h5", aligned: str | None = "aligned", output: str = "report"
    ) -> list[str]:
        """A ``report`` command."""
        given = ["--aligned", self.root / aligned] if aligned else []
        return [*map(str, ["report", "--stats", self.root / stats, *given, "--output", self.root / output, *more])]

    def finetune(self, *more: Any, output: Any = "new", target: Any = None) -> list[str]:
        """A ``finetune`` command of two steps."""
        how = {
            "model": self.toml,
            "source-images": self.images,
            "source-labels": self.labels,
            "target-images": target or self.images,
            "crop": 8,
            "iterations": 2,
            "device": "cpu",
            "output": self.root / output,
        }
        options = [str(word) for name, value in how.items() for word in (f"--{name}", value)]
        return ["finetune", *options, "--quiet", *map(str, more)]


@dataclass(frozen=True)
class Case:
    """A command that must end in one line, or work.

    Attributes:
        name: of the case.
        act: changes the world and gives the command line.
        says: what the line names: all of these.
        code: the exit code; 0 works.
        env: variables of the environment.
    """

    name: str
    act: Callable[[World], list[str]]
    says: tuple[str, ...] = ()
    code: int = 1
    env: Mapping[str, str] = field(default_factory=dict)


def case(name: str, act: Callable[[World], list[str]], *says: str, code: int = 1, **env: str) -> Case:
    """Shorthand of `Case`."""
    return Case(name, act, says, code, env)


def invoke(arguments: list[str], env: Mapping[str, str] | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, arguments, env=dict(env or {}), prog_name="blda")


def build(root: Path) -> World:
    """Draw the world."""
    generator = np.random.default_rng(0)
    for index in range(4):
        labels = generator.choice(3, size=(SIZE[0] // 4, SIZE[1] // 4)).repeat(4, axis=0).repeat(4, axis=1)
        pixels = (COLORS[labels] + generator.normal(0, 40, (*SIZE, 3))).clip(0, 255).astype(np.uint8)
        name = f"{'east' if index % 2 else 'west'}/{index}"
        for path, array in (("images", pixels), ("labels", labels.astype(np.uint8))):
            place = root / path / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(place)
        place = root / "logits" / f"{name}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, generator.normal(size=(3, *SIZE)).astype(np.float32))
    (root / "tiny.py").write_text(NETWORK)
    world = World(root)
    world.describe()
    every_source = [part for source in LabelSource for part in ("--label-source", source)]
    for command in (
        world.collect("--labels", world.labels, "--bins", 64, *every_source, output="stats.h5"),
        world.align(output="aligned"),
    ):
        done = invoke(command)
        assert done.exit_code == 0, done.output
    return world


def copy(world: World, root: Path) -> World:
    """The world at another place: what the predictions' record says of the place is changed."""
    shutil.copytree(world.root, root)
    record = root / "aligned" / "run.json"
    record.write_text(record.read_text().replace(str(world.root), str(root)))
    return World(root)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too, but those of Python."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def check(world: World, tried: Case) -> None:
    """Run a case: exit code, one line that names the culprit, no traceback, earlier files intact, nothing half-done."""
    arguments = tried.act(world)
    before = contents(world.root)
    result = invoke(arguments, tried.env)
    unexpected = result.exception is not None and not isinstance(result.exception, SystemExit)
    assert not unexpected, result.exc_info
    assert result.exit_code == tried.code, (result.exit_code, result.output)
    after = contents(world.root)
    if tried.code == 0:
        assert all(text in result.output for text in tried.says), result.output
        return
    lines = result.stderr.splitlines()
    assert result.stdout == ""
    if tried.code == 2:
        assert lines[-1].startswith("Error: "), lines
        lines = lines[-1:]
    else:
        assert lines[-1].startswith("blda: "), lines
        assert all(line.startswith("skipped ") for line in lines[:-1]), lines
    assert all(text in lines[-1] for text in tried.says), lines[-1]
    assert len(lines[-1]) < 1000, lines[-1]
    lost = {name for name, data in before.items() if after.get(name) != data}
    assert not lost, lost
    # What was done, or begun, may be kept to go on from; nothing bears the output's name.
    made = {name for name in after.keys() - before.keys() - BEGUN if ".partial" not in name}
    assert not made, made
