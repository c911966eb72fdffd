"""Images with labels to train or validate on: labels from files, or made by the network itself."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.encodings import LabelEncoding, custom_encoding
from blda_cli.data.images import find_images, refuse_among
from blda_cli.data.labels import LabelReader, label_reader
from blda_cli.data.source import ImageSource
from blda_cli.files import stamp
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import SegmenterSpec


@dataclass(frozen=True)
class Labelled:
    """Images and their labels.

    Attributes:
        files: the images, each once.
        labels: reads an image's label.
        meaning: text that changes when the label files' values mean other classes.
        times: how often each image is to be drawn, relative to the others; empty: all alike.
        fading: locations of images that are drawn less and less.
    """

    files: Sequence[ImageSource]
    labels: LabelReader
    meaning: str = ""
    times: Sequence[int] = ()
    fading: frozenset[str] = frozenset()

    @property
    def drawn(self) -> list[int]:
        """The images' indices, each as often as the image is to be drawn."""
        times = self.times or [1] * len(self.files)
        return [index for index, count in enumerate(times) for _ in range(count)]

    def stamps(self) -> dict[str, str]:
        """The state of every image and label file, by its location."""
        images = {file.location: file.fingerprint() for file in self.files}
        return images | {os.fspath(path): stamp([path]) for path in self.labels.paths.values()}

    def beside(self, others: "Labelled") -> "Labelled":
        """These and others, each about half of the draws; an image in both has the label of the others."""
        known = {file.location for file in others.files}
        mine = [index for index, file in enumerate(self.files) if file.location not in known]
        files = [self.files[index] for index in mine]
        readers = dict.fromkeys(files, self.labels) | dict.fromkeys(others.files, others.labels)
        paths = {os.fspath(path): path for one in (self, others) for path in one.labels.paths.values()}
        own, their = np.bincount(self.drawn)[mine], np.bincount(others.drawn)
        ratio = max(1, own.sum()) / their.sum()
        times = [*own * max(1, round(1 / ratio)), *their * max(1, round(ratio))]
        reader = LabelReader(lambda file: readers[file](file), self.labels.encoding, paths)
        fading = (self.fading - known) | others.fading
        return Labelled([*files, *others.files], reader, self.meaning + others.meaning, times, fading)


def find_labelled(
    spec: SegmenterSpec, segmenter: NetworkSegmenter, output: Path, images: str, labels: str, encoding: str
) -> Labelled:
    """Images and files of their labels.

    Args:
        spec: says what label values mean where ``encoding`` is ``"auto"``.
        segmenter: has the classes.
        output: the run folder, which may not lie among them.
        images: a folder, a glob or a list.
        labels: likewise.
        encoding: what the values in the label files mean.

    Raises:
        BldaError: they cannot be found or do not fit.
    """
    files = find_images(images, spec.preprocessing.pixels)
    mapping = spec.labels.mapping if encoding == "auto" else {}
    named = (spec.labels.encoding or segmenter.label_encoding or encoding) if encoding == "auto" else encoding
    chosen: str | LabelEncoding = custom_encoding(mapping) if mapping else named
    reader = label_reader(
        files,
        labels,
        segmenter.classes,
        encoding=chosen,
        groups=spec.classes.groups or None,
        orientation=spec.labels.orientation,
    )
    refuse_among(output, images, (file.path for file in files))
    refuse_among(output, labels, reader.paths.values())
    meaning = json.dumps([mapping or named, spec.classes.groups], sort_keys=True, default=dict)
    return Labelled(files, reader, meaning)


def without_labels(files: Sequence[ImageSource]) -> Labelled:
    """Images whose pixels have no label, for methods that use no labels."""
    reader = LabelReader(lambda file: np.full(file.size(), IGNORE_INDEX, dtype=np.int16), "none", {})
    return Labelled(files, reader, "no labels")


def own_labelled(files: Sequence[ImageSource], read: Callable[[ImageSource], np.ndarray], *, fading: bool) -> Labelled:
    """Images with the labels that a run keeps for them, int16 ``[H, W]``."""
    locations = frozenset(file.location for file in files) if fading else frozenset()
    return Labelled(files, LabelReader(read, "own", {}), "own labels", fading=locations)
