"""``.npy`` and ``.npz`` files: reading an array, or its shape alone, without unpickling."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from blda_cli.errors import BldaError
from blda_cli.files import check_regular

SUFFIXES = frozenset({".npy", ".npz"})

T = TypeVar("T")


def read_numbers(path: Path, name: str, check: Callable[[tuple[int, ...]], None] | None = None) -> np.ndarray:
    """The array of a file.

    Args:
        path: ``.npy``, or ``.npz`` with one array or one of this name.
        name: of the array meant.
        check: called with the shape that an archive declares before it is unpacked, as a small archive may fill all
            memory. It raises `ValueError` to refuse it.

    Returns:
        Integers, floating-point numbers or truth values, of any shape.

    Raises:
        BldaError: it cannot be read, is pickled, or holds no numbers.
    """

    def whole(loaded: np.ndarray | np.lib.npyio.NpzFile) -> np.ndarray:
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded
        member = _name_within(loaded, name, path)
        if check is not None:
            check(_declared_shape(loaded, member))
        return np.asarray(loaded[member])

    array = _loaded(path, whole)
    if array.dtype.kind not in "fiub":
        raise BldaError(f"{path} holds {array.dtype} values; numbers are needed")
    return array


def shape_of(path: Path, name: str) -> tuple[int, ...]:
    """The shape of a file's array, from its header alone; see `read_numbers`."""

    def declared(loaded: np.ndarray | np.lib.npyio.NpzFile) -> tuple[int, ...]:
        if isinstance(loaded, np.lib.npyio.NpzFile):
            return _declared_shape(loaded, _name_within(loaded, name, path))
        return loaded.shape

    return _loaded(path, declared, mapped=True)


def _loaded(path: Path, use: Callable[[np.ndarray | np.lib.npyio.NpzFile], T], *, mapped: bool = False) -> T:
    try:
        check_regular(path)
        loaded = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                return use(archive)
        return use(loaded)
    except BldaError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        if "allow_pickle" in str(error):
            raise BldaError(
                f"{path} is pickled, which could run code when read: save a plain array of numbers"
            ) from error
        raise BldaError(f"{path}: cannot be read as an array: {error}") from error


def _name_within(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> str:
    if len(archive.files) != 1 and name not in archive.files:
        raise BldaError(f"{path} holds {', '.join(archive.files) or 'no array'}: call the one meant {name}")
    return name if name in archive.files else archive.files[0]


def _declared_shape(archive: np.lib.npyio.NpzFile, member: str) -> tuple[int, ...]:
    assert archive.zip is not None
    with archive.zip.open(f"{member}.npy") as stream:
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(stream)]
        return tuple(read(stream)[0])
