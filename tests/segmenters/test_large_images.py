"""An image that does not fit into memory is refused before it is read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blda_cli.data.images import find_images
from blda_cli.errors import BldaError
from blda_cli.runtime.memory import available_memory
from blda_cli.segmenters import base
from blda_cli.segmenters.options import InferenceOptions
from tests.segmenters.test_placement import segmenter


def test_the_memory_that_is_left_is_known_on_linux() -> None:
    left = available_memory()
    assert left is None or 1 << 20 < left < 1 << 50


@pytest.mark.parametrize(("left", "slide", "message"), [
    (40_000, None, r"a\.png is 60x50 .* 3 classes it needs about 0\.0 GiB, .* cut it into smaller images"),
    (200_000, None, "--slide 1024x1024 runs the network window by window"),
    (200_000, (32, 32), None),
    (2_000_000, None, None),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, slide: tuple[int, int] | None, message: str | None
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)).save(tmp_path / "a.png")
    images = find_images(tmp_path)
    monkeypatch.setattr(base, "_LARGE", 1000)
    monkeypatch.setattr(base, "available_memory", lambda: left)
    made = segmenter(lambda x: x)
    monkeypatch.setattr(made, "read", read := lambda file: pytest.fail("it is read") if message else file.read())
    assert made.read is read
    if message is None:
        (batch,) = made.stream(images, InferenceOptions(slide=slide))
        assert batch.logits.shape == (1, 3, 50, 60)
        return
    with pytest.raises(BldaError, match=message):
        list(made.stream(images, InferenceOptions(slide=slide)))
