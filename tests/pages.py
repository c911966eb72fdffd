"""Code blocks of documentation pages, and running them as a reader would."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from blda_cli.commands import cli

ROOT = Path(__file__).parents[1]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^\n|\A)((?: {4}[^\n]*\n)(?: {4}[^\n]*\n|\n(?= {4}))*)", re.MULTILINE)
FILE = re.compile(r"# ([\w.-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        text: its lines, without indentation.
        file: the file that it is, which its first line names in a comment; None: commands of a shell.
    """

    text: str
    file: str | None = None


def blocks(page: Path) -> Iterator[Block]:
    """The files (fenced blocks) and the commands (indented blocks) of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found: dict[int, Block] = {}
    for match in FENCED.finditer(text):
        named = FILE.match(match[2])
        assert named, f"{page.name}: a fenced block whose first line names no file"
        found[match.start()] = Block(match[2], named[1])
    for match in INDENTED.finditer(FENCED.sub(lambda fenced: "x" * (len(fenced[0])), text)):
        found[match.start()] = Block(re.sub("^ {4}", "", match[1], flags=re.MULTILINE))
    yield from (found[place] for place in sorted(found))


def commands(text: str) -> list[str]:
    """The command lines of a shell's text, without comments and with continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", "pip install "))]


def follow(page: Path, values: Mapping[str, str]) -> int:
    """Write a page's files into the working directory and run its commands there; return how many ran.

    ``blda`` runs in this process, which saves its start, and ``sbatch`` runs every job of an array.

    Args:
        page: a Markdown file.
        values: what to give options in place of the page's values, for shorter runs.

    Raises:
        AssertionError: a command failed.
    """
    count = 0
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
            continue
        for line in commands(block.text):
            _run(line, values)
            count += 1
    return count


def _run(line: str, values: Mapping[str, str], task: int = 0) -> None:
    """Run one command line, of a job of an array as its ``task``-th."""
    program, *words = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", str(task)))
    if program == "sbatch":
        script = Path(words[-1]).read_text(encoding="utf-8")
        array = re.search(r"#SBATCH --array=(\d+)-(\d+)", script)
        assert array
        for number in range(int(array[1]), int(array[2]) + 1):
            for each in commands(script):
                _run(each, values, number)
    elif program == "blda":
        words = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        words = [values.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        result = CliRunner().invoke(cli, words, prog_name="blda")
        assert result.exit_code == 0, f"{line}\n{result.output}{result.exception or ''}"
    else:
        start = {
            "python": [sys.executable],
            "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone"],
        }
        ended = subprocess.run(
            [*start.get(program, [program]), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{line}\n{ended.stderr}"
