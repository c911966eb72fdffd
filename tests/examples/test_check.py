"""``blda check`` and the quick look of other commands, on the network that learned drawn streets."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from draw import DAY, draw_scene
from PIL import Image

import blda_cli
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


@pytest.fixture
def browser() -> str:
    """Chromium, where there is one."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here")
    return found


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


def test_the_measurements_are_named(world: Path, model: Write) -> None:
    said = " ".join(run("check", "--model", model(RIGHT), "--images", world / "images").stdout.split())
    assert "swapped, the misfit (norm distance times disagreement) is" in said
    assert "ruled out on cut-outs" in said
    assert "~" not in said


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


@pytest.mark.parametrize(("check", "doubts"), [("--check", ["description"]), ("--no-check", [])])
def test_a_run_folder_records_a_doubt(world: Path, model: Write, check: str, doubts: list[str]) -> None:
    run(
        *("finetune", "--model", model(HALF), "--source-images", world / "images", "--source-labels", world / "labels"),
        *("--target-images", world / "images", "--output", world / "run", "--iterations", 1, "--crop", 32, check),
    )
    assert list(json.loads((world / "run" / "run.json").read_text()).get("doubts", {})) == doubts
    assert read_statistics(world / "run" / "statistics.h5").provenance.doubts == {}  # of the trained network


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
    """Of a factory that gives the same weights each time it may be that they are meant."""
    network = world / "streetnet.py"
    seeded = "def streetnet():\n    import torch\n\n    torch.manual_seed(0)\n    return StreetNet(11)\n"
    network.write_text(f"{network.read_text()}\n\n{seeded}")
    said = run(
        "collect-stats", "--model", model(RIGHT, weights=""), "--images", world / "images", "--output", world / "s.h5"
    )
    assert "norm layers" in said.stderr
    assert list(read_statistics(world / "s.h5").provenance.doubts) == ["weights"]


@pytest.mark.parametrize("command", ["collect-stats", "align"])
def test_a_network_of_random_weights_is_refused_unless_it_is_meant(world: Path, model: Write, command: str) -> None:
    output = world / ("out.h5" if command == "collect-stats" else "out")
    given = [command, "--model", model(RIGHT, weights=""), "--images", world / "images", "--output", output]
    said = run(*given, code=1).stderr
    assert "so its weights were not loaded: give them with --weights FILE" in said
    assert "--no-check runs it as it is" in said
    assert not output.exists()
    assert not (world / "out.h5").exists()
    function = blda_cli.collect_stats if command == "collect-stats" else blda_cli.align
    with pytest.raises(blda_cli.BldaError, match="check=False runs it as it is"):
        function(model=str(world / "net.toml"), images=str(world / "images"), output=output)
    run(*given, "--no-check")
    assert output.exists()


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


def test_a_factory_and_weights_alone_lead_to_a_description_that_fits(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    options = ["--images", world / "images", "--json"]
    first = run(
        "check", "--model", "streetnet:streetnet", "--weights", "streetnet.pth", *options, "--write-model", "net.toml"
    )
    assert graves(json.loads(first.stdout)) == ["description"]
    second = json.loads(run("check", "--model", "net.toml", *options).stdout)
    assert graves(second) == []
    assert second["descriptions"]["best"] == second["descriptions"]["given"] == "ImageNet mean and deviation, RGB"


def test_images_of_twelve_bits_are_taken_as_such_and_the_description_says_it(world: Path, model: Write) -> None:
    (world / "deep").mkdir()
    for index in range(4):
        grey = np.array(Image.open(world / "images" / f"{index}.png").convert("L")).astype(np.uint16)
        Image.fromarray(grey * 16 + 15).save(world / "deep" / f"{index}.png")
    options = ["check", "--images", world / "deep", "--json"]
    first = json.loads(run(*options, "--model", model(RIGHT), "--write-model", world / "deep.toml").stdout)
    assert "bits" in graves(first)
    assert parse_model(str(world / "deep.toml")).preprocessing.bits == 12
    second = json.loads(run(*options, "--model", world / "deep.toml").stdout)
    assert "bits" not in graves(second)
    assert second["input"] == first["input"]


def folded(world: Path, factory: str) -> str:
    """A network without norms; returns its description's path."""
    (world / "plain.py").write_text(
        "import torch\n"
        "def random():\n    return torch.nn.Conv2d(3, 11, 3, padding=1)\n"
        "def seeded():\n    torch.manual_seed(0)\n    return random()\n"
    )
    path = world / "plain.toml"
    path.write_text(f'[segmenter]\nkind = "python"\nfactory = "plain:{factory}"\n[classes]\nnames = "camvid"\n')
    return str(path)


def test_without_norms_it_is_said_that_nothing_is_told(world: Path) -> None:
    found = checked(world, folded(world, "seeded"), "--write-model", world / "same.toml")
    assert found["remarks"][0]["finding"] == "unsaid"
    assert found["descriptions"]["normalisation_told"] is False
    assert found["descriptions"]["colour_order_told"] is False
    assert parse_model(str(world / "same.toml")).preprocessing == parse_model(str(world / "plain.toml")).preprocessing
    said = run("check", "--model", world / "plain.toml", "--images", world / "images").stdout
    assert "folded into the convolutions" in " ".join(said.split())


def test_weights_drawn_at_random_are_named_without_norms_too(world: Path) -> None:
    found = checked(world, folded(world, "random"))
    assert graves(found) == ["weights"]
    assert "each time it is called" in found["remarks"][0]["text"]


def test_from_python(world: Path, model: Write) -> None:
    found = blda_cli.check(model=model(HALF), images=str(world / "images"))
    assert [remark.finding for remark in found.remarks if remark.grave] == ["description"]
    assert found.comparison is not None
    assert found.comparison.best.description.name == "ImageNet mean and deviation"


def test_the_page_fits_narrow_and_wide_screens(world: Path, model: Write, browser: str) -> None:
    run("check", "--model", model(HALF), "--images", world / "images", "--output", world / "out")
    for width in (390, 1400):
        script = "<script>document.title = document.documentElement.scrollWidth + ' ' + innerWidth</script></body>"
        page = (world / "out" / "check.html").read_text().replace("</body>", script)
        (world / "probe.html").write_text(page)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
        shown = 'onload="document.title=this.contentDocument.title"'
        frame = f"<iframe src=probe.html width={width} height=900 {shown}></iframe>"
        (world / "frame.html").write_text(frame)
        flags += ["--allow-file-access-from-files", f"--user-data-dir={world / 'profile'}"]
        done = subprocess.run(
            [browser, *flags, (world / "frame.html").as_uri()], capture_output=True, text=True, check=True, timeout=120
        )
        title = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
        assert title is not None
        assert int(title[1]) <= int(title[2]) == width
