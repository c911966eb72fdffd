"""``blda check`` and the quick look of other commands, on the network that learned drawn streets."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from draw import DAY, draw_scene
from PIL import Image

from blda_cli.commands import cli
from blda_cli.segmenters.spec import parse_model
from blda_cli.store.statistics import read_statistics

STREETS = Path(__file__).parents[2] / "examples" / "streets"
HALF = "mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]"

Write = Callable[..., str]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Four drawn streets by day with their labels, beside the network."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(4):
        image, label = draw_scene(DAY, (0, index))
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{index}.png")
    for name in ("streetnet.py", "streetnet.pth"):
        shutil.copy(STREETS / name, tmp_path)
    return tmp_path


@pytest.fixture
def model(world: Path) -> Write:
    """Writes a description of the network; returns its path."""

    def write(preprocessing: str = "", weights: str = 'weights = "streetnet.pth"', names: str = '"camvid"') -> str:
        path = world / "net.toml"
        path.write_text(
            f'[segmenter]\nkind = "python"\nfactory = "streetnet:streetnet"\n{weights}\n[preprocessing]\n'
            f'{preprocessing}\n[classes]\nnames = {names}\n[labels]\nencoding = "ids"\n'
        )
        return str(path)

    return write


RIGHT = "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]"


def run(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="blda")
    assert result.exit_code == code, result.output
    return result


def checked(world: Path, model: str, *more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run("check", "--model", model, "--images", world / "images", "--json", *more).stdout
    )
    return found


def graves(found: dict[str, Any]) -> list[str]:
    return [remark["finding"] for remark in found["remarks"] if remark["grave"]]


def test_a_right_description_is_left_alone(world: Path, model: Write) -> None:
    found = checked(world, model(RIGHT), "--labels", world / "labels")
    assert graves(found) == []
    assert found["descriptions"]["best"] == "ImageNet mean and deviation, RGB"
    assert found["model"]["network"] == "StreetNet"
    assert found["model"]["batch_norms"] == 8
    assert found["model"]["feature_layer"] == "classifier"
    assert found["input"]["channels"][0]["low"] >= (0 - 0.485) / 0.229 - 1e-6
    assert found["labels"]["mean_iou"] > 0.7
    assert sum(found["predicted_share"].values()) == pytest.approx(1)


def test_the_best_description_is_written_and_fits(world: Path, model: Write) -> None:
    wrong = model("scale = 1.0")
    found = checked(world, wrong, "--write-model", world / "best.toml")
    assert graves(found) == ["description"]
    assert "ImageNet" in found["remarks"][0]["text"]
    best = parse_model(str(world / "best.toml"))
    assert best.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    assert best.segmenter.weights == world / "streetnet.pth"
    assert graves(checked(world, str(world / "best.toml"))) == []


def test_forgotten_weights_are_named_before_anything_else(world: Path, model: Write) -> None:
    found = checked(world, model(HALF, weights=""))
    assert graves(found) == ["weights"]
    assert "--weights FILE" in found["remarks"][0]["text"]


def test_swapped_classes_are_named(world: Path, model: Write) -> None:
    for path in (world / "labels").iterdir():
        ids = np.array(Image.open(path))
        swapped = np.where(ids == 1, 3, np.where(ids == 3, 1, ids)).astype(np.uint8)
        Image.fromarray(swapped).save(path)
    found = checked(world, model(RIGHT), "--labels", world / "labels")
    assert graves(found) == ["class-order"]
    assert "building is predicted as road" in found["remarks"][0]["text"]
    assert "road is predicted as building" in found["remarks"][0]["text"]


def test_another_encoding_that_agrees_far_better_is_named(world: Path, model: Write) -> None:
    wrong = {"0": "road", "1": "sky", "2": "tree", "3": "building", "4": "car", "5": "pole"}
    lines = [f'"{value}" = "{name}"' for value, name in wrong.items()]
    path = Path(model(RIGHT))
    path.write_text(path.read_text().replace('[labels]\nencoding = "ids"', "\n".join(["[labels.mapping]", *lines])))
    found = checked(world, str(path), "--labels", world / "labels")
    assert "label-encoding" in graves(found)
    assert any("--label-encoding ids" in remark["text"] for remark in found["remarks"])


def test_what_is_written_is_whole_and_kept(world: Path, model: Write) -> None:
    options = ["check", "--model", model(RIGHT), "--images", world / "images", "--output", world / "out"]
    said = run(*options).stdout
    assert "Nothing speaks against the description." in said
    assert "told apart" in said or "clearly" in said
    page = (world / "out" / "check.html").read_text()
    assert page.count("data:image/webp;base64,") == 8
    assert "http" not in page
    sheet = Image.open(world / "out" / "overlays.png")
    assert sheet.width > 3 * 192
    assert json.loads((world / "out" / "check.json").read_text())["format_version"] == 1
    assert "--overwrite" in run(*options, code=1).stderr
    run(*options, "--overwrite")


def test_collect_align_and_report_carry_a_doubt(world: Path, model: Write) -> None:
    wrong = ["--model", model(HALF), "--images", world / "images"]
    said = run("collect-stats", *wrong, "--output", world / "s.h5").stderr
    assert "times better" in said
    assert "ImageNet mean and deviation" in said
    assert list(read_statistics(world / "s.h5").provenance.doubts) == ["description"]

    align = ["align", *wrong, "--stats", world / "s.h5", "--output", world / "out", "--overwrite"]
    assert "--force corrects all the same" in run(*align).stderr
    assert json.loads((world / "out" / "run.json").read_text())["settings"]["tau"] == 0
    assert "all the same" not in run(*align, "--tau", 0.5).stderr
    assert json.loads((world / "out" / "run.json").read_text())["settings"]["tau"] == 0.5
    assert "all the same" not in run(*align, "--force").stderr
    report = run("report", "--stats", world / "s.h5", "--output", world / "report").stdout
    assert "description may be wrong" in report

    merged = run("merge", world / "s.h5", "--output", world / "m.h5")
    assert merged.exit_code == 0
    assert list(read_statistics(world / "m.h5").provenance.all_doubts()) == ["description"]


def test_no_check_looks_at_nothing(world: Path, model: Write) -> None:
    said = run(
        "collect-stats", "--model", model(HALF), "--images", world / "images", "--output", world / "s.h5", "--no-check"
    ).stderr
    assert "times better" not in said
    assert read_statistics(world / "s.h5").provenance.doubts == {}


def test_right_descriptions_and_colours_raise_no_doubt(world: Path, model: Write) -> None:
    run("collect-stats", "--model", model(RIGHT), "--images", world / "images", "--output", world / "s.h5")
    assert read_statistics(world / "s.h5").provenance.doubts == {}


def test_statistics_of_forgotten_weights_say_so(world: Path, model: Write) -> None:
    said = run(
        "collect-stats", "--model", model(RIGHT, weights=""), "--images", world / "images", "--output", world / "s.h5"
    )
    assert "norm layers" in said.stderr
    assert list(read_statistics(world / "s.h5").provenance.doubts) == ["weights"]


def test_ready_made_logits_have_no_description(world: Path) -> None:
    (world / "logits").mkdir()
    for index in range(4):
        np.save(world / "logits" / f"{index}.npy", np.random.default_rng(index).normal(size=(3, 32, 48)))
    found = checked(world, f"logits:{world / 'logits'}")
    assert found["descriptions"] is None
    assert found["input"] is None
    refused = run(
        "check",
        "--model",
        f"logits:{world / 'logits'}",
        "--images",
        world / "images",
        "--write-model",
        world / "x.toml",
        code=1,
    )
    assert "no input to describe" in refused.stderr
