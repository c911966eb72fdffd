"""Atomic writes, locks, change detection, and JSON text."""

import hashlib
import json
import math
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
    # Not the whole name, which may be as long as a file system lets it be.
    short = hashlib.blake2b(os.fsencode(path.name), digest_size=6).hexdigest()
    temporary = path.with_name(f".{short}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> BldaError:
    """One-line error for an output that cannot be written."""
    in_the_way = isinstance(error, FileExistsError) and error.filename
    return BldaError(
        f"{path} cannot be written: {f'{error.filename} is no folder' if in_the_way else error.strerror or error}"
    )


_HDF5 = b"\x89HDF\r\n\x1a\n"


def claim(path: Path, *, overwrite: bool) -> None:
    """Raise before long work if an HDF5 file could not be written afterwards.

    Args:
        path: the file to be; its folder is made.
        overwrite: an HDF5 file that is there may be replaced.

    Raises:
        BldaError: it exists, or it cannot be written.
    """
    if path.exists() and not path.is_file():
        raise BldaError(f"{path} is no file but a folder or a device: give the name of a file to write")
    if path.exists() and not overwrite:
        raise BldaError(f"{path} exists already: --overwrite replaces it")
    try:
        if path.exists() and path.stat().st_size:
            with path.open("rb") as stream:
                if stream.read(len(_HDF5)) != _HDF5:
                    raise BldaError(f"{path} is no statistics file, and --overwrite replaces no other: choose a name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as ``"sha256:..."`` in hexadecimal."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def real(path: Path) -> Path:
    """A path with its links resolved; unlike ``Path.resolve`` it does not fail on circular links."""
    return Path(os.path.realpath(path))


def check_regular(path: Path) -> None:
    """Raise for a pipe, a socket or a device: reading it might never end.

    Raises:
        BldaError: it is one.
    """
    if path.exists() and not path.is_file():
        raise BldaError(f"{path} is no regular file but a folder, a pipe or a device: take it away")


def stamp(paths: Iterable[Path]) -> str:
    """Fingerprint (size, mtime) of some files; it changes when one of them is modified or removed."""
    return " ".join(map(_state, paths))


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return "none"
    return f"{state.st_size}@{state.st_mtime_ns}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock an output against other processes; the lock is released when this process ends, even if it is killed.

    Where the file system has no locks, or nothing may be written beside ``path``, nothing is locked.

    Args:
        path: the output, a file or a folder; the lock lies beside it, hidden, while it is held.

    Raises:
        BldaError: another process is writing there; the message names it.
    """
    made = _make_folders(path.parent)
    lock = path.absolute().parent / f".{hashlib.blake2b(os.fsencode(path.name), digest_size=6).hexdigest()}.lock"
    try:
        descriptor = _lock(lock, path)
        try:
            yield
        finally:
            if descriptor is not None:
                lock.unlink(missing_ok=True)
                os.close(descriptor)
    finally:
        for folder in made:
            with suppress(OSError):  # it holds something now
                folder.rmdir()


def _lock(lock: Path, path: Path) -> int | None:
    """A file descriptor that holds the lock; None where the file system has no locks."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return None
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise BldaError(f"{path} is being written by {owner}: wait for it, or choose another output") from error
        except OSError:
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if lock.stat().st_ino == os.fstat(descriptor).st_ino:
                with suppress(OSError):  # a full disk, which the output's own writing will say
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        os.close(descriptor)  # its last owner took the file away between the two calls


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; the new ones, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    with suppress(OSError):  # which the output's own writing will say
        if missing:
            missing[0].mkdir(parents=True, exist_ok=True)
    return missing


def to_json(value: Any) -> str:
    """A value as the text of a JSON file."""
    return json.dumps(without_nan(value), indent=1, allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """A value with NaN and infinities, which JSON lacks, replaced by None."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
