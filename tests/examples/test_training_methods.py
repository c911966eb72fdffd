import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blda_cli.finetuning.loop import Machine
from blda_cli.finetuning.methods import METHODS
from blda_cli.finetuning.run import train
from blda_cli.finetuning.settings import Settings
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.store.provenance import Provenance

STREETS = Path(__file__).parents[2] / "examples" / "streets"


def scored(method: str, streets: Path, output: Path) -> float:
    """Mean IoU at dusk after 200 steps, with the batch norms that training leaves, so that adapting them counts too."""
    values = {
        "data.model": str(STREETS / "streets.toml"),
        "data.source_images": str(streets / "day" / "images"),
        "data.source_labels": str(streets / "day" / "labels"),
        "data.target_images": str(streets / "dusk" / "images"),
        "data.val_images": str(streets / "dusk" / "images"),
        "data.val_labels": str(streets / "dusk" / "labels"),
        "training.method": method,
        "training.iterations": 200,
        "training.crop": (96, 96),
        "training.learning_rate": 3e-4,
        "training.head_factor": 1.0,
        "host.teacher_momentum": 0.98,
        "host.rare_class_sampling": False,
        "rounds.rounds": 2,
        "run.validate_every": 200,
        "training.norms": "batch",
        "run.target_norms": False,
    }
    settings = Settings().with_values(values, "test").resolved()
    machine = Machine(torch.device("cpu"), workers=2)
    result = train(settings, output, resume=False, machine=machine, provenance=Provenance(), monitor=SilentMonitor())
    return float(result["validation"]["mean_iou"])


@pytest.mark.slow
def test_every_method_improves_on_training_on_the_source_alone(tmp_path: Path) -> None:
    streets = tmp_path / "streets"
    subprocess.run([sys.executable, STREETS / "draw.py", streets], check=True, capture_output=True)
    scores = {
        method: scored(method, streets, tmp_path / method)
        for method, entry in METHODS.items()
        if entry.source != "unused"
    }
    behind = {method: score for method, score in scores.items() if score < scores["source"] + 0.02}
    assert set(behind) == {"source"}, scores
