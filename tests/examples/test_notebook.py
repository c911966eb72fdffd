"""The notebook's cells, in order, without Jupyter."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
CELLS = json.loads((EXAMPLES / "from_python.ipynb").read_text(encoding="utf-8"))["cells"]


def run(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; what its last line shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(ast.unparse(last), names)


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(EXAMPLES)  # where Jupyter runs it
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, Any] = {}
    shown = [run("".join(cell["source"]), names) for cell in CELLS if cell["cell_type"] == "code"]
    _, counted, _, alignment, picture, _, equal = shown
    assert counted.images == 24
    assert 0 < alignment.settings.tau < 1
    assert isinstance(picture, Image.Image)
    assert picture.size == (4 * 192, 4 * 128)
    assert equal > 0.999
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("building")  # the most over-predicted
    argmax, aligned = (float(line.split()[-2]) for line in lines[-2:])
    assert aligned > argmax + 2


def test_the_notebook_is_stored_without_outputs() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
