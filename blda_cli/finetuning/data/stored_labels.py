"""Pseudo-labels kept on disk as pictures, and cut as the crops of a batch are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.classes import ClassSet
from blda_cli.data.label_files import read_label_file, write_label_png
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.finetuning.data.samples import Crop, ReadingCache

_CACHE_BYTES = 1 << 28


class StoredLabels:
    """A folder of pseudo-labels: class ids with the classes' palette, in the images' tree.

    Attributes:
        folder: where they lie.
    """

    def __init__(self, folder: Path, num_classes: int) -> None:
        self.folder = folder
        self._num_classes = num_classes
        self._whole = ReadingCache(_CACHE_BYTES).reading(self.read)

    def write(self, file: ImageSource, labels: Tensor, classes: ClassSet) -> None:
        """Keep an image's labels, integers ``[H, W]``.

        Raises:
            BldaError: they cannot be written.
        """
        write_label_png(self._path(file), labels.cpu().numpy(), classes)

    def cut(self, crops: Sequence[Crop]) -> Tensor:
        """The labels under crops of one size, int64 ``[N, h, w]`` on the CPU.

        Raises:
            BldaError: a picture is missing or cannot be read.
        """
        return torch.from_numpy(np.stack([crop.cut(self._whole(crop.file)) for crop in crops])).long()

    def read(self, file: ImageSource) -> np.ndarray:
        """An image's labels, int16 ``[H, W]``; ``IGNORE_INDEX`` where there is none.

        Raises:
            BldaError: the picture is missing or cannot be read.
        """
        values = read_label_file(self._path(file)).values
        if values is None:
            raise BldaError(f"{self._path(file)} is not as it was written: start the run anew")
        labels: np.ndarray = np.where(values < self._num_classes, values.astype(np.int16), IGNORE_INDEX)
        return labels

    def _path(self, file: ImageSource) -> Path:
        return self.folder / f"{file.key}.png"
