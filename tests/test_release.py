"""What a release is described by agrees with the package."""

import re
import tomllib
from pathlib import Path

from blda_cli import __version__

ROOT = Path(__file__).parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_changelogs_and_the_citations() -> None:
    headings = re.findall(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == __version__
    assert len(set(headings)) == len(headings)
    assert re.findall(r"^version: (\S+)$", text("CITATION.cff"), re.MULTILINE) == [__version__]


def test_the_readme_names_every_extra() -> None:
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    rows = [line for line in text("README.md").splitlines() if line.startswith("| `blda-cli[")]
    assert set(re.findall(r"\[([a-z]+)\]", "".join(rows))) == extras.keys()


def test_the_image_is_made_of_files_that_are_there() -> None:
    copied = re.findall(r"^COPY (.*) \S+$", text("Dockerfile"), re.MULTILINE)
    assert copied
    assert all((ROOT / name).exists() for line in copied for name in line.split())
