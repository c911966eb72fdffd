"""Atomic replacement of a folder of predictions: new ones are built in a hidden subfolder and swapped in when complete.

Until then what was there before is untouched, and a process that is killed leaves either the old predictions, or the
new ones, or an exchange that the next call finishes.
"""

import re
import shutil
from pathlib import Path

from blda_cli.errors import BldaError
from blda_cli.files import unwritable
from blda_cli.store.predictions import (
    ANNOTATIONS,
    ARGMAX,
    CLASSIFICATIONS,
    CONFIDENCE,
    OVERLAYS,
    PREDICTIONS,
    RECORD,
    SCORES,
)

_UNFINISHED = ".partial"
_REPLACING = ".replacing"
_REPLACED = ".replaced"

# The record first and last: a folder with a record is complete.
_CONTENT = (RECORD, PREDICTIONS, ARGMAX, SCORES, CONFIDENCE, OVERLAYS, ANNOTATIONS, CLASSIFICATIONS)
_LEFT_OVER = re.compile(r"\..*\.part")


def unfinished(folder: Path) -> Path:
    """The hidden subfolder in which predictions are built."""
    return folder / _UNFINISHED


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise if predictions cannot be written to a folder.

    Raises:
        BldaError: it holds things that no earlier call made, or predictions that may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise BldaError(f"{folder} is no folder: give a new or an empty one")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    held = {name for name in held if not _LEFT_OVER.fullmatch(name)}
    foreign = held - {*_CONTENT, _UNFINISHED, _REPLACING, _REPLACED}
    if not held & {RECORD, _UNFINISHED}:
        foreign = held  # whoever made folders of these names, it was not an earlier call
    if foreign:
        raise BldaError(f"{folder} holds other things ({min(foreign)}): give a new or an empty folder")
    if RECORD in held and _UNFINISHED not in held and not overwrite:
        raise BldaError(f"{folder} holds predictions already: --overwrite replaces them")


def begin(folder: Path, overwrite: bool) -> Path:
    """Make room for new predictions.

    Args:
        folder: passed by `check_folder`.
        overwrite: forget what an earlier call left unfinished.

    Returns:
        Where to put them, until `finish` is called.

    Raises:
        BldaError: nothing can be written there.
    """
    work = unfinished(folder)
    try:
        if (work / RECORD).exists():  # killed in the middle of the exchange
            finish(folder)
            check_folder(folder, overwrite)
        shutil.rmtree(folder / _REPLACED, ignore_errors=True)
        if overwrite:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        for path in work.rglob(".*.part"):  # of a process that was killed while it wrote them
            path.unlink()
    except OSError as error:
        raise unwritable(folder, error) from error
    return work


def finish(folder: Path) -> None:
    """Replace the old predictions by the new ones, whose record is complete.

    Raises:
        BldaError: nothing can be written there.
    """
    work, replacing, replaced = (folder / name for name in (_UNFINISHED, _REPLACING, _REPLACED))
    try:
        if not replaced.exists():
            replacing.mkdir(exist_ok=True)
            _move(folder, replacing, _CONTENT)
            replacing.rename(replaced)
        _move(work, folder, _CONTENT[::-1])
        shutil.rmtree(work)
        shutil.rmtree(replaced)
    except OSError as error:
        raise unwritable(folder, error) from error


def leave(folder: Path) -> None:
    """Remove what `begin` created if nothing was written."""
    shutil.rmtree(unfinished(folder), ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _move(origin: Path, place: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (origin / name).exists():
            (origin / name).rename(place / name)
