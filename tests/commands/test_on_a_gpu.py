"""The commands on a CUDA device against those on the CPU: what differs is the rounding of the network's logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from blda_cli.store.statistics import StatisticsFile, read_statistics

if TYPE_CHECKING:
    from tests.commands.conftest import Run, Scene

GPU = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def both(run: Run, scene: Scene, tmp_path: Path) -> dict[str, StatisticsFile]:
    """Statistics of the scene, counted on each device."""
    sources = [option for source in ("pseudo", "soft", "ground_truth") for option in ("--label-source", source)]
    options = [*scene.options("--labels", str(scene.labels)), *sources, "--batch-size", "2"]
    for device in ("cpu", GPU):
        run("collect-stats", *options, "--device", device, "--output", tmp_path / f"{device}.h5")
    return {device: read_statistics(tmp_path / f"{device}.h5") for device in ("cpu", GPU)}


def test_the_counts_are_those_of_the_cpu_but_for_rounding(both: dict[str, StatisticsFile]) -> None:
    cpu, gpu = (both[device].statistics for device in ("cpu", GPU))
    assert (cpu.images, cpu.pixels) == (gpu.images, gpu.pixels)
    assert cpu.cells.keys() == gpu.cells.keys()
    for source, cells in cpu.cells.items():
        other = gpu.cells[source]
        assert other.limit == cells.limit
        torch.testing.assert_close(other.label_pixels().sum(), cells.label_pixels().sum(), rtol=1e-4, atol=0)
        # A logit on a bin's edge may fall into the next bin, so sums up to every bin are compared.
        off = (other.counts.cumsum(dim=2) - cells.counts.cumsum(dim=2)).abs().amax()
        assert off <= 0.01 * cpu.pixels, source
        known = cells.label_pixels() > 0
        torch.testing.assert_close(other.means()[known], cells.means()[known], rtol=0, atol=0.02)
    assert cpu.confusion is not None
    assert gpu.confusion is not None
    assert (cpu.confusion.counts - gpu.confusion.counts).abs().sum() <= 0.001 * cpu.pixels


@pytest.mark.parametrize("shift", ["negative", "location", "quantile"])
def test_the_predictions_are_those_of_the_cpu_but_for_ties(
    run: Run, scene: Scene, both: dict[str, StatisticsFile], tmp_path: Path, shift: str
) -> None:
    for device in ("cpu", GPU):
        options = ["--shift", shift, "--tau", "0.5", "--device", device, "--output", tmp_path / device]
        run("align", *scene.options(), "--stats", tmp_path / "cpu.h5", *options)
    pictures = sorted(path.relative_to(tmp_path / "cpu") for path in (tmp_path / "cpu").rglob("*.png"))
    assert pictures
    for path in pictures:
        cpu, gpu = (np.array(Image.open(tmp_path / device / path)) for device in ("cpu", GPU))
        assert (cpu != gpu).mean() <= 0.001, path
