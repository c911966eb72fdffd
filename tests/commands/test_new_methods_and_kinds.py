"""A correction method and a model kind each take one module and one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import pytest
from PIL import Image

from blda_cli.commands.options import option_of
from blda_cli.core.methods import METHODS, MethodEntry
from blda_cli.pipelines.requests import AlignRequest, options_of
from blda_cli.segmenters.kinds import KINDS, Kind

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

METHOD = """
import torch

from blda_cli.core.corrections import OffsetCorrection


def fit(settings, evidence, tau):
    offsets = torch.zeros(evidence.statistics.num_classes)
    offsets[2] = 100 * tau
    return OffsetCorrection(offsets)
"""

KIND = """
import torch

from blda_cli.segmenters.network import network_segmenter


def load(spec, device):
    return network_segmenter(spec, lambda images: images.new_zeros(len(images), 4, *images.shape[2:]), device,
                             {"kind": "toy", "path": str(spec.segmenter.path)})
"""


def test_a_method_is_one_module_and_one_line(
    run: Run, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = tmp_path / "s.h5"
    run("collect-stats", *scene.options(), "--output", stats)
    (tmp_path / "toy_method.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "toy", MethodEntry("toy_method:fit"))

    option = click.command()(option_of(options_of(AlignRequest)["method"])(lambda method: None)).params[0]
    assert isinstance(option.type, click.Choice)
    assert "toy" in option.type.choices
    monkeypatch.setattr(option_in("align", "method"), "type", option.type)

    run("align", *scene.options("--method", "toy"), "--stats", stats, "--output", scene.root / "toy")
    for key in scene.keys:
        assert (np.array(Image.open(scene.root / "toy" / "predictions" / f"{key}.png")) == 2).all()
    made = json.loads(
        run(
            "report",
            "--stats",
            stats,
            "--aligned",
            scene.root / "toy",
            "--compare",
            "--output",
            scene.root / "r",
            "--json",
        ).stdout
    )
    assert made["runs"]["toy"]["method"] == "toy, τ 1"
    assert "toy, τ 1" in [row["method"] for row in made["candidates"]]


def option_in(command: str, name: str) -> click.Parameter:
    from blda_cli.commands import cli

    return next(one for one in cli.commands[command].params if one.name == name)


def test_a_model_kind_is_one_module_and_one_line(
    run: Run, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "toy_kind.py"
    module.write_text(KIND)
    monkeypatch.syspath_prepend(tmp_path)
    import toy_kind  # type: ignore[import-not-found]

    monkeypatch.setitem(sys.modules, "blda_cli.segmenters.toy_kind", toy_kind)
    monkeypatch.setitem(KINDS, "toy", Kind("toy_kind", suffix=".toy"))
    (tmp_path / "net.toy").write_text("")
    said = run(
        "collect-stats", "--model", tmp_path / "net.toy", "--images", scene.images, "--output", tmp_path / "s.h5"
    )
    assert "4 classes" in said.stdout
