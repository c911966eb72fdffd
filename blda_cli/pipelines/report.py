"""``blda report``: put statistics, predictions and labels together."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.data.classes import ClassSet
from blda_cli.data.encodings import LabelEncoding, custom_encoding
from blda_cli.data.labels import LabelReader, label_reader
from blda_cli.errors import BldaError
from blda_cli.files import file_digest, replacing
from blda_cli.pipelines.alignment_inputs import AlignmentInputs, StatisticsInput, check_comparable, fit
from blda_cli.pipelines.job import Job
from blda_cli.pipelines.requests import LabelRequest, ReportRequest
from blda_cli.reporting.build import build_report, picture_source
from blda_cli.reporting.comparison import compare_methods
from blda_cli.reporting.data_files import to_csv, to_json
from blda_cli.reporting.densities import Densities, densities
from blda_cli.reporting.gallery import Frame, choose_frames, make_gallery
from blda_cli.reporting.html import to_html
from blda_cli.reporting.model import Report
from blda_cli.runtime.monitor import Monitor, SilentMonitor
from blda_cli.store.predictions import (
    ARGMAX,
    PREDICTIONS,
    RECORD,
    AlignedFolder,
    prediction_path,
    read_record,
)
from blda_cli.store.provenance import Provenance
from blda_cli.store.statistics import StatisticsFile, read_statistics

OUTPUTS = ("report.html", "report.json", "report.csv")


def report(request: ReportRequest, job: Job | None = None) -> Report:
    """Report how over- or under-predicted each class is, and what corrections changed.

    Args:
        request: the statistics, folders of corrected predictions and labels.
        job: where to write ``report.html``, ``report.json`` and ``report.csv``; None writes nothing.

    Returns:
        The report's numbers.

    Raises:
        BldaError: a file cannot be read or written, or the files do not fit each other.
        Interrupted: the user asked to stop.
    """
    if job is None:
        return _report(request, None, Provenance(), SilentMonitor())
    with job.running():
        return _report(request, job, job.provenance, job.monitor)


def _report(request: ReportRequest, job: Job | None, provenance: Provenance, monitor: Monitor) -> Report:
    stats, labelled = request.stats, request.labelled
    if job is not None:
        _check_output(job.output, overwrite=job.overwrite)
    content = read_statistics(stats)
    if request.compare and not len(content.statistics.sample):
        raise BldaError(f"{stats} keeps no sampled pixels, so --compare has nothing to try methods on")
    folders = _open_folders(request.aligned, stats, content.classes)
    if labelled.labels and not folders and content.statistics.confusion is not None:
        raise BldaError(f"{stats} was collected with labels and is scored against them: leave out --labels")
    reader = _label_reader(folders, labelled) if labelled.labels else None
    digest = file_digest(stats)
    remarks = [
        f"{folder.path} was corrected with other statistics than those shown here: {folder.record.statistics['file']}."
        for folder in folders
        if folder.record.statistics["sha256"] != digest
    ]
    remarks += [
        f"{folder.path} rejects {folder.record.pixels_rejected:,} pixels; its numbers are of the others."
        for folder in folders
        if folder.record.pixels_rejected
    ]
    remarks += [
        f"{folder.path} is of another model than {folders[0].path}; what is called before is of the latter."
        for folder in folders
        if folder.record.model != folders[0].record.model
    ]
    if content.model.get("corrected"):
        remarks.append(
            f"The model is corrected already ({content.model['corrected']}), so these are numbers of corrected logits; "
            "blda align corrects them a second time only with --force."
        )
    counted = (content.provenance.labels or {}).get("source")
    if folders and counted and not labelled.labels:
        remarks.append(
            f"The statistics were collected with the labels {counted}: with --labels {counted} what was corrected is "
            "scored against them, too."
        )
    reference = _reference(request, folders, content)
    confusions = _confusions(folders, reader, len(content.classes), monitor) if reader else None
    made: dict[str, Any] = {
        **provenance.as_json(),
        "statistics": {
            "file": str(stats),
            "sha256": digest,
            "logit_space": str(content.statistics.space),
            "model": content.model,
            "norms_shifted": content.norms_shifted and content.norms is None,
            "provenance": content.provenance.as_json(),
        },
    }
    if reader:
        made["labels"] = {"encoding": reader.encoding, "ignored_share": reader.ignored_share}
    result = build_report(
        content,
        [(str(folder.path), folder.record) for folder in folders],
        confusions,
        compare_methods(content, reference.content if reference else None) if request.compare else [],
        made,
        [*remarks, *_flattering(folders, labelled)],
        (str(reference.path), reference.content) if reference else None,
    )
    if job is not None:
        _write(result, content, folders, reference, reader, job.output)
    return result


def _reference(
    request: ReportRequest, folders: Sequence[AlignedFolder], content: StatisticsFile
) -> StatisticsInput | None:
    """The requested reference, or that of the first run if its file is unchanged."""
    if request.reference is not None:
        reference: StatisticsInput | None = StatisticsInput.read(request.reference)
    else:
        inputs = AlignmentInputs.recorded(folders[0].record.statistics) if folders else None
        reference = inputs.reference if inputs else None
    if reference is not None:
        check_comparable(content, reference.content)
    return reference


def _flattering(folders: Sequence[AlignedFolder], labelled: LabelRequest) -> list[str]:
    """Remark on runs that are scored on images whose labels they were fitted to."""
    remarks = []
    for folder in folders if labelled.labels else ():
        inputs = AlignmentInputs.recorded(folder.record.statistics)
        if inputs is None or folder.record.alignment.method != "supervised":
            continue
        fitted = set((inputs.labelled or inputs.target).content.images)
        both = len(fitted & folder.record.changed.keys())
        if both:
            remarks.append(
                f"{folder.path} was fitted to the labels of {both} of the {len(folder.record.changed)} images that it "
                "is scored on: its scores flatter; score it on other images."
            )
    return remarks


def _open_folders(paths: Sequence[Path], statistics: Path, classes: ClassSet) -> list[AlignedFolder]:
    """Read the records of folders to compare; they must correct the same predictions of the same images."""
    folders = [AlignedFolder(path, read_record(path / RECORD)) for path in paths]
    for folder in folders:
        first = folders[0]
        if folder.record.classes != list(classes.names):
            raise BldaError(f"{folder.path} is of other classes than {statistics}: report each with its own statistics")
        if folder.record.changed.keys() != first.record.changed.keys():
            raise BldaError(f"{first.path} and {folder.path} are of different images: report them one by one")
        own = folder.record.model == first.record.model
        if own and folder.record.pixels_before != first.record.pixels_before:
            raise BldaError(f"{first.path} and {folder.path} correct different predictions: report them one by one")
    return folders


def _label_reader(folders: Sequence[AlignedFolder], request: LabelRequest) -> LabelReader:
    """Pair the images of folders of predictions with their labels."""
    assert request.labels is not None
    if not folders:
        raise BldaError(
            "--labels scores the predictions of --aligned folders: give one, or collect the statistics with --labels"
        )
    record = folders[0].record
    described = record.provenance.labels or {}
    if request.label_encoding is None and described.get("mapping"):
        meaning: str | LabelEncoding = custom_encoding(described["mapping"])
    else:
        meaning = request.label_encoding or described.get("encoding") or "auto"
    return label_reader(
        folders[0].files,
        request.labels,
        record.class_set,
        encoding=meaning,
        groups=record.model.get("groups") or None,
        ignore=request.ignore_label,
        orientation=described.get("orientation"),
    )


def _confusions(
    folders: Sequence[AlignedFolder], labels: LabelReader, num_classes: int, monitor: Monitor
) -> tuple[ConfusionMatrix, list[ConfusionMatrix]]:
    """Count all folders' predictions against the labels, image by image; before, and after for each folder."""
    files = folders[0].files
    before = ConfusionMatrix(num_classes)
    after = [ConfusionMatrix(num_classes) for _ in folders]
    monitor.start("scoring", len(files))
    for file in files:
        truth = labels(file)
        _count(before, truth, folders[0], file.key, ARGMAX)
        for confusion, folder in zip(after, folders, strict=True):
            _count(confusion, truth, folder, file.key, PREDICTIONS)
        monitor.advance(1)
        monitor.check()
    return before, after


def _count(confusion: ConfusionMatrix, truth: np.ndarray, folder: AlignedFolder, key: str, kind: str) -> None:
    predicted = folder.read(key, kind)
    if predicted.shape != truth.shape:
        raise BldaError(
            f"{folder.path}: the prediction of {key} is {_size(predicted)}, its label {_size(truth)} "
            "(width x height): they must be of one size"
        )
    there = predicted >= 0
    confusion.update(torch.from_numpy(truth[there]), torch.from_numpy(predicted[there]))


def _size(labels: np.ndarray) -> str:
    return "x".join(map(str, reversed(labels.shape))) or "one class"


def _check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse to write over a report unless that is asked for.

    Raises:
        BldaError: there is one, or the folder is a file.
    """
    if output.is_file():
        raise BldaError(f"{output} is a file: give a folder")
    present = [name for name in OUTPUTS if (output / name).exists()]
    if present and not overwrite:
        raise BldaError(f"{output / present[0]} exists already: --overwrite replaces it")


def _write(
    report: Report,
    content: StatisticsFile,
    folders: Sequence[AlignedFolder],
    reference: StatisticsInput | None,
    reader: LabelReader | None,
    output: Path,
) -> None:
    """Write the three files of a report."""
    page = to_html(report, _densities(content, folders, reference), _gallery(report, content.classes, folders, reader))
    new = not output.exists()
    try:
        for name, text in zip(OUTPUTS, (page, to_json(report), to_csv(report)), strict=True):
            with replacing(output / name) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    except BldaError:
        if new:  # part of a report is none
            shutil.rmtree(output, ignore_errors=True)
        raise


def _densities(
    content: StatisticsFile, folders: Sequence[AlignedFolder], reference: StatisticsInput | None
) -> Densities:
    """The distributions of the statistics, as the first folder's correction moves them, and of the reference."""
    source = picture_source(content.statistics)
    if reference is not None and source not in reference.content.statistics.cells:
        source = next((one for one in content.statistics.cells if one in reference.content.statistics.cells), source)
    usual = reference.content.statistics.cells.get(source) if reference else None
    cells = content.statistics.cells[source]
    record = folders[0].record if folders else None
    inputs = AlignmentInputs.recorded(record.statistics) if record else None
    if record is None or inputs is None or inputs.spatial_priors or not record.alignment.entry.moves_cells:
        return densities(cells, cells, None, usual)
    anchors = (inputs.reference or inputs.target).content.statistics.cells.get(source, cells)
    return densities(cells, anchors, fit(record.alignment, inputs.evidence(record.alignment)), usual)


def _read_after(first: AlignedFolder, folder: AlignedFolder, key: str) -> np.ndarray:
    """An image's corrected prediction, of the size of that before."""
    before, after = first.read(key, ARGMAX), folder.read(key, PREDICTIONS)
    if before.shape != after.shape:
        raise BldaError(
            f"{prediction_path(folder.path, key, PREDICTIONS)} is {_size(after)}, the network's own prediction "
            f"{_size(before)} (width x height): run blda align again"
        )
    return after


def _gallery(
    report: Report, classes: ClassSet, folders: Sequence[AlignedFolder], reader: LabelReader | None
) -> list[Frame]:
    """The frames that the first folder's correction changed most; none of a classifier."""
    if not folders or folders[0].record.classified:
        return []
    record = folders[0].record
    changed = {key: record.changed[key] for key in record.images if key in record.changed}
    return make_gallery(
        choose_frames(changed),
        {file.key: file for file in folders[0].files},
        partial(folders[0].read, kind=ARGMAX),
        {run.name: partial(_read_after, folders[0], folder) for run, folder in zip(report.runs, folders, strict=True)},
        classes,
        reader,
    )
