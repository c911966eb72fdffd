from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import parse_model

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

Reference = Callable[[nn.Module, Tensor], Tensor]
# Across runtimes the order of summation differs.
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


def export(net: nn.Module, file: Path, shape: tuple[int, ...] = (2, 3, 32, 48), dynamic: Any = None) -> str:
    torch.onnx.export(net.eval(), (torch.randn(shape),), file, dynamic_shapes=dynamic, dynamo=True, verbose=False)
    return str(file)


def load(model: str) -> NetworkSegmenter:
    segmenter = load_segmenter(parse_model(model), torch.device("cpu"))
    assert isinstance(segmenter, NetworkSegmenter)
    return segmenter


def test_of_any_size_the_logits_are_the_networks_own(
    tmp_path: Path, tiny_net: nn.Module, pixels: Tensor, reference: Reference
) -> None:
    dynamic = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    segmenter = load(export(tiny_net, tmp_path / "net.onnx", dynamic=dynamic))
    torch.testing.assert_close(segmenter.logits(pixels), reference(tiny_net, pixels), **CLOSE)
    assert len(segmenter.classes) == 5
    assert not any("only" in note or "batches" in note for note in segmenter.notes)
    assert segmenter.identity["path"] == "net.onnx"


def test_a_fixed_size_and_batch_are_met(
    tmp_path: Path, tiny_net: nn.Module, pixels: Tensor, images: list[ImageSource]
) -> None:
    segmenter = load(export(tiny_net, tmp_path / "net.onnx", (1, 3, 32, 48)))
    x = F.interpolate(pixels.permute(0, 3, 1, 2).float(), (32, 48), mode="bilinear", antialias=True) / 255
    with torch.no_grad():
        expected = F.interpolate(tiny_net(x), (50, 70), mode="bilinear")
    torch.testing.assert_close(segmenter.logits(pixels), expected, **CLOSE)
    assert any("32x48" in note and "resized" in note for note in segmenter.notes)
    assert any("1 at a time" in note for note in segmenter.notes)
    (first, _) = segmenter.stream(images, InferenceOptions(batch_size=2, amp=True))
    torch.testing.assert_close(first.logits, expected, **CLOSE)
    assert any("--amp makes no difference" in note for note in segmenter.notes)


def test_a_size_that_contradicts_the_file_is_refused(tmp_path: Path, tiny_net: nn.Module) -> None:
    export(tiny_net, tmp_path / "net.onnx", (1, 3, 32, 48))
    (tmp_path / "net.toml").write_text(
        '[segmenter]\nkind = "onnx"\npath = "net.onnx"\n[preprocessing]\nsize = [64, 64]\n'
    )
    with pytest.raises(BldaError, match="takes 32x48 images only"):
        load(str(tmp_path / "net.toml"))


def test_class_ids_are_refused(tmp_path: Path, tiny_net: nn.Module, pixels: Tensor) -> None:
    class Argmax(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny_net

        def forward(self, images: Tensor) -> Tensor:
            out: Tensor = self.body(images).argmax(dim=1, keepdim=True)
            return out

    with pytest.raises(BldaError, match="class ids, not logits"):
        load(export(Argmax(), tmp_path / "net.onnx")).logits(pixels)


def test_what_is_no_onnx_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BldaError, match="no such file"):
        load(str(tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"nothing of use")
    with pytest.raises(BldaError, match="onnxruntime cannot load it"):
        load(str(tmp_path / "bad.onnx"))
    with pytest.raises(BldaError, match=r"one input of floating-point numbers \[N, 3, H, W\] is needed"):
        load(export(nn.Linear(7, 2), tmp_path / "linear.onnx", (4, 7)))
