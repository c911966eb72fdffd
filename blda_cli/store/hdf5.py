"""HDF5 files: written atomically, read with validation."""

import math
import mmap
import re
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from blda_cli.errors import BldaError
from blda_cli.files import replacing

# gzip's highest compression ratio, and the size that a file may declare without stored data.
_MOST_COMPRESSED = 1100
_SMALL = 1 << 20
_MOST_IN_ATTRIBUTE = 1 << 20

# Deflate, shuffle, checksum, LZF: others load code from elsewhere.
_FILTERS = frozenset({1, 2, 3, h5py.h5z.FILTER_LZF})


@contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """Put an HDF5 file together in memory and write it when the block ends without an error.

    In memory, because the HDF5 library does not survive a full disk: it prints tracebacks, and may crash when the
    file is closed.

    Args:
        path: where to; what is there is replaced.

    Yields:
        The file to fill.

    Raises:
        BldaError: it cannot be written; what was at ``path`` before is still there.
    """
    # Files that are open at a time, in several threads, must differ in their names, in memory too.
    with h5py.File(secrets.token_hex(8), "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    with replacing(path) as temporary:
        temporary.write_bytes(image)


class CheckedFile:
    """An HDF5 file of others: links that lead out of it are refused, and types, shapes and ranges are checked before
    memory is allocated for a declared size. All messages begin with the name of the wrong entry.
    """

    def __init__(self, file: h5py.File) -> None:
        """Check all links.

        Raises:
            ValueError: one leads elsewhere.
        """
        self._file = file

        def visit(name: bytes, info: Any) -> bytes | None:
            return None if info.type == h5py.h5l.TYPE_HARD else name

        led = file.id.links.visit(visit, info=True)
        if led is not None:
            raise ValueError(f"{led.decode(errors='replace')} is a link to elsewhere, which is not followed")

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def names(self, group: str) -> list[str]:
        """Names in a group; empty where there is no group."""
        if group not in self._file:
            return []
        if not isinstance(self._file[group], h5py.Group):
            raise ValueError(f"{group} is no group")
        return list(self._file[group])

    def shape(self, name: str) -> tuple[int, ...]:
        """The declared shape of a dataset."""
        return tuple(map(int, self._dataset(name).shape))

    def array(
        self, name: str, *shape: int, kind: str, least: float = -math.inf, most: float = math.inf, nan: bool = False
    ) -> np.ndarray:
        """A dataset of numbers.

        Args:
            name: of the dataset.
            shape: the expected shape.
            kind: ``"i"`` for whole numbers, ``"f"`` for floating-point ones, ``"if"`` for either.
            least: smallest value.
            most: largest value.
            nan: NaN may be among them; infinity never.

        Raises:
            ValueError: it is not that.
        """
        dataset = self._dataset(name)
        if dataset.dtype.kind not in kind.replace("i", "iu"):
            raise ValueError(f"{name} holds {dataset.dtype} values, not {'whole' if kind == 'i' else 'such'} numbers")
        if dataset.shape != shape:
            raise ValueError(f"{name} is of shape {list(dataset.shape)}, not {list(shape)}")
        values = np.asarray(dataset[...])
        if values.dtype.kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max:
            raise ValueError(f"{name} holds numbers of more than 63 bits")
        known = values[~np.isnan(values)] if nan else values
        if known.size and not (np.isfinite(known).all() and known.min() >= least and known.max() <= most):
            raise ValueError(f"{name} holds values outside of {least:g} to {most:g}, or that are not finite")
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def texts(self, name: str) -> list[bytes]:
        """A dataset of texts, ``[N]``."""
        dataset = self._dataset(name)
        if len(dataset.shape) != 1 or h5py.check_string_dtype(dataset.dtype) is None:
            raise ValueError(f"{name} is no list of texts")
        return [bytes(text) for text in dataset[...]]

    def text(self, name: str) -> str:
        """A dataset of one text."""
        dataset = self._dataset(name)
        if dataset.shape != () or h5py.check_string_dtype(dataset.dtype) is None:
            raise ValueError(f"{name} is no text")
        return bytes(dataset[()]).decode()

    def has(self, name: str) -> bool:
        """Whether the file has an attribute."""
        return name in self._file.attrs

    def attribute(self, name: str, kind: type, group: str = "/") -> Any:
        """An attribute: a ``str``, ``int``, ``float`` or ``bool``, a ``list`` of texts, or an ``np.ndarray`` of whole
        numbers.

        Raises:
            ValueError: there is none, or it is something else.
        """
        where = name if group == "/" else f"{group}.{name}"
        if group not in self._file or name not in self._file[group].attrs:
            raise ValueError(f"the attribute {where} is missing")
        declared = self._file[group].attrs.get_id(name)
        if declared.shape is None or math.prod(declared.shape) > _MOST_IN_ATTRIBUTE:
            raise ValueError(f"the attribute {where} declares {declared.shape}, more than it can hold")
        value = self._file[group].attrs[name]
        fits = {
            str: lambda: isinstance(value, str),
            int: lambda: isinstance(value, np.integer) and abs(int(value)) < 2**63,
            float: lambda: isinstance(value, np.floating) and math.isfinite(value),
            bool: lambda: isinstance(value, np.bool_),
            list: lambda: isinstance(value, np.ndarray) and value.ndim == 1 and all(isinstance(x, str) for x in value),
            np.ndarray: lambda: isinstance(value, np.ndarray) and value.dtype.kind in "iu",
        }
        if not fits[kind]():
            raise ValueError(f"the attribute {where} is of another type ({type(value).__name__})")
        return value if kind is np.ndarray else kind(value)

    def _dataset(self, name: str) -> h5py.Dataset:
        if name not in self._file or not isinstance(self._file[name], h5py.Dataset):
            raise ValueError(f"{name} is missing, or no dataset")
        dataset = self._file[name]
        if dataset.shape is None or dataset.is_virtual or dataset.external:
            raise ValueError(f"{name} keeps its values elsewhere")
        plan = dataset.id.get_create_plist()
        if any(plan.get_filter(index)[0] not in _FILTERS for index in range(plan.get_nfilters())):
            raise ValueError(f"{name} is compressed in a way that needs a plug-in")
        if dataset.nbytes > _SMALL + _MOST_COMPRESSED * dataset.id.get_storage_size():
            raise ValueError(f"{name} declares {dataset.nbytes:,} bytes, which are not there")
        return dataset


@contextmanager
def reading(path: Path, what: str) -> Iterator[CheckedFile]:
    """Read an HDF5 file of others.

    Args:
        path: the file.
        what: the expected kind of file, for messages.

    Raises:
        BldaError: it is not that; exceptions of h5py within the block are converted too.
    """
    try:
        _check_heaps(path)
        with h5py.File(path, "r") as file:
            yield CheckedFile(file)
    except (
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        MemoryError,
        ArithmeticError,
    ) as error:
        # h5py raises any of these for files that are truncated, were never HDF5 or hold one kind of object for another.
        raise BldaError(f"{path} cannot be read as {what}; it may be truncated, or no HDF5 file: {error}") from error


def _check_heaps(path: Path) -> None:
    """Raise for a damaged global heap: an entry of length zero sends the HDF5 library into an endless loop.

    The layout is that of the HDF5 File Format Specification, III.E, "Global Heap".

    Raises:
        ValueError: there is one.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for heap in re.finditer(rb"GCOL\x01\0\0\0(.{8})", data, re.DOTALL):
            place, end = heap.end(), heap.start() + int.from_bytes(heap[1], "little")
            while place + _HEAP_ENTRY.size <= min(end, len(data)):
                index, size = _HEAP_ENTRY.unpack_from(data, place)
                step = _HEAP_ENTRY.size + -(-size // 8) * 8 if index else size  # free space counts its header
                if not _HEAP_ENTRY.size <= step <= end - place:
                    raise ValueError(f"its heap of texts is damaged at byte {place}")
                place += step


_HEAP_ENTRY = struct.Struct("<H6xQ")
