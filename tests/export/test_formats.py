"""Every format of networks of every ending, loaded by its own runtime and compared with an alignment by hand."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import blda_cli
from blda_cli.core.norms import MixedNorms, Norms
from blda_cli.errors import BldaError
from blda_cli.segmenters.outputs import find_scores, log_probabilities
from blda_cli.store.statistics import read_statistics, write_statistics
from tests.export.networks import NETWORKS, make

SIZES = [(72, 96), (72, 96), (60, 84)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images to work in."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index, (height, width) in enumerate(SIZES):
        blocks = generator.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        pixels = blocks.repeat(12, axis=0).repeat(12, axis=1) // 2 + generator.integers(0, 128, (height, width, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"images/{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def describe(name: str, more: str = "") -> str:
    """Write the description of one of the networks."""
    Path("net.toml").write_text(
        f'[segmenter]\nkind = "python"\nfactory = "tests.export.networks:make"\narguments = {{name = "{name}"}}\n'
        f'[classes]\nnames = ["a", "b", "c", "d", "e"]\n{more}'
    )
    return "net.toml"


def export(model: str, name: str, *, output: str = "exported", **options: Any) -> Any:
    given: dict[str, Any] = {"model": model, "images": "images", "format": name, "tau": 1.0, "device": "cpu"}
    given |= options if "stats" in options else {"norms": "source", **options}
    return blda_cli.export(output=output, **given)


def runner(folder: Path, name: str) -> Callable[[Tensor], Tensor]:
    """The export as a function on tensors, loaded without blda."""
    if name == "state-dict":
        network = make(json.loads((folder / "export.json").read_text())["model"]["arguments"]["name"], seed=4)
        network.load_state_dict(torch.load(folder / "network.pth"))
        return lambda images: find_scores(network(images))
    if name == "torchscript":
        return torch.jit.load(folder / "network.ts")  # type: ignore[no-any-return]
    if name == "pt2":
        program = torch.export.load(folder / "network.pt2").module()
        return lambda images: program(images)
    session = pytest.importorskip("onnxruntime").InferenceSession(folder / "network.onnx")
    return lambda images: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def images() -> list[Tensor]:
    arrays = [np.array(Image.open(path)) for path in sorted(Path("images").iterdir())]
    return [torch.from_numpy(array).permute(2, 0, 1)[None] / 255 for array in arrays]


def resized(scores: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(scores, image.shape[2:], mode="bilinear") if scores.ndim == 4 else scores


def assert_same(run: Callable[[Tensor], Tensor], name: str, probabilities: bool = False, **choices: Any) -> None:
    """The export's argmax is the alignment's prediction, of images of each size and of a batch."""
    alignment = blda_cli.Alignment.from_file("exported.h5", **{"tau": 1.0, **choices})
    network, equal, changed = make(name), [], []
    shown = images()
    for batch in (torch.cat(shown[:2]), shown[2]):
        with torch.no_grad():
            scores = resized(find_scores(network(batch)), batch)
            found = resized(run(batch), batch).argmax(dim=1)
        logits = log_probabilities(scores) if probabilities else scores
        equal.append((found == alignment.predict(logits)).flatten())
        changed.append((found != logits.argmax(dim=1)).flatten())
    assert float(torch.cat(equal).double().mean()) > 0.9999
    assert bool(torch.cat(changed).any())


QUICK = ["state-dict", "torchscript"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("pt2", "onnx")]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_offsets_in_the_last_layer(folder: Path, name: str, network: str) -> None:
    model = describe(network)
    # By soft labels, which move classes that are nowhere predicted, too.
    choices: dict[str, Any] = {"method": "logit-adjust", "label_source": "soft", "tau": 0.5}
    if name == "state-dict" and network in ("no bias", "transposed"):
        with pytest.raises(BldaError, match="head has no bias that could take the offsets"):
            export(model, name, **choices)
        return
    record = export(model, name, **choices)
    assert record.layer is not None
    assert record.behind == []
    if network != "classifier":  # of which three predictions are compared
        assert_same(runner(folder / "exported", name), network, **choices)


@pytest.mark.parametrize("network", ["probabilities", "clamped"])
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_offsets_behind_the_network(folder: Path, name: str, network: str) -> None:
    scores = 'output = "probabilities"' if network == "probabilities" else 'color = "rgb"'
    model = describe(network, f"[preprocessing]\n{scores}\n")
    if name == "state-dict":
        why = "ends in probabilities" if network == "probabilities" else "moving no layer's bias"
        with pytest.raises(BldaError, match=why):
            export(model, name)
        return
    record = export(model, name)
    assert record.behind == ["Factors" if network == "probabilities" else "Offsets"]
    assert record.output_kind == ("probabilities" if network == "probabilities" else "logits")
    described = tomllib.loads((folder / "exported/model.toml").read_text())["preprocessing"]
    assert described["output"] == record.output_kind
    assert_same(runner(folder / "exported", name), network, network == "probabilities")


@pytest.mark.parametrize("shift", ["location", "quantile"])
@pytest.mark.parametrize("name", ["torchscript", *SLOW])
def test_other_forms(folder: Path, name: str, shift: str) -> None:
    assert export(describe("bias"), name, shift=shift).behind == [shift.capitalize()]
    assert_same(runner(folder / "exported", name), "bias", shift=shift)


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_target_norms_go_into_the_batch_norms(folder: Path, name: str) -> None:
    record = export(describe("bias"), name, norms="target")
    assert record.norms["images"] == 3
    assert "statistics of 3 target images" in json.loads((folder / "exported/export.json").read_text())["summary"]
    norms = blda_cli.read_statistics(folder / "exported.h5").norms
    assert isinstance(norms, Norms)
    averages = norms.averages
    network = make("bias")
    own = network.state_dict()["body.norm.running_mean"].clone()
    network.load_state_dict(averages, strict=False)
    assert not torch.allclose(own, averages["body.norm.running_mean"])
    alignment, run = blda_cli.Alignment.from_file("exported.h5", tau=1.0), runner(folder / "exported", name)
    for image in images():
        with torch.no_grad():
            expected = alignment.predict(resized(network(image), image))
            assert torch.equal(resized(run(image), image).argmax(dim=1), expected)
    assert "adapted_norms = true" in (folder / "exported/model.toml").read_text()


@pytest.mark.parametrize("name", ["torchscript", *SLOW])
def test_groups_are_outputs_only_if_asked(folder: Path, name: str) -> None:
    model = describe("bias", '[classes.groups]\nab = ["a", "b"]\nc = ["c"]\nde = ["d", "e"]\n')
    export(model, name)
    export(model, name, groups=True, output="grouped", stats="exported.h5")
    alignment, network = blda_cli.Alignment.from_file("exported.h5", tau=1.0), make("bias")

    def grouped(logits: Tensor) -> Tensor:
        return torch.stack([logits[:, :2].logsumexp(1), logits[:, 2], logits[:, 3:].logsumexp(1)], dim=1)

    for image in images():
        with torch.no_grad():
            expected = alignment.predict(grouped(resized(network(image), image)))
            of_classes = grouped(resized(runner(folder / "exported", name)(image), image))
            of_groups = runner(folder / "grouped", name)(image)
        assert torch.equal(of_classes.argmax(dim=1), expected)
        assert of_groups.shape[1] == 3
        assert torch.equal(of_groups.argmax(dim=1), expected)


@pytest.mark.parametrize("name", ["torchscript", *SLOW])
def test_class_ids(folder: Path, name: str) -> None:
    assert export(describe("two heads"), name, argmax=True).output_kind == "classes"
    alignment, network = blda_cli.Alignment.from_file("exported.h5", tau=1.0), make("two heads")
    for image in images():
        ids = runner(folder / "exported", name)(image)
        assert ids.dtype == torch.int64
        with torch.no_grad():
            assert torch.equal(ids, alignment.predict(resized(find_scores(network(image)), image)))


@pytest.mark.parametrize("name", ["state-dict", "torchscript", *SLOW])
def test_half_precision_is_equal_but_for_ties(folder: Path, name: str) -> None:
    record = export(describe("bias"), name, dtype="float16")
    assert record.agreement.holds
    assert record.agreement.equal > 0.98 * record.agreement.pixels


@pytest.mark.slow
def test_an_onnx_file_says_what_it_takes_and_gives(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    export(describe("bias", "[preprocessing]\nmean = [0.1, 0.2, 0.3]\n"), "onnx")
    model = onnx.load(folder / "exported/network.onnx")
    onnx.checker.check_model(model)
    (given,), (result,) = model.graph.input, model.graph.output
    axes = [axis.dim_param or axis.dim_value for axis in given.type.tensor_type.shape.dim]
    assert (given.name, axes) == ("images", ["batch", 3, "height", "width"])
    assert result.name == "logits"
    assert [axis.dim_param or axis.dim_value for axis in result.type.tensor_type.shape.dim][:2] == ["batch", 5]
    held = {one.key: one.value for one in model.metadata_props}
    assert json.loads(held["classes"]) == ["a", "b", "c", "d", "e"]
    assert json.loads(held["preprocessing"])["mean"] == [0.1, 0.2, 0.3]
    assert held["blda_correction"] == "blda negative, τ 1"


@pytest.mark.parametrize("name", ["torchscript", *SLOW])
@pytest.mark.parametrize(
    "section",
    [
        "[preprocessing]\nmultiple_of = 32\n",
        "[preprocessing]\nsize = [64, 80]\n",
        '[preprocessing]\ncolor = "bgr"\nmean = [10.0, 20.0, 30.0]\nstd = [1.5, 1.0, 0.5]\nscale = 255.0\n',
        "[preprocessing]\nbands = [3, 1, 2]\n",
    ],
    ids=["padded", "resized", "scaled", "bands"],
)
def test_the_description_holds_the_preprocessing(folder: Path, name: str, section: str) -> None:
    model = describe("bias", section)
    assert export(model, name).layer == "head"
    blda_cli.align(model=model, images="images", stats="exported.h5", output="aligned", tau=1.0, device="cpu")
    blda_cli.align(model="exported/model.toml", images="images", method="none", output="again", device="cpu")
    for path in sorted(Path("aligned/predictions").iterdir()):
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(f"again/predictions/{path.name}")))
    if "multiple_of" in section or "size" in section:
        export(model, name, stats="exported.h5", argmax=True, output="ids")  # which verifies itself
    if "size" in section:
        with pytest.raises(BldaError, match="works on logits at the image's own size, but images are resized"):
            export(model, name, stats="exported.h5", output="other", shift="location")


@pytest.mark.parametrize("name", ["state-dict", "torchscript", *SLOW])
def test_channels_that_are_no_classes(folder: Path, name: str) -> None:
    model = describe("bias")
    text = Path(model).read_text().replace("[classes]", "channels = 4\n[classes]").replace(', "e"]', "]")
    Path(model).write_text(text)
    assert export(model, name).layer == "head"
    image = images()[0]
    with torch.no_grad():
        after, before = runner(folder / "exported", name)(image), make("bias")(image)
    alignment = blda_cli.Alignment.from_file("exported.h5", tau=1.0)
    if name == "state-dict":
        torch.testing.assert_close(after[:, 4], before[:, 4])
    else:
        assert after.shape[1] == 4
    expected = alignment.predict(resized(before[:, :4], image))
    assert torch.equal(resized(after[:, :4], image).argmax(dim=1), expected)


@pytest.mark.parametrize("name", ["torchscript", *SLOW])
def test_a_program_that_came_in_comes_out_corrected(folder: Path, name: str) -> None:
    plain = export(describe("upsampled"), name, method="none", tau=None, output="plain")
    assert plain.layer is None
    file = next(path for path in (folder / "plain").iterdir() if path.suffix in (".ts", ".pt2", ".onnx"))
    record = export(str(file), "same", method="logit-adjust", tau=0.5)
    assert record.format == name
    assert record.layer is not None
    assert_same(runner(folder / "exported", name), "upsampled", method="logit-adjust", tau=0.5)
    if name == "pt2":
        for other in ("onnx", "torchscript"):
            export(str(file), other, method="logit-adjust", tau=0.5, stats="exported.h5", output=other)
            assert_same(runner(folder / other, other), "upsampled", method="logit-adjust", tau=0.5)


@pytest.mark.parametrize("name", ["torchscript", *SLOW])
def test_norms_mixed_image_by_image_run_in_programs(folder: Path, name: str) -> None:
    model = describe("pooled")
    blda_cli.collect_stats(model=model, images="images", output="exported.h5", norms="source", device="cpu")
    content = read_statistics(folder / "exported.h5")
    write_statistics(folder / "exported.h5", replace(content, norms=MixedNorms(0.8)))
    record = export(model, name, stats="exported.h5", method="logit-adjust", tau=0.5, force=True)
    assert record.norms == {"weight": 0.8}
    alignment = blda_cli.Alignment.from_file("exported.h5", method="logit-adjust", tau=0.5)
    run, network = runner(folder / "exported", name), make("pooled")
    for image in images():
        with torch.no_grad(), blda_cli.InstanceNorms(network, 0.8):
            expected = alignment.predict(resized(network(image), image))
            corrected = resized(alignment.module(make("pooled"))(image), image).argmax(dim=1)
        assert torch.equal(corrected, expected)
        assert float((resized(run(image), image).argmax(dim=1) == expected).double().mean()) > 0.999
    with pytest.raises(BldaError, match="its norms mix their statistics with each image's own"):
        export(model, "state-dict", stats="exported.h5", force=True, output="weights")
