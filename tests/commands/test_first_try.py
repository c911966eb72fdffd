"""A network tried without a model description of one's own: ``--set``, ``--classes``, ``--write-model``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from blda_cli.segmenters.spec import parse_model

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

Refused = Callable[..., str]
GIVEN = ["--set", "preprocessing.mean=[0.1, 0.1, 0.1]", "--set", "arguments={bias = 0.5}"]


@pytest.fixture
def options(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of a network without a TOML file, in whose folder the command runs."""
    monkeypatch.chdir(scene.root)
    Path("names.txt").write_text("road\nroof\ntree\nsky\n")
    return ["--model", "tiny:make", "--images", "images", "--device", "cpu"]


def test_what_was_said_is_kept_for_the_next_command(run: Run, refused: Refused, options: list[str]) -> None:
    collect = ["collect-stats", *options, *GIVEN, "--classes", "names.txt", "--write-model", "kept/net.toml"]
    run(*collect, "--output", "s.h5")
    kept = parse_model("kept/net.toml")
    assert kept.preprocessing.mean == (0.1, 0.1, 0.1)
    assert kept.segmenter.arguments == {"bias": 0.5}
    assert kept.classes.names == ("road", "roof", "tree", "sky")
    run(*collect, "--output", "again.h5")  # says the same
    model = ["--model", "kept/net.toml", *options[2:]]
    run("align", *model, "--stats", "s.h5", "--output", "a", "--write-model", "other/net.toml")
    assert parse_model("other/net.toml").preprocessing == kept.preprocessing
    message = refused("align", *options, "--stats", "s.h5", "--output", "b", "--write-model", "kept/net.toml")
    assert message == (
        "--write-model: kept/net.toml exists already and differs in segmenter.arguments, preprocessing.mean, "
        "classes.names: remove it, or give another name"
    )
    message = refused("align", *options, "--output", "b", "--write-model", "names.txt")
    assert message == "--write-model: names.txt exists already and is no model description: give another name"
    assert parse_model("kept/net.toml") == kept
    run("export", *model, "--stats", "s.h5", "--output", "e", "--write-model", "third.toml")
    assert parse_model("third.toml").segmenter.arguments == {"bias": 0.5}
    check = ["check", *options, "--set", "color=bgr", "--classes", "names.txt", "--write-model", "third.toml"]
    assert "--overwrite" in refused(*check)
    run(*check, "--overwrite")
    assert parse_model("third.toml").classes.names == kept.classes.names


HALVES = """
import torch.nn.functional as F
from torch import nn

from tiny import Nearest


class Halves(Nearest):
    def forward(self, images):
        return super().forward(self.norm(images) + 0 * F.interpolate(F.max_pool2d(images, 4), scale_factor=4))


def make():
    network = Halves()
    network.norm = nn.BatchNorm2d(3)
    network.norm.running_mean.fill_(0.1)
    return network
"""


def test_a_network_that_takes_the_images_needs_no_more_for_their_smaller_copies(run: Run, options: list[str]) -> None:
    Path("halves.py").write_text(HALVES)
    model = ["--model", "halves:make", *options[2:], "--classes", "names.txt"]
    result = run("align", *model, "--output", "a")
    assert "padded to multiples of 4: the network fails on " in " ".join(result.stderr.split())
    checked = json.loads(run("check", *model, "--json", "--write-model", "net.toml").stdout)
    assert "multiple_of = 4" in {one["finding"]: one["text"] for one in checked["remarks"]}["sides"]
    assert parse_model("net.toml").preprocessing.multiple_of == 4
    assert "padded to multiples" not in run("align", "--model", "net.toml", *options[2:], "--output", "b").stderr


def test_a_description_that_fails_is_not_kept(run: Run, refused: Refused, options: list[str]) -> None:
    align = ["align", *options, "--output", "a", "--write-model", "net.toml"]
    refused(*align, "--set", "arguments={bias = nan}")
    assert not Path("net.toml").exists()
    run(*align)
    message = refused("align", "--model", "no_such:make", *options[2:], "--output", "b", "--write-model", "net.toml")
    assert "differs in segmenter.factory" in message  # before the network is made


def test_a_mismatch_with_statistics_is_named(run: Run, refused: Refused, options: list[str]) -> None:
    run("collect-stats", *options, *GIVEN, "--classes", "names.txt", "--output", "s.h5")
    align = ["align", *options, "--stats", "s.h5", "--output", "a"]
    classes = ["--classes", "names.txt"]
    message = refused(*align, *classes, *GIVEN[2:])
    assert "it differs in preprocessing.mean ([0.1, 0.1, 0.1] and " in message
    given = "--set 'preprocessing.mean=[0.1, 0.1, 0.1]' --set 'arguments={bias = 0.5}' --classes names.txt"
    assert f"give {given} as it was collected with, or --force" in message
    Path("others.txt").write_text("road\nhouse\ntree\nsky\n")
    message = refused(*align, *GIVEN, "--classes", "others.txt")
    assert 'it differs in classes[1] ("roof" and "house")' in message
    run(*align, *GIVEN, *classes)


def test_suggested_commands_have_what_was_said(run: Run, options: list[str]) -> None:
    run("collect-stats", *options, *GIVEN, "--every", 2, "--classes", "names.txt", "--output", "s.h5")
    report = json.loads(run("report", "--stats", "s.h5", "--json", "--output", "r").stdout)
    command = report["next_steps"][0]["command"]
    said = "--set 'preprocessing.mean=[0.1, 0.1, 0.1]' --set 'arguments={bias = 0.5}' --classes names.txt"
    assert command.startswith(f"blda align --model tiny:make {said} --images images --every 2")
    kept = ["--classes", "names.txt", "--every", 2, "--write-model", "net.toml"]
    run("collect-stats", *options, *GIVEN, *kept, "--output", "kept.h5")
    report = json.loads(run("report", "--stats", "kept.h5", "--json", "--output", "k").stdout)
    assert report["next_steps"][0]["command"].startswith("blda align --model net.toml --images images --every 2")
