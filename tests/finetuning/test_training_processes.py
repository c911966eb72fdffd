import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


def blda(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launcher, "-m", "blda_cli", "finetune", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def options(project: Any, output: Path, **changes: Any) -> list[str]:
    values = {
        "config": project.folder / "config.toml",
        "device": "cpu",
        "output": output,
        **changes,
    }
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def state(output: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(output / "checkpoint.pth", weights_only=True)["trainer"]
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_two_ranks_of_one_follow_one_rank_of_two(still_project: Any, tmp_path: Path, own: bool) -> None:
    settings = still_project.settings(
        host__feature_distance=0.005,
        host__masked_consistency=1.0,
        training__iterations=5,
        run__log_every=1,
        start__own_labels=own,
        host__classmix=not own,  # it is of each process's own crops, which may lack classes where own labels are few
    )
    (still_project.folder / "config.toml").write_text(settings.to_toml())
    alone = blda(*options(still_project, tmp_path / "alone", batch_size=2))
    assert alone.returncode == 0, alone.stderr
    both = blda(*options(still_project, tmp_path / "both", batch_size=1), processes=2)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("model.toml") == 1
    one, other = state(tmp_path / "alone"), state(tmp_path / "both")
    start = still_project.segmenter().module.state_dict()
    for name, value in one["teacher"].items():
        # Adam turns rounding into steps where a gradient is almost zero: the whole way is compared, not each weight.
        way = float((value - start[name]).norm())
        assert way > 1e-3
        assert float((other["teacher"][name] - value).norm()) < 0.05 * way, name
    for bank in ("source", "target"):
        for name in ("weights", "means", "variances"):
            torch.testing.assert_close(
                other["objective"][bank][name], one["objective"][bank][name], atol=5e-3, rtol=1e-2
            )
        assert torch.equal(other["objective"][bank]["fitted"], one["objective"][bank]["fitted"])
    first = []
    for run in ("alone", "both"):
        entries = map(json.loads, (tmp_path / run / "metrics.jsonl").read_text().splitlines())
        first.append(next(entry for entry in entries if "losses" in entry))
    for share in ("pseudo_share", "kept_share"):
        assert first[0][share] == pytest.approx(first[1][share], abs=1e-3)
    for name, value in first[0]["losses"].items():
        # Its mean is over the features of each process' crops.
        assert first[1]["losses"][name] == pytest.approx(value, rel=1e-3, abs=1e-2 if name == "feature_distance" else 0)


@pytest.mark.slow
def test_two_ranks_label_the_target_as_one_does(still_project: Any, tmp_path: Path) -> None:
    settings = still_project.settings(
        data__source=False, data__source_images="", data__source_labels="", training__iterations=2
    )
    (still_project.folder / "config.toml").write_text(settings.to_toml())
    for run, processes in (("alone", 1), ("both", 2)):
        done = blda(*options(still_project, tmp_path / run, batch_size=2 // processes), processes=processes)
        assert done.returncode == 0, done.stderr
    first = tmp_path / "alone" / "pseudo_labels" / "start"
    assert len(list(first.glob("*.png"))) == 5
    for path in first.iterdir():
        assert (tmp_path / "both" / path.relative_to(tmp_path / "alone")).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cbst-sp", "cag"])
def test_two_ranks_look_at_the_data_as_one_does(still_project: Any, tmp_path: Path, method: str) -> None:
    settings = still_project.settings(
        training__method=method, training__iterations=4, rounds__rounds=2, training__learning_rate=1e-4
    )
    (still_project.folder / "config.toml").write_text(settings.to_toml())
    alone = blda(*options(still_project, tmp_path / "alone", batch_size=2))
    assert alone.returncode == 0, alone.stderr
    both = blda(*options(still_project, tmp_path / "both", batch_size=1), processes=2)
    assert both.returncode == 0, both.stderr
    one, other = state(tmp_path / "alone"), state(tmp_path / "both")
    assert one["stage"] == other["stage"] == 1
    if method == "cag":
        torch.testing.assert_close(other["method"]["centroids"], one["method"]["centroids"], atol=1e-3, rtol=1e-3)
        assert (tmp_path / "both" / "centroids" / "stage-2.npz").is_file()
        return
    assert other["method"]["preferred"] == one["method"]["preferred"]
    torch.testing.assert_close(other["method"]["priors"], one["method"]["priors"])
    first = [tmp_path / run / "pseudo_labels" / "round-1" for run in ("alone", "both")]
    assert {path.name for path in first[1].iterdir()} == {path.name for path in first[0].iterdir()}
    for path in first[0].iterdir():
        assert (first[1] / path.name).read_bytes() == path.read_bytes()
