import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["align", "collect", "check", "export", "report"])
def test_a_command_imports_no_library_that_it_may_not_need(command: str) -> None:
    """scipy alone takes a second, as long as a GPU takes for a hundred images."""
    program = (
        f"import sys, blda_cli.pipelines.{command}; "
        "print({'scipy', 'numba', 'transformers', 'onnx', 'onnxruntime', 'rasterio', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
