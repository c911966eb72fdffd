import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from blda_cli.errors import BldaError
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model

CPU = torch.device("cpu")
Reference = Callable[[nn.Module, Tensor], Tensor]
DYNAMIC = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)


class ClassNumbers(nn.Module):
    """Adds to each class's logit its number, made anew in each run and so on a device that is written down."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        out = self.body(images)
        return {"out": out + torch.arange(out.shape[1], device=images.device).view(1, -1, 1, 1)}


def export(net: nn.Module, file: Path, shape: tuple[int, ...] = (2, 3, 32, 48), dynamic: Any = None) -> str:
    torch.export.save(torch.export.export(net, (torch.randn(shape),), dynamic_shapes=dynamic), file)
    return str(file)


def load(model: str) -> NetworkSegmenter:
    segmenter = load_segmenter(parse_model(model), CPU)
    assert isinstance(segmenter, NetworkSegmenter)
    return segmenter


def test_of_any_size_the_logits_are_the_networks_own(
    tmp_path: Path, tiny_net: nn.Module, pixels: Tensor, reference: Reference
) -> None:
    segmenter = load(export(tiny_net, tmp_path / "net.pt2", dynamic=DYNAMIC))
    torch.testing.assert_close(segmenter.logits(pixels), reference(tiny_net, pixels))
    assert not any("only" in note or "batches" in note for note in segmenter.notes)
    assert segmenter.identity["path"] == "net.pt2"
    assert str(tmp_path) not in repr(segmenter.identity)


def test_a_fixed_size_and_batch_are_met(tmp_path: Path, tiny_net: nn.Module, pixels: Tensor) -> None:
    segmenter = load(export(ClassNumbers(tiny_net), tmp_path / "net.pt2", (2, 3, 32, 48)))
    three = torch.cat([pixels, pixels[:1] // 2])
    x = F.interpolate(three.permute(0, 3, 1, 2).float(), (32, 48), mode="bilinear", antialias=True) / 255
    with torch.no_grad():
        out = tiny_net(x) + torch.arange(5.0).view(5, 1, 1)
    torch.testing.assert_close(segmenter.logits(three), F.interpolate(out, (50, 70), mode="bilinear"))
    assert any("32x48" in note and "resized" in note for note in segmenter.notes)
    assert any("2 at a time" in note for note in segmenter.notes)


def test_sides_that_must_be_multiples_are_padded_and_the_logits_cut(
    tmp_path: Path, tiny_net: nn.Module, pixels: Tensor
) -> None:
    multiples = ({0: Dim("n", max=9), 2: 8 * Dim("h", max=99), 3: 8 * Dim("w", max=99)},)
    segmenter = load(export(tiny_net, tmp_path / "net.pt2", dynamic=multiples))
    x = F.pad(pixels.permute(0, 3, 1, 2).float() / 255, (0, 2, 0, 6))
    with torch.no_grad():
        out = F.interpolate(tiny_net(x), (56, 72), mode="bilinear")
    torch.testing.assert_close(segmenter.logits(pixels), out[..., :50, :70])


def test_a_device_written_into_the_program_is_changed(
    tmp_path: Path, tiny_net: nn.Module, pixels: Tensor, reference: Reference
) -> None:
    program = torch.export.export(ClassNumbers(tiny_net), (torch.randn(2, 3, 32, 48),), dynamic_shapes=DYNAMIC)
    baked = [node for node in program.graph.nodes if "device" in node.kwargs]
    assert baked
    for node in baked:
        node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    torch.export.save(program, tmp_path / "net.pt2")
    expected = reference(tiny_net, pixels) + torch.arange(5.0).view(5, 1, 1)
    torch.testing.assert_close(load(str(tmp_path / "net.pt2")).logits(pixels), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here a file from a GPU can be loaded")
def test_a_file_from_a_gpu_says_how_to_move_it(tmp_path: Path, tiny_net: nn.Module) -> None:
    export(tiny_net, tmp_path / "cpu.pt2")
    with zipfile.ZipFile(tmp_path / "cpu.pt2") as source, zipfile.ZipFile(tmp_path / "gpu.pt2", "w") as target:
        for record in source.infolist():
            content = source.read(record)
            if record.filename.endswith("weights_config.json"):
                content = json.dumps(json.loads(content)).replace('"type": "cpu"', '"type": "cuda"').encode()
            target.writestr(record.filename.replace("cpu/", "gpu/"), content)
    with pytest.raises(BldaError, match=r"exported on a GPU.*move_to_device_pass"):
        load(str(tmp_path / "gpu.pt2"))


def test_what_is_no_exported_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BldaError, match="no such file"):
        load(str(tmp_path / "none.pt2"))
    (tmp_path / "bad.pt2").write_bytes(b"PK nothing")
    with pytest.raises(BldaError, match=r"not a file of torch\.export\.save"):
        load(str(tmp_path / "bad.pt2"))
    with pytest.raises(BldaError, match=r"takes \[\[4, 7\]\]; one input \[N, 3, H, W\] is needed"):
        load(export(nn.Linear(7, 2), tmp_path / "net.pt2", (4, 7)))


def test_it_cannot_be_trained(tmp_path: Path, tiny_net: nn.Module) -> None:
    with pytest.raises(BldaError, match="kind exported cannot be trained, nor its norms changed: give the network"):
        _ = load(export(tiny_net, tmp_path / "net.pt2")).module
