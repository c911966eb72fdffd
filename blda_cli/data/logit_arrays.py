"""Ready-made logits on disk: ``.npy`` and ``.npz`` arrays that stand in for an image or beside one."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import check_regular


@dataclass(frozen=True)
class LogitArray(ImageSource):
    """An image of which only the logits are there, ``[C, H, W]`` or ``[C]``."""

    suffixes = frozenset({".npy", ".npz"})
    searched = False

    def size(self) -> tuple[int, int]:
        """See `ImageSource.size`: that of the map, from the array's header alone."""
        shape = _header_shape(self.path)
        if len(shape) not in (3, 4):
            raise BldaError(
                f"{self.path} is of shape {list(shape)}: one answer for a whole image, which has no size; labels of "
                "whole images are given as a table of key,class"
            )
        return shape[-2], shape[-1]

    def read(self) -> np.ndarray:
        """See `ImageSource.read`."""
        raise BldaError(f'{self.path} holds logits, not an image: give the images, or kind = "logits" as the model')


def find_logits(folder: str | Path) -> list[LogitArray]:
    """The arrays of a folder in place of images, so that ``--images`` may be the folder of logits itself.

    Args:
        folder: searched through for ``.npy`` and ``.npz`` files.

    Returns:
        The files, sorted by key.

    Raises:
        BldaError: there is none, or two have the same key.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BldaError(f"{folder}: no such folder of logits")
    found: dict[str, LogitArray] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in LogitArray.suffixes and path.is_file():
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                raise BldaError(f"{found[key].path} and {path} are logits of the same image; remove one")
            found[key] = LogitArray(path, key)
    if not found:
        raise BldaError(f"{folder} holds no logits (.npy or .npz files)")
    return [found[key] for key in sorted(found)]


def read_array(path: Path, most: int | None = None) -> np.ndarray:
    """Read one image's scores, without unpickling.

    Args:
        path: ``.npy``, or ``.npz`` with one array or one called ``logits``.
        most: scores of a class; an archive that declares more is refused before it is unpacked. None: any number.

    Returns:
        ``[C, H, W]`` or ``[C]``, float32 (int64 where it holds integers), a leading axis of length 1 dropped.

    Raises:
        BldaError: it cannot be read, is pickled, holds no numbers, or has another number of dimensions.
    """
    try:
        check_regular(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                name = _name_within(archive, path)
                shape = _declared_shape(archive, name)
                if most is not None and math.prod(shape[-2:]) > most:
                    raise ValueError(f"it declares shape {list(shape)}, far larger than the image")
                array = archive[name]
        else:
            array = loaded
    except BldaError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        if "allow_pickle" in str(error):
            raise BldaError(
                f"{path} is pickled, which could run code when read: save a plain array of numbers"
            ) from error
        raise BldaError(f"{path}: cannot be read as an array: {error}") from error
    if array.ndim in (2, 4) and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (1, 3):
        raise BldaError(f"{path} is of shape {list(array.shape)}; [C, H, W] is needed, or [C] of a classifier")
    if array.dtype.kind not in "fiub":
        raise BldaError(f"{path} holds {array.dtype} values; floating-point numbers are needed")
    # In this machine's byte order, and a type that PyTorch has; integers are refused later, as class ids.
    with np.errstate(over="ignore"):  # infinities are refused later, too
        return array.astype(np.float32 if array.dtype.kind == "f" else np.int64, copy=False)


def _name_within(archive: np.lib.npyio.NpzFile, path: Path) -> str:
    """The array of an archive that holds the logits."""
    if len(archive.files) != 1 and "logits" not in archive.files:
        raise BldaError(f"{path} holds {', '.join(archive.files) or 'no array'}: call the one meant logits")
    return "logits" if "logits" in archive.files else archive.files[0]


def _header_shape(path: Path) -> tuple[int, ...]:
    """The shape of an array file, from its header alone.

    Raises:
        BldaError: it cannot be read.
    """
    try:
        check_regular(path)
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                return _declared_shape(archive, _name_within(archive, path))
        return tuple(loaded.shape)
    except BldaError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise BldaError(f"{path}: cannot be read as an array: {error}") from error


def _declared_shape(archive: np.lib.npyio.NpzFile, name: str) -> tuple[int, ...]:
    """The shape of an array in an archive, before it is unpacked: what is packed well may take all memory.

    Raises:
        ValueError: it is no plain array.
    """
    assert archive.zip is not None
    with archive.zip.open(f"{name}.npy") as stream:
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(stream)]
        return tuple(read(stream)[0])
