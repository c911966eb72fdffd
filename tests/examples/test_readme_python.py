"""The README's Python runs as it stands there, given a network and a loader."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_a_loop_as_in_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"^## From Python\n+```python\n(.*?)```", README, re.DOTALL | re.MULTILINE)
    assert code is not None
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 19, 1))
    names: dict[str, Any] = {"network": network, "loader": list(torch.rand(3, 2, 3, 48, 64))}
    with warnings.catch_warnings(action="error"):
        exec(code[1], names)
    assert names["predictions"].shape == (2, 48, 64)
    assert torch.equal(names["corrected"](names["images"]).argmax(dim=1), names["predictions"])
    assert (tmp_path / "report" / "report.html").is_file()
