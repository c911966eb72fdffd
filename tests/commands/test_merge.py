from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from blda_cli.core.choices import LabelSource

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

Refused = Callable[..., str]

SOURCES = [part for source in LabelSource for part in ("--label-source", source)]


@pytest.fixture
def halves(run: Run, scene: Scene) -> list[Path]:
    """Statistics of the two folders of images, with their common names."""
    paths = []
    for side in ("east", "west"):
        pattern = f"{scene.images}/*{side[1:]}/*.png"
        paths.append(scene.root / f"{side}.h5")
        run(
            *("collect-stats", "--model", scene.model, "--images", pattern, "--labels", scene.labels),
            *("--device", "cpu", "--output", paths[-1], "--quiet", *SOURCES),
        )
    return paths


def test_halves_add_up_to_the_whole_bit_for_bit(run: Run, scene: Scene, halves: list[Path]) -> None:
    whole, merged = scene.root / "whole.h5", scene.root / "merged.h5"
    run("collect-stats", *scene.options(), "--labels", scene.labels, *SOURCES, "--output", whole)
    result = run("merge", *halves, "--output", merged)
    assert result.stdout == f"{merged}: 6 images, 15,936 pixels\n"
    names: list[str] = []
    with h5py.File(whole) as one, h5py.File(merged) as other:
        one.visit(names.append)
        datasets = [name for name in names if isinstance(one[name], h5py.Dataset) and name != "provenance"]
        assert {"cells/soft/counts", "confusion", "sample/logits"} <= set(datasets)
        for name in datasets:
            np.testing.assert_array_equal(one[name][()], other[name][()], err_msg=name)
        assert {name: str(value) for name, value in one.attrs.items()} == {
            name: str(value) for name, value in other.attrs.items()
        }


def test_statistics_of_other_models_or_classes_are_refused(
    run: Run, refused: Refused, scene: Scene, halves: list[Path]
) -> None:
    output = scene.root / "merged.h5"
    for name, arguments, classes, difference in (
        ("bias", "bias = 0.1", ["road", "tree", "car", "sky"], "arguments.bias"),
        ("names", "", ["road", "tree", "car", "lake"], "classes"),
    ):
        other = scene.root / f"{name}.h5"
        model = scene.describe(f"{name}.toml", arguments=arguments, names=classes)
        run("collect-stats", *scene.options(model=model), "--labels", scene.labels, "--output", other)
        message = refused("merge", halves[0], other, "--output", output)
        assert f"{other} does not go with {halves[0]}: they differ in {difference}" in message
    assert not output.exists()


def test_no_image_counts_twice(run: Run, refused: Refused, scene: Scene, halves: list[Path]) -> None:
    output = scene.root / "merged.h5"
    assert "named twice" in refused("merge", halves[0], halves[0], "--output", output)
    copy = scene.root / "copy.h5"
    copy.write_bytes(halves[0].read_bytes())
    assert "both count image east/001" in refused("merge", *halves, copy, "--output", output)
    assert not output.exists()


def test_outputs_and_inputs_that_are_not_what_they_should_be(
    run: Run, refused: Refused, scene: Scene, halves: list[Path]
) -> None:
    assert "exists already" in refused("merge", *halves, "--output", halves[0])
    assert "no such statistics file" in refused("merge", halves[0], "none.h5", "--output", scene.root / "m.h5")
    assert "is no file but a folder" in refused("merge", *halves, "--output", scene.root, "--overwrite")
    refused("merge", "--output", scene.root / "m.h5", code=2)
    run("merge", *halves, "--output", halves[0], "--overwrite")
    with h5py.File(halves[0]) as file:
        assert file.attrs["images"] == 6


def test_pictures_of_confidence_are_joined_or_said_to_be_missing(run: Run, scene: Scene) -> None:
    run("collect-stats", *scene.options(), "--output", scene.root / "s.h5")
    shards = [scene.root / f"aligned.{number}" for number in (1, 2)]
    align = ["align", *scene.options(), "--stats", scene.root / "s.h5", "--confidence"]
    for number, shard in enumerate(shards, start=1):
        run(*align, "--shard", f"{number}/2", "--output", shard)
    said = run("merge", *shards, "--output", scene.root / "whole").stderr
    assert "confidence" not in said
    found = {
        path.relative_to(shard): path.read_bytes() for shard in shards for path in shard.glob("confidence/**/*.png")
    }
    assert len(found) == 6
    assert all((scene.root / "whole" / path).read_bytes() == picture for path, picture in found.items())
    shutil.rmtree(shards[1] / "confidence")
    said = run("merge", *shards, "--output", scene.root / "without").stderr
    assert f"pictures of confidence are left out: {shards[1]} has none" in said
    assert not (scene.root / "without" / "confidence").exists()


def test_a_shard_without_images_lacks_no_pictures(run: Run, scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(next(scene.images.rglob("*.png")), tmp_path / "one" / "a.png")
    options = ["--model", scene.model, "--images", tmp_path / "one", "--device", "cpu"]
    run("collect-stats", *options, "--output", tmp_path / "s.h5")
    shards = [tmp_path / f"aligned.{number}" for number in (1, 2)]
    for number, shard in enumerate(shards, start=1):
        arguments = ["--stats", tmp_path / "s.h5", "--confidence", "--shard", f"{number}/2", "--output", shard]
        run("align", *options, *arguments)
    said = run("merge", *shards, "--output", tmp_path / "whole").stderr
    assert "confidence" not in said
    assert (tmp_path / "whole" / "confidence" / "a.png").is_file()
