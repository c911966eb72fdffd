"""Tab completion, as click computes it and as the shells on this machine insert it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from blda_cli.commands import cli

BASH = r"""
eval "$(_BLDA_COMPLETE=bash_source blda)"
compopt() { [[ $2 == nospace ]] || printf %s "$2"; }  # the real one works only while a key is handled
while read -r line; do
    COMP_LINE=$line COMP_POINT=${#line}
    IFS='|' read -r -a COMP_WORDS <<< "$line"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _blda_completion blda
    printf '%s,' "${COMPREPLY[@]}"
    echo
done
"""

FISH = """
_BLDA_COMPLETE=fish_source blda | source
while read -l line
    string join -- , (complete -C "$line" | string replace -r '\\t.*' '')
end
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with models, and ``blda`` on the path."""
    for path in ("nets/seg", "nets/.hidden", "nets/a b", "hub/models--org--name"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "nets" / "seg" / "config.json").touch()
    (tmp_path / "nets" / "net.toml").touch()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "blda"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m blda_cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def completed(*words: str) -> dict[str, str]:
    """What the last word can become, and of which type each is."""
    shell = ShellComplete(cli, {}, "blda", "_BLDA_COMPLETE")
    return {item.value: item.type for item in shell.get_completions(list(words[:-1]), words[-1])}


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_option_for_a_path_completes_paths(name: str) -> None:
    paths = [one for one in cli.commands[name].params if isinstance(one.type, click.Path)]
    assert len(paths) > 1
    for one in paths:
        if isinstance(one, click.Option):
            assert "file" in completed(name, one.opts[0], "some").values(), one.opts
            assert "file" in completed(name, f"{one.opts[0]}=some").values(), one.opts
    for option in cli.commands[name].params:
        metavar = str(getattr(option, "metavar", None))
        if any(word in metavar for word in ("DIR", "FILE", "MODEL")) and "SECTION" not in metavar:
            assert option in paths, option.name


def test_fine_tuning_completes_the_paths_of_its_data() -> None:
    names = {one.opts[0] for one in cli.commands["finetune"].params if isinstance(one.type, click.Path)}
    data = ("source", "target", "labelled", "val")
    assert names >= {"--model", "--weights", "--config", "--output", *(f"--{one}-images" for one in data)}
    assert names >= {f"--{one}-labels" for one in data if one != "target"}


def test_values_that_are_no_choices(folder: Path) -> None:
    assert {"cityscapes-ids", "ids-from-1", "mask"} <= completed("report", "--label-encoding", "").keys()
    assert completed("finetune", "--val-encoding", "cityscapes-t") == {"cityscapes-train-ids": "plain"}
    assert completed("align", "--norms", "so") == {"source": "plain", "so": "file"}
    norms = ("auto", "instance", "target", "source", "batch")
    assert completed("finetune", "--norms", "") == dict.fromkeys(norms, "plain")
    assert completed("align", "--classes", "ci") == {"cityscapes": "plain", "ci": "file"}
    assert completed("align", "--tau", "") == {"auto": "plain"}
    assert completed("check", "--device", "c") == {"cpu": "plain", "cuda": "plain"}


def test_models(folder: Path) -> None:
    assert completed("align", "--model", "") == {"hf:": "part", "logits:": "part", "": "file"}
    assert completed("align", "--model", "h") == {"hf:": "part", "h": "file"}
    assert completed("align", "--model", "hf:") == {
        **dict.fromkeys(("hf:nets/", "hf:hub/", "hf:bin/"), "part"),
        "hf:org/name": "plain",
    }
    assert completed("finetune", "--model=hf:nets/") == {"hf:nets/seg": "plain", "hf:nets/a b/": "part"}
    assert completed("align", "--model", "hf:nets/.") == {"hf:nets/.hidden/": "part"}
    assert completed("align", "--model", "logits:nets/s") == {"logits:nets/seg/": "part"}
    assert completed("align", "--model", "module:") == completed("align", "--model", "hf:gone/") == {}


def test_keys_of_a_description() -> None:
    assert completed("align", "--set", "preprocessing.st") == {"preprocessing.std=": "part"}
    assert completed("align", "--set", "preprocessing.color=") == dict.fromkeys(
        ("preprocessing.color=rgb", "preprocessing.color=bgr"), "plain"
    )
    assert completed("align", "--set", "segmenter.kind=o") == {"segmenter.kind=onnx": "plain"}
    assert "preprocessing.output=sigmoid" in completed("align", "--set", "preprocessing.output=")
    assert completed("align", "--set", "no.key=") == completed("align", "--set", "segmenter.factory=") == {}


def asked(shell: list[str], script: str, lines: list[str]) -> list[str]:
    done = subprocess.run(
        [*shell, script], input="".join(f"{line}\n" for line in lines), capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return [line.rstrip(",") for line in done.stdout.splitlines()]


def test_bash(folder: Path) -> None:
    lines = {  # as bash cuts a line into words -> what takes the place of the last
        "blda|ali": "align",
        "blda|align|--norms|so": "source",
        "blda|align|--norms|=|so": "source",
        "blda|align|--method|=|su": "supervised",
        "blda|align|--model|hf|:|nets/": r"nets/a\ b/,nets/seg",
        "blda|align|--model|=|hf|:|nets/se": "nets/seg",
        "blda|align|--model|=|nets/n": "default",  # bash's own names of files
        "blda|align|--norms|=": r"auto,instance,source,target,bin/,hub/,nets/",
        "blda|align|--set|preprocessing.color|=|b": "bgr",
        "blda|align|--set|preprocessing.col": "preprocessing.color=",
        "blda|finetune|--source-images|nets/": "default",
        "blda|align|--labelled=so": "default",  # where COMP_WORDBREAKS lacks =
        "blda|align|--norms=so": "--norms=source",
    }
    found = asked(["bash", "--norc", "-c"], BASH, list(lines))
    assert [sorted(said.split(",")) for said in found] == [sorted(line.split(",")) for line in lines.values()]


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish(folder: Path) -> None:
    lines = {
        "blda ali": "align",
        "blda align --norms so": "source",
        "blda align --norms=so": "--norms=source",
        "blda align --method=su": "--method=supervised",
        "blda align --model hf:nets/se": "hf:nets/seg",
        "blda align --model=nets/n": "--model=nets/net.toml",
        "blda align --set preprocessing.color=b": "preprocessing.color=bgr",
        "blda finetune --source-images=nets/n": "--source-images=nets/net.toml",
    }
    assert asked(["fish", "-c"], FISH, list(lines)) == list(lines.values())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_are_read_without_error(folder: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = subprocess.run(
        ["blda"], env={**os.environ, "_BLDA_COMPLETE": f"{shell}_source"}, capture_output=True, text=True, check=True
    )
    (folder / "script").write_text(script.stdout)
    done = subprocess.run([shell, "-n", "script"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
