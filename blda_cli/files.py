"""Files that appear under their name only when they are complete."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blda_cli.errors import BldaError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to a temporary file beside ``path``, which takes its place when the block ends without an error.

    Args:
        path: the file to be; its folder is made.

    Yields:
        The temporary file's path.

    Raises:
        BldaError: it cannot be written; what was at ``path`` before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise BldaError(f"{path} cannot be written: {error.strerror or error}") from error


def claim(path: Path, *, overwrite: bool) -> None:
    """Refuse, before long work, a file that could not be written after it.

    Args:
        path: the file to be; its folder is made.
        overwrite: a file that is there may be replaced.

    Raises:
        BldaError: it exists, or it cannot be written.
    """
    if path.exists() and not path.is_file():
        raise BldaError(f"{path} is no file but a folder or a device: give the name of a file to write")
    if path.exists() and not overwrite:
        raise BldaError(f"{path} exists already: --overwrite replaces it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BldaError(f"{path} cannot be written: {error.strerror or error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as ``"sha256:..."`` in hexadecimal."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
