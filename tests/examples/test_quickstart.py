import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quickstart_ends_with_a_report_in_which_norms_bring_rare_classes_back(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    # This environment, and nothing to install.
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "venv.sh").write_text("install_project() { :; }\n")
    for _ in range(2):  # it can be run again
        run = subprocess.run(
            ["bash", "examples/quickstart.sh"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
    folder = tmp_path / "quickstart-output" / "report"
    assert run.stdout.splitlines()[-1].endswith(str(folder / "report.html"))
    assert (folder / "report.html").stat().st_size > 10_000

    output = folder.parent
    frame = min((output / "streets" / "dusk" / "images").rglob("*.png"))
    alone = np.array(Image.open(output / "without_blda.png"))
    aligned = np.array(Image.open(output / "aligned" / "predictions" / frame.relative_to(frame.parents[0])))
    assert np.array_equal(alone, aligned)

    report = json.loads((folder / "report.json").read_text())
    before, after = report["overall"]["before"], report["overall"]["runs"]["aligned"]
    assert before["mean_iou"] > 0.55  # as trained 0.45: norms are mixed first
    assert after["mean_iou"] > before["mean_iou"] - 0.005
    came, mixed, *_ = report["steps"].values()
    names = [each["name"] for each in report["classes"]]
    for rare in ("pole", "tree", "sign"):
        assert mixed[names.index(rare)] > 1.2 * came[names.index(rare)], rare
