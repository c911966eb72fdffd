"""Training on a device that refuses float64, as Apple's GPUs do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blda_cli.finetuning.loop import Machine
from blda_cli.finetuning.run import train
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.store.provenance import Provenance
from tests.finetuning.test_no_source import NO_SOURCE
from tests.without_float64 import DEVICE, DeviceWithoutFloat64, OnDevice


def test_the_stand_in_refuses_float64_and_knows_its_own() -> None:
    with DeviceWithoutFloat64():
        there = torch.from_numpy(np.zeros(3, np.float32)).to(DEVICE)
        assert there.device == (there + 1).device == there.new_ones(2).device == DEVICE
        assert there.cpu().double().sum().item() == 0
        assert not isinstance(there.cpu(), OnDevice)
        for refused in (there.double, lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE)):
            with pytest.raises(TypeError, match="float64"):
                refused()
        with pytest.raises(RuntimeError, match="two devices"):
            torch.zeros(3).add_(there)


@pytest.mark.parametrize(
    ("kind", "method", "correction", "more"),
    [
        ("normed_project", "dacs", "blda", {"blda__debias_pseudo_labels": True}),
        ("project", "cbst-sp", "none", {}),
        ("project", "cag", "none", {}),
        ("project", "dacs", "none", NO_SOURCE),  # which also collects statistics there and aligns by them
    ],
)
def test_every_method_trains_there(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, method: str, correction: str, more: dict[str, Any]
) -> None:
    settings = request.getfixturevalue(kind).settings(
        training__iterations=2,
        run__log_every=1,
        training__method=method,
        training__correction=correction,
        rounds__rounds=1,
        **more,
    )
    with DeviceWithoutFloat64():
        train(
            settings,
            tmp_path / "run",
            resume=False,
            machine=Machine(DEVICE, workers=1),
            provenance=Provenance(),
            monitor=SilentMonitor(),
        )
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
