"""Tab completion: what options can be, and the scripts for bash, zsh and fish.

click's own scripts complete ``--norms VALUE`` alone. These also complete ``--norms=VALUE``, which zsh and fish hand
over as one word and bash as three, and values with a colon, which bash cuts there, too.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

Suggest = Callable[[str], Iterable[str]]
"""What a value that begins with some text can be; what it returns need not all begin so."""

_BREAKS = ("=", ":")


def completer(name: str, *, path: bool) -> dict[str, Any]:
    """The argument of a click option that completes its values; none where its type does.

    Args:
        name: of the setting.
        path: the value can be a path, too.
    """
    suggest = _SUGGESTIONS.get(name)
    if suggest is None:
        return {}

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
        words = [word for word in suggest(incomplete) if word.startswith(incomplete)]
        # A value that goes on takes no space after it.
        items = [CompletionItem(word, type="part" if word.endswith(("/", *_BREAKS)) else "plain") for word in words]
        files = path and ":" not in incomplete  # after a scheme they are suggested here
        return [*items, *([CompletionItem(incomplete, type="file")] if files else [])]

    return {"shell_complete": complete}


def _models(incomplete: str) -> Iterable[str]:
    """The schemes of ``--model``, the folders after them, and the Hugging Face models downloaded before."""
    scheme, colon, rest = incomplete.partition(":")
    if not colon:
        return ("hf:", "logits:")
    parent = rest[: rest.rfind("/") + 1]
    start, folder = f"{scheme}:{parent}", Path(parent or ".").expanduser()
    found: list[Path] = []
    with suppress(OSError):  # there is no such folder, or it cannot be read
        hidden = rest[len(parent) :].startswith(".")
        found = [path for path in folder.iterdir() if path.is_dir() and path.name.startswith(".") == hidden]
    if scheme == "logits":
        return [f"{start}{path.name}/" for path in found]
    if scheme != "hf":
        return ()
    models = [f"{start}{path.name}{'' if (path / 'config.json').is_file() else '/'}" for path in found]
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cached = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).glob("models--*")
    return [*models, *(f"hf:{path.name.removeprefix('models--').replace('--', '/')}" for path in cached)]


def _description_keys(incomplete: str) -> Iterable[str]:
    """The keys of a model's description, and after ``=`` the choices of one."""
    from blda_cli.segmenters.spec import SegmenterSpec
    from blda_cli.settings import sections_of, settings_of

    keys = {
        f"{section}.{name}": one
        for section, cls in sections_of(SegmenterSpec).items()
        for name, one in settings_of(cls).items()
    }
    key, equals, _ = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in keys]
    return [f"{key}={choice}" for choice in (keys[key].options(keys[key].kind) if key in keys else ())]


def _encodings(_: str) -> Iterable[str]:
    from blda_cli.data.encodings import encoding_names

    return encoding_names()


def _class_presets(_: str) -> Iterable[str]:
    from blda_cli.data.classes import preset_names

    return preset_names()


def _words(*words: str) -> Suggest:
    return lambda _: words


_SUGGESTIONS: dict[str, Suggest] = {
    "model": _models,
    "set": _description_keys,
    "classes": _class_presets,
    **dict.fromkeys(("label_encoding", "source_encoding", "labelled_encoding", "val_encoding"), _encodings),
    "norms": _words("auto", "instance", "source", "target"),
    "tau": _words("auto"),
    "overlay": _words("all"),
    "device": _words("auto", "cpu", "cuda", "mps"),
}
"""By the name of the setting: values that are not its type's."""


class _Bash(BashComplete):
    source_template: ClassVar[str] = """\
%(complete_func)s() {
    local type value files= word=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            file) files=1 ;;
            part) compopt -o nospace; COMPREPLY+=("$(printf %%q "$value")") ;;
            plain) COMPREPLY+=("$(printf %%q "$value")") ;;
        esac
    done <<< "$(IFS=$'\\n'; COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete "$1")"
    [[ $files ]] || return 0
    (( ${#COMPREPLY[@]} )) || { compopt -o default; return 0; }
    [[ $word == [=:] ]] && word=
    while IFS= read -r value; do
        [[ -d $value ]] && value+=/ && compopt -o nospace
        COMPREPLY+=("$(printf %%q "$value")")
    done < <(compgen -f -- "$word")
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        place = int(os.environ["COMP_CWORD"])
        words = split_arg_string(os.environ["COMP_WORDS"])[1 : place + 1]
        joined: list[str] = []
        for word in words:
            if joined and (word in _BREAKS or (joined[-1].endswith(_BREAKS) and joined[-1] not in _BREAKS)):
                joined[-1] += word
            else:
                joined.append(word)
        if len(words) < place:  # a word that is to begin
            joined.append("")
        typed = "" if joined[-1] == "" or words[-1] in _BREAKS else words[-1]
        option, equals, _ = joined[-1].partition("=")
        self._option = f"{option}=" if equals and option.startswith("--") else ""
        self._kept = len(joined[-1]) - len(typed)
        return joined[:-1], joined[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """What takes the place of the part of a word that bash takes for the whole."""
        return f"{item.type},{(self._option + item.value)[self._kept :]}"


class _Zsh(ZshComplete):
    source_template: ClassVar[str] = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local -a plain part described response
    local type value help
    local -x COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1))
    response=("${(@f)$(%(complete_var)s=zsh_complete %(prog_name)s)}")
    [[ $words[CURRENT] == --*=* ]] && compset -P 1 '*='
    for type value help in $response; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            part) part+=("$value") ;;
            plain) if [[ $help == _ ]] { plain+=("$value") } else { described+=("$value:$help") } ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described
    (( $#part )) && compadd -S '' -V unsorted -a part
    (( $#plain )) && compadd -V unsorted -a plain
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class _Fish(FishComplete):
    source_template: ClassVar[str] = """\
function %(complete_func)s
    set -l option (string match -r -- '^--[^=]+=' (commandline -ct); or echo '')
    for line in (COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -ct) %(complete_var)s=fish_complete %(prog_name)s)
        set -l item (string split -m 1 , -- $line)
        switch $item[1]
            case dir
                printf '%%s\\n' $option(__fish_complete_directories $item[2])
            case file
                printf '%%s\\n' $option(__fish_complete_path $item[2])
            case '*'
                echo $option$item[2]
        end
    end
end
complete -f -c %(prog_name)s -a '(%(complete_func)s)'
"""


for _shell in (_Bash, _Zsh, _Fish):
    add_completion_class(_shell)
