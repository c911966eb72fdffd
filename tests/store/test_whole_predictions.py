"""Predictions that were written part by part, in one file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blda_cli.data import divided_images
from blda_cli.data.classes import class_set
from blda_cli.data.images import find_images
from blda_cli.store.whole_predictions import divided, read_whole, write_whole


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_run_stopped_while_it_removes_the_parts_goes_on(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the file already is not lost."""
    if suffix == "tif":
        pytest.importorskip("rasterio", reason="the extra geo is not installed")
    monkeypatch.setattr(divided_images, "BLOCK", 32)
    monkeypatch.setattr(divided_images, "LARGE", 1000)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (40, 60, 3)).astype(np.uint8)).save(tmp_path / f"x.{suffix}")
    (parts,) = divided(find_images(tmp_path))
    written = tmp_path / "predictions"
    values = {key: generator.integers(0, 3, part.size()).astype(np.uint8) for key, part in parts.items()}
    (written / "x").mkdir(parents=True)
    for key, of_part in values.items():
        Image.fromarray(of_part).save(written / f"{key}.png")
    last = (written / "x" / "001-001.png").read_bytes()
    classes = class_set(("road", "tree", "sky"))
    write_whole(written, parts, classes)
    (written / "x").mkdir()
    (written / "x" / "001-001.png").write_bytes(last)
    write_whole(written, parts, classes)
    assert [path.name for path in written.iterdir()] == [f"x.{suffix}"]
    for key, part in parts.items():
        np.testing.assert_array_equal(read_whole(written, part), values[key])
