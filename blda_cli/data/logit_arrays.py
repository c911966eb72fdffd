"""Stored logits: ``.npy`` and ``.npz`` arrays, with their images or without."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blda_cli.data.arrays import SUFFIXES, read_numbers, shape_of
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError


@dataclass(frozen=True)
class LogitArray(ImageSource):
    """An image of which only the logits are stored, ``[C, H, W]`` or ``[C]``."""

    suffixes = SUFFIXES

    def size(self) -> tuple[int, int]:
        """See `ImageSource.size`: that of the map, from the array's header alone."""
        shape = shape_of(self.path, "logits")
        if len(shape) not in (3, 4):
            raise BldaError(
                f"{self.path} is of shape {list(shape)}: one answer for a whole image, which has no size; labels of "
                "whole images are given as a table of key,class"
            )
        return shape[-2], shape[-1]

    def seen(self) -> np.ndarray:
        """See `ImageSource.seen`."""
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
        if path.suffix in SUFFIXES and path.is_file():
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
        most: largest number of scores per class; an archive that declares more is refused before it is unpacked. None:
            any number.

    Returns:
        ``[C, H, W]`` or ``[C]``, float32 (int64 where it holds integers), a leading axis of length 1 dropped.

    Raises:
        BldaError: it cannot be read, is pickled, holds no numbers, or has another number of dimensions.
    """

    def check(shape: tuple[int, ...]) -> None:
        if most is not None and math.prod(shape[-2:]) > most:
            raise ValueError(f"it declares shape {list(shape)}, far larger than the image")

    array = read_numbers(path, "logits", check)
    if array.ndim in (2, 4) and array.shape[0] == 1:
        array = array[0]
    elif array.ndim == 2:
        array = array[None]  # one channel whose axis was dropped
    if array.ndim not in (1, 3):
        raise BldaError(f"{path} is of shape {list(array.shape)}; [C, H, W] is needed, or [C] of a classifier")
    # In this machine's byte order, and a type that PyTorch has; integers are refused later, as class ids.
    with np.errstate(over="ignore"):  # infinities are refused later, too
        return array.astype(np.float32 if array.dtype.kind == "f" else np.int64, copy=False)
