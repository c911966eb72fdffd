"""Files that appear under their name only when they are complete."""

import os
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
