import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from compare_methods import METHODS, main

from blda_cli.finetuning.settings import Settings


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of all runs, of which only a made-up score is left."""
    runs: list[Settings] = []

    def result_of(settings: Settings, folder: Path, device: str) -> dict[str, Any]:
        runs.append(settings)
        folder.mkdir(parents=True)
        iou = {"sky": 0.1 * len(str(settings.training.method)) + 0.01 * settings.training.seed, "car": None}
        scores = {"mean_iou": iou["sky"], "mean_accuracy": 0.5, "iou_spread": 0.25, "iou": iou}
        return {"validation": scores, "seconds_per_iteration": 0.5, "peak_bytes": 2e9}

    monkeypatch.setattr("compare_methods.result_of", result_of)
    return runs


def test_methods_differ_in_nothing_else_and_the_best_come_again_masked(tmp_path: Path, trained: list[Settings]) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[training]\niterations = 7\ncrop = [40, 40]\n[host]\nrare_class_sampling = false\n")
    result = CliRunner().invoke(main, ["--config", str(config), "--output", str(tmp_path / "out"), "--seeds", "2"])
    assert result.exit_code == 0, result.output
    assert {run.training.iterations for run in trained[1:]} == {7}
    assert {(run.training.crop, run.host.rare_class_sampling, run.run) for run in trained} == {
        ((40, 40), False, Settings().run)
    }
    masked = [str(run.training.method) for run in trained if run.host.masked_consistency]
    assert masked == ["cbst-sp", "cbst-sp", "cbst", "cbst"]
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        *METHODS,
        *(f"{name} + masked consistency" for name in ("CBST-SP", "CBST")),
    ]
    assert "| CBST-SP | 70.5 ± 0.7 | 50.0 ± 0.0 | 25.0 ± 0.0 | 70.5 | – | 0.50 | 2.00 GB |" in lines
    kept = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [run["validation"]["iou"]["sky"] for run in kept["ST"]] == pytest.approx([0.2, 0.21])
