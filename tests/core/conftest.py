import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The formulas as they read, in ``reference.py`` beside this file."""
    spec = importlib.util.spec_from_file_location("core_reference", Path(__file__).with_name("reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def published() -> dict[str, Tensor]:
    """What the published post-hoc alignment computes on random inputs."""
    with np.load(Path(__file__).parent / "published" / "posthoc_alignment.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}
