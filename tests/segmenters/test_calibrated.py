from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

fiducio = pytest.importorskip("fiducio")

from blda_cli.data.classes import class_set  # noqa: E402
from blda_cli.data.pillow_images import PillowImage  # noqa: E402
from blda_cli.data.source import ImageSource  # noqa: E402
from blda_cli.errors import BldaError  # noqa: E402
from blda_cli.segmenters.base import Segmenter  # noqa: E402
from blda_cli.segmenters.calibrated import calibrated  # noqa: E402
from blda_cli.segmenters.options import InferenceOptions  # noqa: E402

C = 3


class Fixed(Segmenter):
    """Gives the same logits for every file."""

    def read(self, file: ImageSource) -> np.ndarray:
        return 3 * np.random.default_rng(0).normal(size=(C, 8, 8)).astype(np.float32)

    def logits(self, arrays: Tensor, *_: object) -> Tensor:
        return arrays


def segmenter(classes: int = C) -> Fixed:
    return Fixed(class_set([f"class {index}" for index in range(classes)]), {"kind": "fixed"}, torch.device("cpu"))


def saved(path: Path, input_type: str) -> Path:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(4, C, 8, 8, generator=generator)
    labels = torch.multinomial(logits.movedim(1, -1).softmax(-1).sqrt().view(-1, C), 1, generator=generator)
    calibrator = fiducio.VectorScaling(input_type=input_type)
    calibrator.fit(logits if input_type == "logits" else logits.softmax(dim=1), labels.view(4, 8, 8))
    fiducio.save_calibrator(calibrator, path)
    return path


@pytest.mark.parametrize("input_type", ["logits", "probs"])
def test_logits_are_the_log_of_what_the_calibrator_gives(tmp_path: Path, input_type: str) -> None:
    path = saved(tmp_path / "calibrator.pt", input_type)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    files = [PillowImage(tmp_path / "a.png", "a")]
    (plain,) = segmenter().stream(files, InferenceOptions())
    (batch,) = calibrated(segmenter(), path).stream(files, InferenceOptions())
    inputs = plain.logits if input_type == "logits" else plain.logits.softmax(dim=1)
    expected = fiducio.load_calibrator(path).transform(inputs)
    assert torch.allclose(batch.logits.softmax(dim=1), expected, atol=1e-6)
    assert not torch.allclose(batch.logits.softmax(dim=1), plain.logits.softmax(dim=1), atol=1e-2)


def test_the_identity_tells_calibrated_logits_from_others(tmp_path: Path) -> None:
    path = saved(tmp_path / "calibrator.pt", "logits")
    assert calibrated(segmenter(), path).identity != segmenter().identity


def test_a_calibrated_network_keeps_the_note_of_its_norms(tmp_path: Path) -> None:
    """Else its norm distance would be taken from norms that hold the target's statistics already."""
    path, adapted = saved(tmp_path / "calibrator.pt", "logits"), segmenter()
    adapted.adapted_norms = True
    assert calibrated(adapted, path).adapted_norms
    assert not calibrated(segmenter(), path).adapted_norms


def test_a_calibrator_of_other_classes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "calibrator.pt", "logits")
    with pytest.raises(BldaError, match="calibrates 3 classes, the model has 4"):
        calibrated(segmenter(4), path)


def test_what_is_no_calibrator_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"nothing")
    for path in (tmp_path / "x.pt", tmp_path / "missing.pt"):
        with pytest.raises(BldaError) as caught:
            calibrated(segmenter(), path)
        assert "\n" not in str(caught.value)
