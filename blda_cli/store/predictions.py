"""Predictions on disk: PNG class ids in the images' tree, and ``run.json`` with their provenance.

An output folder holds ``predictions/KEY.png`` (after alignment), ``argmax/KEY.png`` (before), ``run.json`` and, on
demand, ``scores/KEY.h5``. A classifier's folder holds ``predictions.csv`` instead of pictures. Scores have a file per
image, so that each appears complete or not at all, and several processes can write them.
"""

import csv
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_type_hints

import numpy as np
from PIL import Image
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.methods import AlignmentSettings, chosen_settings
from blda_cli.data.classes import ClassSet, class_set, void_value
from blda_cli.data.images import image_at
from blda_cli.data.label_files import read_label_file, write_label_png
from blda_cli.data.logit_arrays import LogitArray
from blda_cli.data.pixels import PixelFormat
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import replacing, to_json
from blda_cli.runtime.shards import processors
from blda_cli.store.hdf5 import writing
from blda_cli.store.provenance import Provenance
from blda_cli.store.whole_predictions import divided, read_whole, write_whole
from blda_cli.text import plain_cell
from blda_cli.typed import check_type

FORMAT = "blda-predictions"
FORMAT_VERSION = 1
RECORD = "run.json"

PREDICTIONS = "predictions"
ARGMAX = "argmax"
SCORES = "scores"
CONFIDENCE = "confidence"
OVERLAYS = "overlays"
ANNOTATIONS = "annotations"
CLASSIFICATIONS = "predictions.csv"


@dataclass
class RunRecord:
    """How a folder of predictions was made.

    Attributes:
        classes: names of the classes.
        palette: their colours.
        ids: the value each class has in the PNG files.
        model: the segmenter's identity and how it was run.
        settings: method, form, strength and the other choices.
        statistics: file name and digest of the statistics used.
        verdict: whether the images are in domain, where ``tau = "auto"`` went by that.
        evidence: of the verdict, as ``domain_gap`` in ``report.json``.
        images: key and location of each image, in order; see `image_at`.
        stamps: fingerprint of the files read for each image, see :func:`blda_cli.files.stamp`.
        pixels_before: pixels predicted as each class by argmax, without those that are rejected.
        pixels_after: pixels predicted as each class after alignment.
        pixels_changed: pixels predicted as another class than by argmax.
        pixels_rejected: pixels whose prediction was rejected for its low score.
        changed: share of pixels changed, per key of an image whose prediction is there.
        classified: class ids before and after, per key; of a classifier only.
        provenance: command line, options, versions and time.
    """

    classes: list[str]
    palette: list[list[int]]
    ids: list[int]
    model: dict[str, Any]
    settings: dict[str, Any]
    statistics: dict[str, Any]
    images: dict[str, str]
    verdict: str | None = None
    evidence: dict[str, Any] | None = None
    stamps: dict[str, str] = field(default_factory=dict)
    pixels_before: list[int] = field(default_factory=list)
    pixels_after: list[int] = field(default_factory=list)
    pixels_changed: int = 0
    pixels_rejected: int = 0
    changed: dict[str, float] = field(default_factory=dict)
    classified: dict[str, list[int]] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def norms_adapted(self) -> bool:
        """Whether the predictions before the correction are with adapted norm statistics, and not as trained."""
        return self.model.get("norms") is not None

    @property
    def class_set(self) -> ClassSet:
        """The classes of the predictions, with the values of the PNG files."""
        palette = tuple((red, green, blue) for red, green, blue in self.palette)
        return ClassSet(tuple(self.classes), palette, tuple(self.ids))

    @property
    def alignment(self) -> AlignmentSettings:
        """The correction's settings; those that an older record lacks have their defaults.

        Raises:
            ValueError: there is no such correction.
        """
        known = {one.name for one in fields(AlignmentSettings)}
        return chosen_settings({name: value for name, value in self.settings.items() if name in known})

    @property
    def skipped(self) -> Mapping[str, str]:
        """Reason for each skipped image, by key."""
        return self.provenance.skipped


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record, ``run.json`` of a folder that is complete.

    Raises:
        BldaError: it cannot be written.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **asdict(record),
        "provenance": record.provenance.as_json(),
    }
    with replacing(path) as temporary:
        temporary.write_text(to_json(content), encoding="utf-8")


def read_record(path: Path) -> RunRecord:
    """Read a record, ``run.json`` of a folder that is complete.

    Raises:
        BldaError: there is none, or it is not a record of blda.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("not a record of predictions")
        version = content.pop("format_version")
        if version > FORMAT_VERSION:
            raise BldaError(f"{path} has format version {version}, this blda reads up to {FORMAT_VERSION}: upgrade it")
        content["provenance"] = Provenance.from_json(content.get("provenance", {}))
        hints = get_type_hints(RunRecord)
        for name, value in content.items():
            if name in hints and name != "provenance":
                check_type(value, hints[name], name)
        record = RunRecord(**content)
        _check(record)
        return record
    except FileNotFoundError as error:
        raise BldaError(f"{path.parent} holds no {path.name}; blda align makes such a folder") from error
    except RecursionError as error:
        raise BldaError(f"{path} cannot be read as the record of blda align: it is nested too deep") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BldaError(f"{path} cannot be read as the record of blda align: {error}") from error


def _check(record: RunRecord) -> None:
    """Raise unless the fields of a record are consistent, so that later code need not check them.

    Raises:
        ValueError: they do not; the message names the field.
    """
    classes = len(record.classes)
    colors = [part for color in record.palette for part in color]
    _expect("palette", all(len(color) == 3 for color in record.palette), "red, green and blue")
    _expect("palette", all(0 <= part <= 255 for part in colors), "of colours from 0 to 255")
    try:
        class_set(record.classes)
    except BldaError as error:
        raise ValueError(f"classes: {error}") from error
    for name in ("palette", "ids", "pixels_before", "pixels_after"):
        _expect(name, len(getattr(record, name)) == classes, f"one entry for each of the {classes} classes")
    _expect("ids", all(0 <= one < 65535 for one in record.ids) and len({*record.ids}) == classes, "ids below 65535")
    pixels = (*record.pixels_before, *record.pixels_after, record.pixels_changed, record.pixels_rejected)
    _expect("pixels_before", min(pixels) >= 0, "numbers of pixels, nor are pixels_after and pixels_changed")
    _expect("pixels_after", sum(record.pixels_before) == sum(record.pixels_after), "as many pixels as pixels_before")
    _expect("changed", all(0 <= share <= 1 for share in record.changed.values()), "shares from 0 to 1")
    for name in ("stamps", "changed", "classified"):
        _expect(name, getattr(record, name).keys() <= record.images.keys(), "of the images alone")
    pairs = record.classified.values()
    _expect("classified", all(len(pair) == 2 and 0 <= min(pair) <= max(pair) < classes for pair in pairs), "class ids")
    for name in ("method", "tau"):
        _expect(f"settings.{name}", name in record.settings, "there")
    try:
        record.alignment  # noqa: B018  # raises
    except ValueError as error:
        raise ValueError(f"settings.{error}") from error
    check_type(record.settings.get("scores"), bool, "settings.scores")
    for name in ("file", "sha256"):
        check_type(record.statistics.get(name), str, f"statistics.{name}")
    for name, value in record.statistics.items():
        check_type(value, str | None, f"statistics.{name}")
    said = record.model.get("preprocessing") or {}
    check_type(said, Mapping[str, Any], "model.preprocessing")
    check_type(said.get("range"), list[float] | None, "model.preprocessing.range")
    check_type(said.get("layout"), str | None, "model.preprocessing.layout")
    bands = said.get("bands") or []
    check_type(bands, list[Any], "model.preprocessing.bands")
    _expect("model.preprocessing.bands", all(isinstance(band, str | int) for band in bands), "names and numbers")
    check_type(record.model.get("groups"), Mapping[str, list[str]] | None, "model.groups")


def _expect(name: str, fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"{name} is not {what}")


def merge_records(parts: Sequence[RunRecord]) -> RunRecord:
    """Merge the records of processes that wrote different images into one folder."""
    merged = replace(parts[0])
    for part in parts[1:]:
        merged = replace(
            merged,
            images={**merged.images, **part.images},
            stamps={**merged.stamps, **part.stamps},
            pixels_before=[sum(pair) for pair in zip(merged.pixels_before, part.pixels_before, strict=True)],
            pixels_after=[sum(pair) for pair in zip(merged.pixels_after, part.pixels_after, strict=True)],
            pixels_changed=merged.pixels_changed + part.pixels_changed,
            pixels_rejected=merged.pixels_rejected + part.pixels_rejected,
            changed={**merged.changed, **part.changed},
            classified={**merged.classified, **part.classified},
            provenance=replace(merged.provenance, skipped={**merged.skipped, **part.skipped}),
        )
    return replace(merged, images=dict(sorted(merged.images.items())))


@dataclass(frozen=True)
class _Written:
    """Result of writing one image's prediction."""

    key: str
    before: np.ndarray
    after: np.ndarray
    changed: int
    rejected: int


class PredictionWriter:
    """Writes predictions in threads, so that encoding stays off the critical path.

    At most two pictures a thread wait, so memory stays bounded. Used as a context manager.

    Attributes:
        record: kept up to date: an image is in it once its prediction is on disk.
    """

    def __init__(self, folder: Path, record: RunRecord) -> None:
        """Start the threads.

        Args:
            folder: the output folder.
            record: classes and the values they have in the PNG files; written images are added to it.
        """
        self.record = record
        self._folder = folder
        self._classes = record.class_set
        # Two pictures an image: a fast network gives images faster than two threads encode them.
        self._threads = min(max(4, processors() // 2), 16)
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="blda-write")
        self._waiting: deque[Future[_Written]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True)

    def write(
        self,
        file: ImageSource,
        before: np.ndarray,
        after: np.ndarray,
        scores: Tensor | None = None,
        confidence: np.ndarray | None = None,
    ) -> None:
        """Write an image's predictions.

        Args:
            file: the image.
            before: integers ``[H, W]``, argmax, ``IGNORE_INDEX`` where nothing is predicted; ``[]`` of a classifier.
            after: integers of the same shape, aligned; ``IGNORE_INDEX`` also where a prediction is rejected.
            scores: float16 ``[C, H, W]`` or ``[C]``; None where they are not asked for.
            confidence: uint8 ``[H, W]``, likewise.

        Raises:
            BldaError: an earlier picture could not be written.
        """
        while len(self._waiting) >= 2 * self._threads:
            self._note(self._waiting.popleft().result())
        self._waiting.append(self._executor.submit(self._encode, file.key, before, after, scores, confidence))
        if before.ndim == 0:
            self.record.classified[file.key] = [int(before), int(after)]

    def flush(self) -> None:
        """Wait until all predictions are written and recorded.

        Raises:
            BldaError: a picture could not be written; the others are noted.
        """
        failed: BldaError | None = None
        while self._waiting:
            try:
                self._note(self._waiting.popleft().result())
            except BldaError as error:
                failed = error
        if failed is not None:
            raise failed

    def _encode(
        self, key: str, before: np.ndarray, after: np.ndarray, scores: Tensor | None, confidence: np.ndarray | None
    ) -> _Written:
        if scores is not None:
            with writing(prediction_path(self._folder, key, SCORES)) as file:
                file.create_dataset("scores", data=scores.numpy(), compression="lzf" if scores.dim() > 1 else None)
                file.attrs["classes"] = list(self._classes.names)
        if before.ndim > 0:
            for kind, labels in ((ARGMAX, before), (PREDICTIONS, after)):
                write_label_png(prediction_path(self._folder, key, kind), labels, self._classes, original_ids=True)
            if confidence is not None:
                write_confidence(self._folder, key, confidence)
        pairs = _count_pairs(before, after, len(self._classes))
        return _Written(
            key=key,
            before=pairs.sum(axis=1),
            after=pairs.sum(axis=0),
            changed=int(pairs.sum() - pairs.trace()),
            rejected=int(np.count_nonzero((before >= 0) & (after < 0))),
        )

    def _note(self, written: _Written) -> None:
        record = self.record
        record.pixels_before = (np.array(record.pixels_before) + written.before).tolist()
        record.pixels_after = (np.array(record.pixels_after) + written.after).tolist()
        record.pixels_changed += written.changed
        record.pixels_rejected += written.rejected
        record.changed[written.key] = written.changed / max(1, int(written.before.sum()))


def _count_pairs(before: np.ndarray, after: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each pair of class ids, int64 ``[C, C]``.

    Not with torch, which would start OpenMP threads beside the network's: with more threads than cores, OpenMP lets
    all of them sleep between loops, and a network of small layers takes a third longer.
    """
    if after.min(initial=0) < 0:  # no data, or rejected
        before, after = before[after >= 0], after[after >= 0]
    pairs = before.astype(np.intp)
    pairs *= num_classes
    pairs += after
    counts: np.ndarray = np.bincount(pairs.reshape(-1), minlength=num_classes**2).reshape(num_classes, num_classes)
    return counts


def prediction_path(folder: Path, key: str, kind: str = PREDICTIONS) -> Path:
    """Where an image's prediction lies; ``kind``: `PREDICTIONS`, `ARGMAX`, `CONFIDENCE` or `SCORES`.

    Raises:
        BldaError: the key would lead out of the folder.
    """
    within = Path(f"{key}{'.h5' if kind == SCORES else '.png'}")
    # By the name alone: a walk up the folders for links took a quarter of the time of writing small images.
    if within.anchor or ".." in within.parts:
        raise BldaError(f"{key}: this name leads out of {folder}")
    return folder / kind / within


@dataclass(frozen=True)
class AlignedFolder:
    """A folder of corrected predictions.

    Attributes:
        path: where it lies.
        record: how it was made.
    """

    path: Path
    record: RunRecord

    @property
    def files(self) -> list[ImageSource]:
        """The images it holds predictions of."""
        return [self.image(key) for key in self.record.images if key in self.record.changed]

    def image(self, key: str) -> ImageSource:
        """The image of a key of the record."""
        record = self.record
        place = record.images[key]
        if record.model.get("kind") == "logits" and Path(place).suffix in LogitArray.suffixes:
            return LogitArray(Path(place), key)
        said = record.model.get("preprocessing") or {}
        low_high = said.get("range")
        pixels = PixelFormat(tuple(said.get("bands") or ()), low_high and tuple(low_high), said.get("layout"))
        return image_at(place, key, pixels)

    def confidence(self, key: str) -> np.ndarray:
        """The confidence, uint8 ``[H, W]``, of an image whose predictions are put together with those of others.

        Raises:
            BldaError: it cannot be read, or there is none.
        """
        values = read_whole(self.path / CONFIDENCE, self.image(key))
        if values is None:
            raise BldaError(f"{prediction_path(self.path, key, CONFIDENCE)} does not exist: run blda align again")
        return values.astype(np.uint8)

    def read(self, key: str, kind: str) -> np.ndarray:
        """The class ids of an image.

        Args:
            key: the image's.
            kind: ``ARGMAX`` (before) or ``PREDICTIONS`` (after).

        Returns:
            int64 ``[H, W]``, ``IGNORE_INDEX`` where nothing is predicted; ``[]`` of a classifier.

        Raises:
            BldaError: they cannot be read, or are not of the record's classes.
        """
        if self.record.classified:
            return np.array(self.record.classified[key][kind == PREDICTIONS])
        path = prediction_path(self.path, key, kind)
        values = read_whole(self.path / kind, self.image(key))
        values = read_label_file(path).values if values is None else values
        if values is None:
            raise BldaError(f"{path} is a colour picture, not class ids: run blda align again")
        unknown, void = IGNORE_INDEX - 1, void_value(self.record.ids)
        table = np.full(max(void, int(values.max(initial=0))) + 1, unknown, dtype=np.int64)
        table[void] = IGNORE_INDEX
        table[self.record.ids] = np.arange(len(self.record.ids))
        labels: np.ndarray = table[values]
        if bool((labels == unknown).any()):
            raise BldaError(f"{path} holds values that are no class of {RECORD}: run blda align again")
        return labels


def write_confidence(folder: Path, key: str, confidence: np.ndarray) -> None:
    """Write an image's ``confidence/KEY.png``.

    Args:
        folder: of predictions.
        key: the image's.
        confidence: uint8 ``[H, W]``, 0 to 255 for 0 to 1.

    Raises:
        BldaError: it cannot be written.
    """
    with replacing(prediction_path(folder, key, CONFIDENCE)) as temporary:
        Image.fromarray(confidence).save(temporary, format="PNG", compress_level=1)


def write_divided(folder: Path, record: RunRecord) -> None:
    """Put the predictions of maps and of other images together that were written part by part.

    Raises:
        BldaError: a file cannot be read or written.
    """
    for parts in divided(AlignedFolder(folder, record).files):
        for kind in (ARGMAX, PREDICTIONS):
            write_whole(folder / kind, parts, record.class_set)
        if (folder / CONFIDENCE).is_dir():
            write_whole(folder / CONFIDENCE, parts, None)


def write_classifications(folder: Path, record: RunRecord) -> None:
    """Write a classifier's predictions as ``predictions.csv``: key, argmax and aligned id and name.

    Raises:
        BldaError: it cannot be written.
    """
    with (
        replacing(folder / CLASSIFICATIONS) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        table.writerow(["key", "argmax", "argmax_name", "prediction", "prediction_name"])
        for key, (before, after) in sorted(record.classified.items()):
            names = [plain_cell(name) for name in record.classes]
            table.writerow([plain_cell(key), record.ids[before], names[before], record.ids[after], names[after]])
