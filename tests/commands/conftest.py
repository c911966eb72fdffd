import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from blda_cli.commands import cli
from tests.scene import CLASSES, COLORS

# The nearest colour by a 1x1 convolution, biased towards roads.
# TINY_SIGNAL=2@3 has it send its own process signal 2 in the third call.
NETWORK = f"""
import os

import torch
from torch import nn

COLORS = torch.tensor({COLORS.tolist()}) / 255


class Nearest(nn.Module):
    def __init__(self, sharpness=12.0, bias=0.9, outputs=4):
        super().__init__()
        self.head = nn.Conv2d(3, outputs, 1)
        self.calls = 0
        with torch.no_grad():
            colors = COLORS[torch.arange(outputs) % 4]
            self.head.weight.copy_(2 * sharpness * colors[:, :, None, None])
            self.head.bias.copy_(-sharpness * colors.square().sum(dim=1))
            self.head.bias[0] += bias
            for values, unit in ((self.head.weight, 64), (self.head.bias, 2**16)):
                values.copy_((unit * values).round() / unit)

    def forward(self, images):
        self.calls += 1
        number, _, call = os.environ.get("TINY_SIGNAL", "").partition("@")
        if number and int(call) == self.calls:
            os.kill(os.getpid(), int(number))
        # Of few bits, so that every sum is exact: logits do not depend on the batch's size or the processor.
        return self.head((1024 * images).round() / 1024)


def make(**arguments):
    return Nearest(**arguments)


def broken(**_):
    return lambda images: torch.full((len(images), 4, *images.shape[2:]), float("nan"))
"""

TOML = """
[segmenter]
kind = "python"
factory = "{factory}"
arguments = {{{arguments}}}

[classes]
names = {names}

[labels]
encoding = "ids"
"""


@dataclass(frozen=True)
class Scene:
    """A folder with drawn street scenes, their labels and a network that knows the colours.

    Attributes:
        root: holds ``images/``, ``labels/`` and ``tiny.toml``.
    """

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def labels(self) -> Path:
        return self.root / "labels"

    @property
    def model(self) -> str:
        return str(self.root / "tiny.toml")

    @property
    def keys(self) -> list[str]:
        return sorted(path.relative_to(self.images).with_suffix("").as_posix() for path in self.images.rglob("*.png"))

    def describe(
        self, name: str, factory: str = "tiny:make", arguments: str = "", names: Sequence[str] = CLASSES, more: str = ""
    ) -> str:
        """Write another description of the network; returns its path."""
        path = self.root / name
        path.write_text(TOML.format(factory=factory, arguments=arguments, names=json.dumps(list(names))) + more)
        return str(path)

    def options(self, *more: str, model: str | None = None) -> list[str]:
        return ["--model", model or self.model, "--images", str(self.images), "--device", "cpu", *more]


def draw(folder: Path, count: int, sizes: Sequence[tuple[int, int]], seed: int = 0) -> None:
    """Blocks of classes in their colours, with noise, in two sub-folders."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        blocks = generator.choice(4, size=(height // 4, width // 4), p=[0.4, 0.3, 0.1, 0.2])
        labels = blocks.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
        pixels = (COLORS[labels] + generator.normal(0, 45, (*labels.shape, 3))).clip(0, 255).astype(np.uint8)
        labels[0, :2] = 255
        name = f"{'east' if index % 2 else 'west'}/{index:03}.png"
        for kind, array in (("images", pixels), ("labels", labels)):
            path = folder / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


@pytest.fixture(scope="session")
def _scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scene")
    draw(root, 6, [(48, 64), (40, 56)])
    (root / "tiny.py").write_text(NETWORK)
    Scene(root).describe("tiny.toml")
    return root


@pytest.fixture
def scene(_scene: Path, tmp_path: Path) -> Scene:
    """A copy that a test may change."""
    import shutil

    shutil.copytree(_scene, tmp_path / "scene")
    return Scene(tmp_path / "scene")


@pytest.fixture
def drawn() -> Callable[..., None]:
    return draw


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs a command in this process, as ``run("align", ..., code=0)``."""

    def invoke(*arguments: Any, code: int | None = 0, env: Mapping[str, str] | None = None) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments], env=env, prog_name="blda")
        unexpected = result.exception is not None and not isinstance(result.exception, SystemExit)
        assert not unexpected, result.exc_info
        assert code is None or result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs a command that must fail; returns its one line, without ``blda: ``."""

    def invoke(*arguments: Any, code: int = 1) -> str:
        result = run(*arguments, code=code)
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        if code == 2:
            assert lines[0].startswith("Usage: blda")
            return lines[-1]
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("blda: ")
        return lines[0].removeprefix("blda: ")

    return invoke


@pytest.fixture
def process() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs ``blda`` as a process of its own; ``before`` is Python to run first."""

    def start(
        *arguments: Any, before: str = "", env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        code = ["-c", f"{before}\nfrom blda_cli.__main__ import main\nmain()"] if before else ["-m", "blda_cli"]
        return subprocess.run(
            [sys.executable, *code, *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return start


@pytest.fixture
def torchrun() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs ``blda`` in two processes of ``torchrun``."""

    def start(*arguments: Any) -> "subprocess.CompletedProcess[str]":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "blda_cli"]
        return subprocess.run(
            [sys.executable, *launcher, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
        )

    return start


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    return contents
