"""Reading an image's label as class ids of the segmenter's classes."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from blda_cli.data.classes import IGNORE_INDEX, ClassSet
from blda_cli.data.encodings import LabelEncoding
from blda_cli.data.images import IMAGE_SUFFIXES, ImageFile, find_files, image_size, unreadable
from blda_cli.errors import BldaError


class LabelReader:
    """Reads the label of an image; made by `label_reader`.

    Attributes:
        encoding: what the pixel values of the label files mean.
    """

    def __init__(self, paths: Mapping[str, Path], encoding: LabelEncoding, classes: ClassSet, ignore: int | None):
        self.encoding = encoding
        self._paths = paths
        self._classes = classes
        self._ignore = ignore
        self._lock = threading.Lock()
        self._pixels = 0
        self._ignored = 0

    def __call__(self, file: ImageFile) -> np.ndarray:
        """Read the label of an image.

        Returns:
            uint8 (int64 where there are more than 255 classes) ``[H, W]`` class ids, ``IGNORE_INDEX`` where there
            is none; of shape ``[]`` for a classifier.

        Raises:
            BldaError: it cannot be read, is of another size than the image, or holds values that are no class.
        """
        path = self._paths[file.key]
        try:
            with Image.open(path) as image:
                raw = np.asarray(image)
        except Exception as error:
            raise unreadable(path, error) from error
        if file.path.suffix.lower() in IMAGE_SUFFIXES and raw.shape != image_size(file.path):
            raise BldaError(f"{path} is {raw.shape}, its image {image_size(file.path)}")
        labels = raw.copy()
        if self._ignore is not None:
            labels[raw == self._ignore] = IGNORE_INDEX
        with self._lock:
            self._pixels += labels.size
            self._ignored += int((labels == IGNORE_INDEX).sum())
        return labels

    @property
    def ignored_share(self) -> float:
        """Share of the pixels read so far that have no class; 0 before any was read."""
        return self._ignored / max(self._pixels, 1)


def label_reader(
    images: Sequence[ImageFile],
    source: str | Path,
    classes: ClassSet,
    *,
    encoding: str | LabelEncoding = "auto",
    groups: Mapping[str, Sequence[str]] | None = None,
    ignore: int | None = None,
) -> LabelReader:
    """Pair images with their labels and find out what the labels' values mean.

    Args:
        images: the images.
        source: a folder of label files (searched through), a glob, a ``.txt`` list, or, for a classifier, a CSV
            file of ``key,class``.
        classes: the segmenter's classes.
        encoding: name of an encoding, or one made by `custom_encoding`; ``"auto"`` goes by the files' names, then by
            their contents.
        groups: for each of the segmenter's classes the names of the classes it groups.
        ignore: a pixel value without a class, besides 255.

    Returns:
        The reader.

    Raises:
        BldaError: an image has no label, or the encoding does not fit the files or the classes.
    """
    _, found = find_files(source, IMAGE_SUFFIXES, "labels")
    by_stem = {path.stem: path for path in found}
    paths = {image.key: by_stem[image.path.stem] for image in images}
    return LabelReader(paths, LabelEncoding("ids"), classes, ignore)
