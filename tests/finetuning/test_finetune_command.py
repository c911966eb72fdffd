import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from blda_cli.commands import cli
from blda_cli.finetuning.methods import METHODS
from blda_cli.finetuning.settings import Settings

ROOT = Path(__file__).parents[2]
STREETS = ROOT / "examples" / "streets"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def tiny(project: Any, output: Path, *more: object) -> Result:
    return invoke(
        *("finetune", "--model", project.model, "--output", output, "--device", "cpu", "--quiet"),
        *("--source-images", project.folder / "day" / "images", "--source-labels", project.folder / "day" / "labels"),
        *("--target-images", project.folder / "dusk" / "images", "--crop", "32x40", "--iterations", 3),
        *more,
    )


def test_options_become_settings(project: Any, tmp_path: Path) -> None:
    result = tiny(
        *(
            project,
            tmp_path / "run",
            "--method",
            "dacs",
            "--ignore-rows",
            2,
            3,
            "--no-classmix",
            "--learning-rate",
            "1e-4",
        ),
        *("--export", "student", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["model"] == str(tmp_path / "run" / "model.toml")
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert config["training"]["crop"] == [32, 40]
    assert config["training"]["learning_rate"] == 1e-4
    assert config["host"]["ignore_rows"] == [2, 3]
    assert config["host"]["classmix"] is False
    assert config["run"]["export"] == "student"
    assert config["host"]["teacher_momentum"] == Settings().host.teacher_momentum


def test_hosts_and_the_preset_set_several_and_options_override(project: Any, tmp_path: Path) -> None:
    arguments = ("--host", "mic", "--feature-distance", 0, "--preset", "published", "--tau", 0.4)
    result = tiny(project, tmp_path / "run", *arguments)
    assert result.exit_code == 0, result.stderr
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (config["host"]["rare_class_sampling"], config["host"]["masked_consistency"]) == (True, 1.0)
    assert (config["host"]["feature_distance"], config["host"]["whole_images"]) == (0.0, False)
    assert (config["blda"]["tau"], config["run"]["target_norms"]) == (0.4, False)


def test_a_config_is_read_back_and_options_replace_it(project: Any, tmp_path: Path) -> None:
    assert tiny(project, tmp_path / "one", "--method", "dacs").exit_code == 0
    again = invoke("finetune", "--config", tmp_path / "one" / "config.toml", "--output", tmp_path / "two", "--seed", 4)
    assert again.exit_code == 0, again.stderr
    first, second = (tomllib.loads((tmp_path / name / "config.toml").read_text()) for name in ("one", "two"))
    assert second["training"].pop("seed") == 4
    first["training"].pop("seed")
    assert first == second


def test_resume_needs_nothing_but_the_folder(project: Any, tmp_path: Path) -> None:
    assert tiny(project, tmp_path / "run").exit_code == 0
    (tmp_path / "run" / "model.toml").unlink()
    result = invoke("finetune", "--output", tmp_path / "run", "--resume")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "run" / "model.toml").is_file()


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--crop", "64"), 1, "larger than"),
        (("--crop", "big"), 2, "not a size"),
        (("--tau", "nan"), 2, "'--tau': NaN should be a number of at least 0"),
        (("--tau", "-1"), 2, "'--tau': -1.0 is not in the range"),
        (("--crop", "4"), 2, "'--crop': [4, 4] should be [height, width], each a whole number of at least 8"),
        (("--feature-layer", "nowhere"), 1, "runs no such layer"),
        (("--weights", "nothing.pth"), 1, "no such weights file"),
        (("--target-images", "nowhere"), 1, "does not exist"),
        (("--method", "cbts"), 2, "Invalid value for '--method'"),
        (("--config", "nothing.toml"), 1, "nothing.toml: no such file"),
        (("--val-images", "nowhere"), 2, "--val-labels"),
    ],
)
def test_bad_input_ends_in_one_line(project: Any, tmp_path: Path, more: tuple[str, ...], code: int, said: str) -> None:
    result = tiny(project, tmp_path / "run", *more)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    result = invoke("finetune", "--output", tmp_path / "run", "--model", STREETS / "streets.toml")
    assert result.exit_code == 2
    assert "--source-images is missing" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--method", "dacs", "--portion", "0.3"),
            "--portion does nothing with --method dacs: leave it out, or give --method st or --method cbst or "
            "--method cbst-sp",
        ),
        (("--method", "dacs", "--tau", "0.3"), "give --method blda or --correction blda"),
        (("--method", "cbst", "--confidence", "0.3"), "give --method blda or --method dacs"),
        (("--method", "source", "--no-classmix"), "--classmix does nothing with --method source"),
        (("--margin", "1"), "--margin does nothing with --method blda: leave it out, or give --method cag"),
    ],
)
def test_options_that_do_nothing_are_refused(
    project: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = tiny(project, tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_options_of_a_correction_go_with_it(project: Any, tmp_path: Path) -> None:
    result = tiny(project, tmp_path / "run", "--method", "cbst", "--correction", "blda", "--tau", 0.3, "--portion", 0.3)
    assert result.exit_code == 0, result.stderr


def test_a_kind_that_cannot_be_trained_says_what_to_give(project: Any, tmp_path: Path) -> None:
    (tmp_path / "logits").mkdir()
    np.save(tmp_path / "logits" / "0.npy", np.zeros((4, 40, 56), dtype=np.float32))
    torch.jit.script(nn.Conv2d(3, 4, 1)).save(str(tmp_path / "net.ts"))
    for model in (f"logits:{tmp_path / 'logits'}", tmp_path / "net.ts"):
        result = tiny(project, tmp_path / "run", "--model", model)
        assert result.exit_code == 1
        assert "cannot be trained" in result.stderr
        assert "give the network as module:factory" in result.stderr
        assert not (tmp_path / "run").exists()


def test_the_help_names_every_method_and_is_quick() -> None:
    result = invoke("finetune", "--help")
    assert all(method in result.stdout for method in METHODS)
    program = (
        "import sys; from blda_cli.commands import cli; cli(['finetune', '--help'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=False).returncode == 0


def test_ctrl_c_writes_a_checkpoint_to_go_on_from(project: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = [sys.executable, "-m", "blda_cli", "finetune", "--config", str(tmp_path / "config.toml")]
    arguments += ["--output", str(output), "--device", "cpu"]
    settings = project.settings(training__iterations=100_000, run__log_every=1)
    (tmp_path / "config.toml").write_text(settings.to_toml())
    process = subprocess.Popen(
        arguments,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    until = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "blda: interrupted; a checkpoint is kept: --resume goes on from there"
    assert (output / "checkpoint.pth").is_file()


@pytest.mark.slow
def test_streets_by_day_to_streets_at_dusk(tmp_path: Path) -> None:
    """The embedded example: training for a minute makes the network better at dusk, and blda takes what is left."""
    drawing = [sys.executable, str(STREETS / "draw.py"), str(tmp_path / "streets")]
    subprocess.run(drawing, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    dusk, day, run = tmp_path / "streets" / "dusk", tmp_path / "streets" / "day", tmp_path / "run"
    result = invoke(
        *("finetune", "--model", STREETS / "streets.toml", "--output", run, "--device", "cpu", "--quiet", "--json"),
        *("--source-images", day / "images", "--source-labels", day / "labels", "--target-images", dusk / "images"),
        *("--val-images", dusk / "images", "--val-labels", dusk / "labels", "--validate-every", 1),
        *("--iterations", 1, "--crop", 96, "--learning-rate", "1e-9", "--norms", "batch", "--no-target-norms"),
    )
    assert result.exit_code == 0, result.stderr
    before = json.loads(result.stdout)["validation"]
    trained = invoke(
        *("finetune", "--config", run / "config.toml", "--output", tmp_path / "trained", "--json", "--quiet"),
        *("--iterations", 150, "--learning-rate", "3e-4", "--teacher-momentum", 0.98, "--validate-every", 150),
        "--target-norms",
    )
    assert trained.exit_code == 0, trained.stderr
    after = json.loads(trained.stdout)["validation"]
    assert after["mean_iou"] > before["mean_iou"] + 0.04
    assert after["mean_accuracy"] > before["mean_accuracy"] + 0.06
    for command in (
        ("collect-stats", "--output", tmp_path / "again.h5"),
        ("align", "--stats", tmp_path / "trained" / "statistics.h5", "--output", tmp_path / "aligned"),
    ):
        result = invoke(
            *command, "--model", tmp_path / "trained" / "model.toml", "--images", dusk / "images", "--quiet"
        )
        assert result.exit_code == 0, result.stderr
    report = invoke(
        *("report", "--stats", tmp_path / "trained" / "statistics.h5", "--aligned", tmp_path / "aligned"),
        *("--labels", dusk / "labels", "--output", tmp_path / "report"),
    )
    assert report.exit_code == 0, report.stderr


def test_a_run_without_a_description_of_its_own(project: Any, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\n")
    given = ("--set", "preprocessing.mean=[0.2, 0.2, 0.2]", "--set", "color=bgr", "--classes", names)
    kept = tmp_path / "kept.toml"
    result = tiny(project, tmp_path / "run", *given, "--method", "dacs", "--write-model", kept)
    assert result.exit_code == 0, result.stderr
    before, after = (tomllib.loads(path.read_text()) for path in (kept, tmp_path / "run" / "model.toml"))
    assert before["preprocessing"] == after["preprocessing"]
    assert before["preprocessing"]["mean"] == [0.2, 0.2, 0.2]
    assert before["preprocessing"]["color"] == "bgr"
    assert before["classes"]["names"] == after["classes"]["names"] == ["a", "b", "c", "d"]
    assert "weights" not in before["segmenter"]
    assert after["segmenter"]["weights"]
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert config["data"]["set"] == ["preprocessing.mean=[0.2, 0.2, 0.2]", "color=bgr"]
