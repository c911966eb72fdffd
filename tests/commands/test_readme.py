"""The options in the README and docs/ are the commands', and the commands' are there."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from blda_cli.commands import cli
from blda_cli.core.methods import AlignmentSettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "tests" / "benchmarks" / "README.md"]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
CODE = re.compile(r"```.*?```|`[^`\n]*`|^ {4}[^\n]*$", re.DOTALL | re.MULTILINE)
OTHERS = re.compile(r"torchrun|SBATCH|sbatch |pip |pytest|tests/|\w\.py ")
"""Code that is of other programs."""

SECTIONS = {name: [f"`blda {name}`"] for name in cli.commands} | {"finetune": ["`blda finetune`", "Fine-tuning"]}


def options(command: click.Command) -> set[str]:
    """All that a command takes, ``--no-`` forms too."""
    return {
        name
        for option in command.params
        if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--")
    }


def section(title: str) -> str:
    """The text under a heading that begins with ``title``, up to the next of any level."""
    found = re.search(rf"^#+ {re.escape(title)}[^\n]*\n(.*?)(?=^#+ |\Z)", README, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def named(text: str) -> set[str]:
    """The options of ``blda`` that a text has as code."""
    return {option for code in CODE.findall(text) if not OTHERS.search(code) for option in OPTION.findall(code)}


def shared() -> Iterator[tuple[set[str], set[str]]]:
    """The options and the commands of each row of the table of options in common."""
    for line in section("Options in common").splitlines():
        cells = line.replace(r"\|", "/").split("|")
        if len(cells) == 5 and "`" in cells[1]:
            yield set(OPTION.findall(cells[1])), set(re.findall(r"`([a-z-]+)`", cells[2]))


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_option_is_in_the_readme(name: str) -> None:
    said = {option for title in SECTIONS[name] for option in named(section(title))}
    said |= {option for row, commands in shared() if name in commands for option in row}
    missing = {
        option.opts[0]
        for option in cli.commands[name].params
        if isinstance(option, click.Option) and not said & {*option.opts, *option.secondary_opts}
    }
    assert not missing


def test_every_option_in_common_is_of_its_commands() -> None:
    rows = list(shared())
    assert len(rows) > 5
    for row, commands in rows:
        assert row
        for name in commands:
            assert row <= options(cli.commands[name]), name


# A `--no-` by itself tells of the form.
KNOWN = {"--help", "--no"}.union(*map(options, [cli, *cli.commands.values()]))


def test_every_option_in_the_readme_is_there() -> None:
    assert named(README) <= KNOWN


def test_every_command_line_in_the_readme_can_be_parsed() -> None:
    lines = re.sub(r"\\\n\s*", " ", README)
    commands = re.findall(r"(?:^ {4}|`)blda +([a-z][a-z-]*) ([^`\n#]*)", lines, re.MULTILINE)
    assert {name for name, _ in commands} >= set(cli.commands)
    for name, rest in commands:
        assert set(OPTION.findall(rest)) <= options(cli.commands[name]), f"blda {name} {rest}"


def test_the_help_has_the_defaults_of_align() -> None:
    said = " ".join(CliRunner().invoke(cli, ["align", "--help"], terminal_width=10_000).output.split())
    for field in fields(AlignmentSettings()):
        help_text = re.split(rf" --{field.name.replace('_', '-')} [A-Z\\[]", said)[1].split(" --")[0]
        assert f"[default: {field.default}]" in help_text, field.name


def test_every_option_that_a_message_names_is_there() -> None:
    sources = (Path(__file__).parents[2] / "blda_cli").rglob("*.py")
    said = {option for source in sources for option in OPTION.findall(source.read_text(encoding="utf-8"))}
    assert said <= KNOWN
