import os
from pathlib import Path

import hypothesis
import pytest

# A shared machine may be slow at any moment; what hangs is ended by pytest's own limit.
hypothesis.settings.register_profile("blda", deadline=None)
hypothesis.settings.load_profile("blda")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real frames, weights and reference results, which lies outside the repository."""
    root = Path(os.environ.get("BLDA_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"{root} is not there: set BLDA_SHARED_DATA to the folder of shared test data")
    return root
