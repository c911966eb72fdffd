import importlib.util
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "from_python.py"


def test_an_inference_loop_of_ones_own_is_corrected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("from_python", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    accuracies = example.main(tmp_path, scenes=8)
    assert accuracies["aligned"] > accuracies["argmax"] + 3
    assert (tmp_path / "report" / "report.html").is_file()
    assert "over-predicted building, road" in capsys.readouterr().out
