"""The recipes of docs/export.md, run as they stand in processes that have no blda."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import blda_cli
from blda_cli.data.images import find_images
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model

ROOT = Path(__file__).parents[2]
STREETS = ROOT / "examples" / "streets"
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def recipe(title: str) -> tuple[list[str], str]:
    """The options of a recipe's ``blda export``, and its code."""
    found = re.search(
        rf"^### {title}\n\n    blda export ([^\n]*)\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE
    )
    assert found is not None
    return found[1].split(), found[2]


def run_without_blda(code: str, folder: Path, result: str) -> np.ndarray:
    """What a recipe's variable holds at its end."""
    (folder / "recipe.py").write_text(
        f"import sys\nsys.modules['blda_cli'] = None\nimport warnings\nwarnings.simplefilter('ignore')\n{code}\n"
        f"import numpy as np\nnp.save('result.npy', np.array({result}))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "recipe.py"], cwd=folder, check=True, env={**environment, "HF_HUB_OFFLINE": "1"}, timeout=300
    )
    array: np.ndarray = np.load(folder / "result.npy")
    return array


def expected(model: str, frame: Path, stats: Path) -> Tensor:
    """What blda predicts of a frame."""
    segmenter = load_segmenter(parse_model(model), torch.device("cpu"))
    assert isinstance(segmenter, NetworkSegmenter)
    (image,) = find_images(str(frame))
    logits = segmenter.logits(torch.from_numpy(segmenter.read(image))[None])
    return blda_cli.Alignment.from_file(stats, tau=1.0).predict(logits)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds ``streets.toml`` and its network, ``frames/`` and ``frame.png``, drawn in few colours."""
    for name in ("streets.toml", "streetnet.py", "streetnet.pth"):
        shutil.copy(STREETS / name, tmp_path)
    (tmp_path / "frames").mkdir()
    generator = np.random.default_rng(0)
    for index in range(3):
        blocks = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        Image.fromarray(blocks).save(tmp_path / f"frames/{index}.png")
    shutil.copy(tmp_path / "frames/1.png", tmp_path / "frame.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("title", ["PyTorch, the same code", "PyTorch, without the code"])
def test_recipes_of_pytorch(title: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, code = recipe(title)
    monkeypatch.chdir(folder)
    blda_cli.collect_stats(model="streets.toml", images="frames", output="frames.h5", norms="source", device="cpu")
    given: dict[str, Any] = dict(zip((name.removeprefix("--") for name in options[::2]), options[1::2], strict=False))
    blda_cli.export(**given, argmax="--argmax" in options, tau=1.0, device="cpu")
    found = run_without_blda(code, folder, "classes.detach()")
    assert np.array_equal(found, expected("streets.toml", folder / "frame.png", folder / "frames.h5").numpy())


@pytest.mark.slow
def test_recipe_of_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    names = ["road", "tree", "car", "sky", "sign", "rider"]
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():  # so that every class is predicted somewhere
        model.decode_head.classifier.bias -= model(torch.rand(2, 3, 96, 128) * 4 - 2).logits.mean(dim=(0, 2, 3))
    model.save_pretrained(folder / "segformer")
    transformers.SegformerImageProcessor(size={"height": 96, "width": 128}).save_pretrained(folder / "segformer")
    options, code = recipe("transformers")
    assert options[:2] == ["--model", "hf:segformer/"]
    monkeypatch.chdir(folder)
    blda_cli.collect_stats(model="hf:segformer", images="frames", output="frames.h5", norms="source", device="cpu")
    output = options[options.index("--output") + 1]
    record = blda_cli.export(
        model="hf:segformer", images="frames", stats="frames.h5", output=output, tau=1.0, device="cpu"
    )
    assert record.layer == "decode_head.classifier"
    assert json.loads((folder / output / "config.json").read_text())["blda_correction"] == "blda negative, τ 1"
    code += f"\nclasses = np.zeros((96, 128), int) - 1\nfor index, name in enumerate({names}):\n"
    code += "    classes[masks.get(name, np.zeros((96, 128))) > 0] = index\n"
    found = run_without_blda(code, folder, "classes")
    wanted = expected("hf:segformer", folder / "frame.png", folder / "frames.h5")[0].numpy()
    assert (found == wanted).mean() > 0.9999
    # The folder itself says that it is corrected.
    assert load_segmenter(parse_model(str(folder / output)), torch.device("cpu")).corrected == "blda negative, τ 1"
