import sys
from pathlib import Path

# The examples are scripts and factories beside a TOML file, not a package.
for folder in ("", "espnet", "streets"):
    sys.path.append(str(Path(__file__).parents[2] / "examples" / folder))
