"""A corrected copy of an ONNX file, and files that are refused."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import blda_cli
from blda_cli.errors import BldaError
from tests.export.networks import make

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images to work in."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index, size in enumerate([(48, 64), (36, 52), *[(24, 32)] * 10]):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"images/{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class FirstOutput(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.network(images)
        scores: torch.Tensor = output["out"] if isinstance(output, dict) else output
        return scores


def write(network: nn.Module, opset: int = 17, outputs: list[str] | None = None) -> None:
    """Write ``net.onnx``, by the older exporter, which is quick and of any operator set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.rand(2, 3, 48, 64),), "net.onnx", dynamo=False, opset_version=opset, verbose=False,
            input_names=["pixels"], output_names=outputs or ["scores"],
            dynamic_axes={"pixels": {0: "n", 2: "h", 3: "w"}},
        )  # fmt: skip


def export(**options: Any) -> Any:
    given: dict[str, Any] = {"model": "net.onnx", "images": "images", "output": "exported", "device": "cpu"}
    return blda_cli.export(**{**given, "method": "logit-adjust", "label_source": "soft", "tau": 0.5, **options})


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("bias", "/network/head/Conv"),
        ("no bias", "/network/head/Conv"),
        ("upsampled", "/network/head/Conv"),
        ("transposed", "/network/head/ConvTranspose"),
        ("two heads", "/network/coarse/Conv"),
        ("classifier", "/network/head/Gemm"),
    ],
)
def test_offsets_in_the_last_node(name: str, node: str) -> None:
    write(FirstOutput(make(name)))
    record = export()
    assert record.format == "onnx"
    assert (record.layer, record.behind) == (node, [])
    before, after = onnx.load("net.onnx"), onnx.load("exported/network.onnx")
    onnx.checker.check_model(after)
    assert [one.op_type for one in before.graph.node] == [one.op_type for one in after.graph.node]
    assert {one.key: one.value for one in after.metadata_props}["blda_correction"].startswith("logit-adjust")
    with pytest.raises(BldaError, match=r"network\.onnx is corrected already"):
        blda_cli.align(
            model="exported/network.onnx", images="images", stats="exported.h5", output="again", device="cpu"
        )


@pytest.mark.slow
@pytest.mark.parametrize("opset", [11, 17, 20])
@pytest.mark.parametrize(
    "options",
    [{"method": "blda", "shift": "location", "label_source": "pseudo", "tau": 1.0}, {"argmax": True}],
    ids=["location", "ids"],
)
def test_more_goes_behind_it(options: dict[str, Any], opset: int) -> None:
    write(FirstOutput(make("upsampled")), opset)
    record = export(**options)
    assert record.behind == (["ArgMax"] if "argmax" in options else ["Location"])
    model = onnx.load("exported/network.onnx")
    onnx.checker.check_model(model)
    assert [one.name for one in model.graph.input] == ["pixels"]
    assert [one.name for one in model.graph.output] == ["classes" if "argmax" in options else "logits"]


def test_several_outputs_are_refused(refused_export: Callable[..., None]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make("bias")

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores = self.network(images)
            return scores, scores.relu()

    write(Two(), outputs=["scores", "more"])
    refused_export("several outputs that could be meant: scores .*, more ")
    Path("net.toml").write_text('[segmenter]\nkind = "onnx"\npath = "net.onnx"\nhead = "scores"\n')
    refused_export(r"net.onnx has 2 outputs \(scores, more\), and export corrects one", model="net.toml")


def test_quantised_files_are_refused(refused_export: Callable[[str], None]) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    write(make("bias"))
    quantization.quantize_dynamic("net.onnx", "quantised.onnx", op_types_to_quantize=["Conv"])
    Path("quantised.onnx").rename("net.onnx")
    refused_export(r"net.onnx is quantised \(DynamicQuantizeLinear\)")


def test_half_precision_is_that_of_the_file(refused_export: Callable[..., None]) -> None:
    write(make("bias"))
    refused_export("--dtype float16: an ONNX file keeps its own type", dtype="float16")


@pytest.fixture
def refused_export() -> Callable[..., None]:
    def refuse(message: str, **options: Any) -> None:
        with pytest.raises(BldaError, match=message):
            export(**options)
        assert not Path("exported").exists()
        assert not Path("exported.h5").exists()  # before anything takes long

    return refuse
