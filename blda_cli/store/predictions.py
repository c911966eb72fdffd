"""Predictions on disk: PNG class ids in the images' tree, and ``run.json`` saying exactly how they were made.

An output folder holds ``predictions/KEY.png`` (after alignment), ``argmax/KEY.png`` (before), ``run.json`` and, on
demand, ``scores.h5``. A classifier's folder holds ``predictions.csv`` instead of pictures.
"""

import csv
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from torch import Tensor

from blda_cli.data.classes import ClassSet
from blda_cli.data.images import ImageFile
from blda_cli.data.label_files import write_label_png
from blda_cli.errors import BldaError
from blda_cli.files import replacing

FORMAT = "blda-predictions"
FORMAT_VERSION = 1
RECORD = "run.json"

PREDICTIONS = "predictions"
ARGMAX = "argmax"


@dataclass
class RunRecord:
    """How a folder of predictions was made.

    Attributes:
        classes: names of the classes.
        palette: their colours.
        ids: the value each class has in the PNG files.
        model: the segmenter's identity and how it was run.
        settings: method, form, strength and what else was chosen.
        statistics: file name and digest of the statistics used.
        images: key and path of each image, in order.
        pixels_before: pixels predicted as each class by argmax.
        pixels_after: pixels predicted as each class after alignment.
        changed: share of pixels changed per image key.
        complete: all images are there.
        provenance: command, versions.
    """

    classes: list[str]
    palette: list[list[int]]
    ids: list[int]
    model: dict[str, Any]
    settings: dict[str, Any]
    statistics: dict[str, Any]
    images: dict[str, str]
    pixels_before: list[int] = field(default_factory=list)
    pixels_after: list[int] = field(default_factory=list)
    changed: dict[str, float] = field(default_factory=dict)
    complete: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def class_set(self) -> ClassSet:
        """The classes of the predictions, with the values of the PNG files."""
        palette = tuple((red, green, blue) for red, green, blue in self.palette)
        return ClassSet(tuple(self.classes), palette, tuple(self.ids))


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``run.json``.

    Raises:
        BldaError: it cannot be written.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(record)}
    with replacing(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> RunRecord:
    """Read ``run.json``.

    Raises:
        BldaError: there is none, or it is not one of ours.
    """
    path = folder / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("not a record of predictions")
        version = content.pop("format_version")
        if version > FORMAT_VERSION:
            raise BldaError(f"{path} has format version {version}, this blda reads up to {FORMAT_VERSION}: upgrade it")
        return RunRecord(**content)
    except FileNotFoundError as error:
        raise BldaError(f"{folder} holds no {RECORD}; blda align makes such a folder") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BldaError(f"{path} cannot be read as the record of blda align: {error}") from error


class PredictionWriter:
    """Writes predictions in threads, so that encoding stays off the critical path.

    At most ``2 * threads`` pictures wait, so memory stays bounded. Used as a context manager; leaving it waits for
    what is under way and raises what went wrong there.
    """

    def __init__(self, folder: Path, classes: ClassSet, *, original_ids: bool = False, scores: bool = False) -> None:
        """Prepare a folder.

        Args:
            folder: the output folder.
            classes: the classes.
            original_ids: write the data set's original ids.
            scores: also keep ``scores.h5``, opened for appending.
        """
        self._folder = folder
        self._classes = classes
        self._original_ids = original_ids
        self._scores = h5py.File(folder / "scores.h5", "a") if scores else None
        self._threads = 2
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="blda-write")
        self._waiting: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True)
        if self._scores is not None:
            self._scores.close()
        if kind is None:
            for future in self._waiting:
                future.result()

    def write(
        self, file: ImageFile, before: np.ndarray, after: np.ndarray, then: Callable[[], None], scores: Tensor | None
    ) -> None:
        """Write an image's predictions.

        Args:
            file: the image.
            before: integers ``[H, W]``, argmax.
            after: integers ``[H, W]``, aligned.
            then: called once they are on disk.
            scores: ``[C, H, W]``, kept as float16; None where they are not asked for.

        Raises:
            BldaError: an earlier picture could not be written.
        """
        while len(self._waiting) >= 2 * self._threads:
            self._waiting.pop(0).result()
        if self._scores is not None and scores is not None:
            if file.key in self._scores:
                del self._scores[file.key]
            self._scores.create_dataset(file.key, data=scores.half().cpu().numpy(), compression="lzf", shuffle=True)

        def encode() -> None:
            for kind, labels in ((ARGMAX, before), (PREDICTIONS, after)):
                path = prediction_path(self._folder, file.key, kind)
                write_label_png(path, labels, self._classes, original_ids=self._original_ids)
            then()

        self._waiting.append(self._executor.submit(encode))


def prediction_path(folder: Path, key: str, kind: str = PREDICTIONS) -> Path:
    """Where an image's prediction lies: ``kind`` is :data:`PREDICTIONS` or :data:`ARGMAX`.

    Raises:
        BldaError: the key would lead out of the folder.
    """
    path = folder / kind / f"{key}.png"
    if not path.resolve().is_relative_to((folder / kind).resolve()):
        raise BldaError(f"{key}: this name leads out of {folder}")
    return path


def write_classifications(
    folder: Path, classes: ClassSet, rows: Sequence[tuple[str, int, int]], *, original_ids: bool = False
) -> None:
    """Write a classifier's predictions as ``predictions.csv``: key, argmax and aligned id and name.

    Args:
        folder: the output folder.
        classes: the classes.
        rows: key, class id before, class id after.
        original_ids: write the data set's original ids.
    """
    ids = classes.ids if original_ids else range(len(classes))
    with replacing(folder / "predictions.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["key", "argmax", "argmax_name", "prediction", "prediction_name"])
        for key, before, after in rows:
            table.writerow([key, ids[before], classes.names[before], ids[after], classes.names[after]])
