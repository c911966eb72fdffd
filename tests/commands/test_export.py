"""``blda export``: what it writes, runs without blda, and is known as corrected to every command."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.commands.conftest import Run, Scene

Refused = Callable[..., str]

TAU = ("--tau", "1")


def options(scene: Scene, *more: Any, model: str | Path | None = None) -> list[str]:
    return scene.options(*map(str, more), model=None if model is None else str(model))


@pytest.fixture
def stats(scene: Scene, run: Run) -> Path:
    path = scene.root / "stats.h5"
    run("collect-stats", *options(scene, "--output", path, "--quiet"))
    return path


@pytest.fixture
def aligned(scene: Scene, run: Run, stats: Path) -> dict[str, np.ndarray]:
    """What ``blda align`` predicts of every image."""
    run("align", *options(scene, "--stats", stats, *TAU, "--output", scene.root / "aligned", "--quiet"))
    folder = scene.root / "aligned" / "predictions"
    return {key: np.array(Image.open(folder / f"{key}.png")) for key in scene.keys}


def export(run: Run, scene: Scene, *more: Any, output: str = "exported", model: str | None = None) -> Path:
    run("export", *options(scene, *TAU, "--output", scene.root / output, *more, model=model))
    return scene.root / output


def pixels(scene: Scene, key: str) -> Tensor:
    """An image as the network takes it, made without blda."""
    array = np.array(Image.open(scene.images / f"{key}.png"))
    return torch.from_numpy(array).permute(2, 0, 1)[None] / 255


def test_weights_for_the_same_factory(scene: Scene, run: Run, stats: Path, aligned: dict[str, np.ndarray]) -> None:
    folder = export(run, scene, "--stats", stats)
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "model.toml", "network.pth"]
    state = torch.load(folder / "network.pth", weights_only=True)
    network = nn.Conv2d(3, 4, 1)
    network.load_state_dict({name.removeprefix("head."): value for name, value in state.items()})
    for key, expected in aligned.items():
        rounded = (1024 * pixels(scene, key)).round() / 1024  # as the scene's network does it
        assert np.array_equal(network(rounded).argmax(dim=1)[0].numpy(), expected)
    record = json.loads((folder / "export.json").read_text())
    assert record["content"] == "blda-export"
    assert record["layer"] == "head"
    assert record["behind"] == []
    assert record["settings"]["tau"] == 1
    assert record["agreement"]["equal"] == record["agreement"]["pixels"] > 0
    assert record["statistics"]["file"] == str(stats)
    assert "in the bias of head" in record["summary"]


@pytest.mark.parametrize("name", ["torchscript", "pt2", "onnx"])
def test_programs_that_run_without_blda(
    scene: Scene, run: Run, stats: Path, aligned: dict[str, np.ndarray], name: str
) -> None:
    folder = export(run, scene, "--stats", stats, "--format", name)
    network: Callable[[Tensor], Tensor]
    if name == "torchscript":
        network = torch.jit.load(folder / "network.ts")
    elif name == "pt2":
        network = torch.export.load(folder / "network.pt2").module()
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(folder / "network.onnx")
        network = lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])  # noqa: E731
    for key, expected in aligned.items():  # of two sizes
        assert np.array_equal(network(pixels(scene, key)).argmax(dim=1)[0].numpy(), expected)
    # Every command takes it, and its predictions are those of align.
    run("align", *options(scene, "--method", "none", "--output", scene.root / "again", model=folder / "model.toml"))
    for key, expected in aligned.items():
        assert np.array_equal(np.array(Image.open(scene.root / f"again/predictions/{key}.png")), expected)


def test_class_ids_at_the_end(scene: Scene, run: Run, stats: Path, aligned: dict[str, np.ndarray]) -> None:
    folder = export(run, scene, "--stats", stats, "--format", "torchscript", "--argmax")
    assert not (folder / "model.toml").exists()
    network = torch.jit.load(folder / "network.ts")
    for key, expected in aligned.items():
        assert np.array_equal(network(pixels(scene, key))[0].numpy(), expected)


def test_other_forms_go_behind_the_network(scene: Scene, run: Run, stats: Path, refused: Refused) -> None:
    given = ("--stats", stats, "--shift", "location")
    folder = export(run, scene, *given, "--format", "torchscript")
    record = json.loads((folder / "export.json").read_text())
    assert record["layer"] is None
    assert record["behind"] == ["Location"]
    output = scene.root / "weights"
    line = refused("export", *options(scene, *TAU, *given, "--output", output))
    assert "--format state-dict holds weights alone" in line
    assert "blda location, τ 1 is more than an offset per class" in line
    assert "--format onnx or --format pt2 or --format torchscript can" in line
    assert not output.exists()


def test_half_precision(scene: Scene, run: Run, stats: Path) -> None:
    folder = scene.root / "exported"
    told = run("export", *options(scene, *TAU, "--stats", stats, "--dtype", "float16", "--json", "--output", folder))
    shown = json.loads(told.stdout)
    assert (shown["output"], shown["output_kind"], shown["dtype"]) == (str(folder), "logits", "float16")
    assert torch.load(folder / "network.pth")["head.weight"].dtype == torch.float16
    assert json.loads((folder / "export.json").read_text())["dtype"] == "float16"


def test_a_corrected_model_is_not_corrected_twice(scene: Scene, run: Run, refused: Refused, stats: Path) -> None:
    folder = export(run, scene, "--stats", stats)
    model = str(folder / "model.toml")
    assert tomllib.loads(Path(model).read_text())["segmenter"]["corrected"] == "blda negative, τ 1"
    own = scene.root / "own.h5"
    told = run("collect-stats", *options(scene, "--output", own, model=model))
    assert "the model is corrected already (blda negative, τ 1)" in told.stderr
    seen = json.loads(run("report", "--stats", own, "--output", scene.root / "report", "--json").stdout)
    assert any("corrected already (blda negative, τ 1)" in remark for remark in seen["remarks"])
    for command in ("align", "export"):
        given = options(scene, *TAU, "--stats", own, "--output", scene.root / f"second-{command}", model=model)
        line = refused(command, *given)
        assert "is corrected already (blda negative, τ 1)" in line
        assert "--method none" in line
        run(command, *given, "--force")
    plain = options(scene, "--method", "none", "--output", scene.root / "plain", model=model)
    run("export", *plain)
    kept = tomllib.loads((scene.root / "plain" / "model.toml").read_text())
    assert kept["segmenter"]["corrected"] == "blda negative, τ 1"
    again = tomllib.loads((scene.root / "second-export" / "model.toml").read_text())
    assert again["segmenter"]["corrected"] == ("blda negative, τ 1; blda negative, τ 1")


def test_statistics_are_collected_first(scene: Scene, run: Run) -> None:
    folder = export(run, scene)
    assert (scene.root / "exported.h5").is_file()
    assert json.loads((folder / "export.json").read_text())["statistics"]["file"].endswith("exported.h5")


def test_without_a_correction_it_needs_no_statistics(scene: Scene, run: Run) -> None:
    folder = scene.root / "plain"
    told = run("export", *options(scene, "--method", "none", "--format", "torchscript", "--output", folder))
    assert "Nothing is corrected" in told.stdout
    assert not (scene.root / "plain.h5").exists()
    assert "corrected" not in tomllib.loads((folder / "model.toml").read_text())["segmenter"]


GROUPS = """
[classes.groups]
ground = ["road", "tree"]
car = ["car"]
sky = ["sky"]
"""


def test_groups(scene: Scene, run: Run, refused: Refused) -> None:
    model = scene.describe("grouped.toml", more=GROUPS)
    stats = scene.root / "grouped.h5"
    run("collect-stats", *options(scene, "--output", stats, model=model))
    run("align", *options(scene, *TAU, "--stats", stats, "--output", scene.root / "aligned", model=model))
    classes = export(run, scene, "--stats", stats, "--format", "torchscript", model=model, output="classes")
    groups = export(run, scene, "--stats", stats, "--format", "torchscript", "--groups", model=model, output="groups")
    assert json.loads((classes / "export.json").read_text())["layer"] == "head"
    assert tomllib.loads((groups / "model.toml").read_text())["classes"]["names"] == ["ground", "car", "sky"]
    for key in scene.keys:
        expected = np.array(Image.open(scene.root / f"aligned/predictions/{key}.png"))
        logits = torch.jit.load(classes / "network.ts")(pixels(scene, key))
        assert logits.shape[1] == 4
        together = torch.stack([logits[:, :2].logsumexp(dim=1), logits[:, 2], logits[:, 3]], dim=1)
        assert np.array_equal(together.argmax(dim=1)[0].numpy(), expected)
        assert np.array_equal(
            torch.jit.load(groups / "network.ts")(pixels(scene, key)).argmax(dim=1)[0].numpy(), expected
        )
    line = refused(
        "export", *options(scene, "--stats", stats, "--shift", "location", "--tau", 1, "--format", "torchscript",
        "--output", scene.root / "x", model=model),
    )  # fmt: skip
    assert "--groups makes the groups its outputs" in line
    assert "--groups: the model's description has no [classes.groups]" in refused(
        "export", *options(scene, "--format", "torchscript", "--groups", "--output", scene.root / "x")
    )


@pytest.mark.parametrize(
    ("wanted", "code", "message"),
    [
        (("--flip",), 2, "--flip: no format holds windows, scales or flips"),
        (("--slide", "32x32"), 2, "--slide: no format holds windows"),
        (("--scales", "0.5,1"), 2, "--scales: no format holds"),
        (("--preset", "strong"), 2, "--preset strong averages views, which no format holds"),
        (("--calibrator", "c.pt"), 2, "--calibrator: no format holds a calibrator"),
        (("--shard", "1/2"), 2, "--shard does nothing for one network"),
        (("--density", "mixture"), 2, "--density does nothing with --method blda"),
        (("--format", "huggingface"), 1, "--format huggingface cannot be made of a model of kind python"),
        (("--argmax",), 1, "--argmax: --format state-dict holds weights alone"),
        (("--stats", "{root}/none.h5"), 1, "none.h5"),
    ],
)
def test_what_cannot_be_exported(
    scene: Scene, refused: Refused, wanted: tuple[str, ...], code: int, message: str
) -> None:
    given = [option.format(root=scene.root) for option in wanted]
    assert message in refused("export", *options(scene, *given, "--output", scene.root / "exported"), code=code)
    assert not (scene.root / "exported").exists()


def test_outputs_that_are_there(scene: Scene, run: Run, refused: Refused, stats: Path) -> None:
    folder = export(run, scene, "--stats", stats)
    given = options(scene, *TAU, "--stats", stats, "--output", folder)
    assert "holds an export already: --overwrite replaces it" in refused("export", *given)
    run("export", *given, "--overwrite", "--format", "torchscript")
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "model.toml", "network.ts"]
    (scene.root / "file").write_text("")
    line = refused("export", *options(scene, "--stats", stats, "--output", scene.root / "file"))
    assert "is no folder" in line
    assert "holds other things" in refused("export", *options(scene, "--stats", stats, "--output", scene.images))
    assert not [path for path in scene.root.iterdir() if path.name.startswith(".")]


def test_statistics_of_another_model(scene: Scene, refused: Refused, stats: Path) -> None:
    model = scene.describe("other.toml", arguments="bias = 0.0")
    line = refused("export", *options(scene, "--stats", stats, "--output", scene.root / "x", model=model))
    assert "was made with another model or preprocessing" in line


def test_ready_made_logits_have_no_network(scene: Scene, refused: Refused) -> None:
    (scene.root / "logits").mkdir()
    for key in scene.keys:
        path = scene.root / "logits" / f"{key}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.zeros((4, 8, 8), np.float32))
    line = refused("export", *options(scene, "--output", scene.root / "x", model=f"logits:{scene.root}/logits"))
    assert "ready-made logits come without a network" in line


def test_a_network_that_traces_wrongly_is_not_written(scene: Scene, refused: Refused, stats: Path, run: Run) -> None:
    # It adds to the last class by how bright the image is, with an ``if`` that tracing does not see.
    (scene.root / "odd.py").write_text(
        "import torch\nfrom tiny import Nearest\n\n\nclass Odd(Nearest):\n    def forward(self, images):\n"
        "        scores = super().forward(images)\n"
        "        return scores if images.shape[3] == 64 else scores.flip(1)\n\n\ndef make():\n    return Odd()\n"
    )
    model = scene.describe("odd.toml", factory="odd:make")
    own = scene.root / "odd.h5"
    run("collect-stats", *options(scene, "--output", own, model=model))
    given = options(scene, "--stats", own, "--format", "torchscript", "--output", scene.root / "x", model=model)
    assert "its predictions are not those of blda align" in refused("export", *given)
    assert not (scene.root / "x").exists()
