"""``blda align``: run the segmenter again and write corrected predictions."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from blda_cli.core.corrections import Correction
from blda_cli.core.fitting import AlignmentSettings, Evidence, fit_correction
from blda_cli.core.kernels import argmax
from blda_cli.data.loader import SkippedFile
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.pipelines.collect import CHECKPOINT_SECONDS, input_stamp, model_identity
from blda_cli.runtime.monitor import Interrupted, Monitor
from blda_cli.runtime.process_group import wait_for_all
from blda_cli.runtime.shards import Shard
from blda_cli.segmenters.base import InferenceOptions, Segmenter
from blda_cli.store import prediction_folder
from blda_cli.store.differences import difference_of
from blda_cli.store.predictions import (
    RECORD,
    PredictionWriter,
    RunRecord,
    merge_records,
    read_record,
    write_classifications,
    write_record,
)
from blda_cli.store.provenance import Provenance
from blda_cli.store.statistics import StatisticsFile


def evidence_from_files(
    settings: AlignmentSettings,
    target: StatisticsFile,
    anchors: StatisticsFile,
    labelled: StatisticsFile | None = None,
    priors: StatisticsFile | None = None,
) -> Evidence:
    """What files hold for a correction to be fitted to.

    Args:
        settings: method, form and strength.
        target: statistics of the images to be corrected.
        anchors: statistics whose pooled cells are the anchors; ``target`` itself where there are no others.
        labelled: statistics with ground truth of a few images like the target's, for the supervised method.
        priors: statistics with ground truth that tells where the classes lie, e.g. of the source domain.

    Returns:
        The evidence, its tensors on the CPU.

    Raises:
        BldaError: a file lacks the label source, or the two are of different classes or logit spaces.
    """
    held = list(target.statistics.cells)
    source = settings.label_source if settings.method.uses_cells or not held else held[0]
    if anchors.classes.names != target.classes.names:
        raise BldaError("the anchors are of other classes than the statistics: collect both with the same model")
    if anchors.statistics.space != target.statistics.space:
        raise BldaError(
            f"the anchors hold {anchors.statistics.space} logits, the statistics {target.statistics.space} ones: "
            "collect both with the same --logit-space"
        )
    for content in (target, anchors):
        if source not in content.statistics.cells:
            others = ", ".join(content.statistics.cells)
            raise BldaError(f"--label-source {source}: the statistics hold only {others}; collect that source too")
    cells = anchors.statistics.cells[source]
    if priors is not None and priors.classes.names != target.classes.names:
        raise BldaError("the spatial priors are of other classes than the statistics: collect both with the same model")
    places = priors.statistics.positions if priors else None
    if priors is not None and (places is None or not bool(places.counts.any())):
        raise BldaError(
            "the file given for the spatial priors does not tell where classes lie in the images: collect it with "
            "--labels, by this version of blda"
        )
    return Evidence(
        target.statistics,
        cells,
        labelled.statistics if labelled else None,
        places.priors() if places else None,
        norms_shifted=target.norms_shifted,
    )


def fit_from_files(settings: AlignmentSettings, target: StatisticsFile, anchors: StatisticsFile) -> Correction:
    """Fit a correction to what files hold; see :func:`evidence_from_files`."""
    return fit(settings, evidence_from_files(settings, target, anchors))


def fit(settings: AlignmentSettings, evidence: Evidence) -> Correction:
    """Fit a correction.

    Raises:
        BldaError: the evidence lacks what the method needs.
    """
    try:
        return fit_correction(settings, evidence)
    except ValueError as error:
        raise BldaError(str(error)) from error


def check_statistics(
    segmenter: Segmenter, inference: InferenceOptions, content: StatisticsFile, path: Path, *, force: bool
) -> None:
    """Refuse statistics that are not of this segmenter, run this way.

    Args:
        segmenter: the segmenter.
        inference: how it is run.
        content: the statistics.
        path: what to call them.
        force: accept all that can be used at all.

    Raises:
        BldaError: model, preprocessing, ways of running or classes differ; the message names the difference.
    """
    if len(content.classes) != len(segmenter.classes):
        raise BldaError(
            f"{path} is of {len(content.classes)} classes, the model has {len(segmenter.classes)}: "
            "collect statistics with this model"
        )
    if force:
        return
    difference = difference_of(content.model, model_identity(segmenter, inference))
    if difference is None and content.classes.names != segmenter.classes.names:
        difference = "the classes"
    if difference:
        raise BldaError(
            f"{path} was made with another model or preprocessing: it differs in {difference}; "
            "collect statistics with this one, or --force"
        )


def align(
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    folder: Path,
    correction: Correction,
    *,
    settings: AlignmentSettings,
    statistics: Mapping[str, Any],
    inference: InferenceOptions,
    original_ids: bool,
    save_scores: bool,
    provenance: Provenance,
    overwrite: bool,
    monitor: Monitor,
    shard: Shard,
) -> RunRecord:
    """Write corrected predictions of images.

    A folder that an earlier call left unfinished is completed.

    Args:
        segmenter: gives the logits.
        files: the images.
        folder: where to write, see :mod:`blda_cli.store.predictions`.
        correction: what corrects them, as ``settings`` say.
        settings: recorded.
        statistics: recorded: file name and digest of the statistics.
        inference: how images are run.
        original_ids: write the data set's original ids in place of class ids.
        save_scores: also keep the scores.
        provenance: recorded.
        overwrite: replace predictions that are there, once these are complete.
        monitor: is told the progress.
        shard: this process among those of ``torchrun``.

    Returns:
        The record of the folder (in every process).

    Raises:
        BldaError: the folder holds other predictions or other things, an image cannot be read, or a file cannot
            be written.
        Interrupted: the user asked to stop.
    """
    classes = segmenter.classes
    record = RunRecord(
        classes=list(classes.names),
        palette=[list(color) for color in classes.palette],
        ids=list(classes.ids) if original_ids else list(range(len(classes))),
        model=model_identity(segmenter, inference),
        settings={**asdict(settings), "scores": save_scores},
        statistics=dict(statistics),
        images={file.key: file.location for file in shard.of(files)},
        stamps={file.key: input_stamp(segmenter, file) for file in shard.of(files)},
        pixels_before=[0] * len(classes),
        pixels_after=[0] * len(classes),
        provenance=provenance,
    )
    work = _make_room(folder, overwrite, shard)
    part = shard.path(work / RECORD)
    if part.exists():
        record = _resumed(part, record, folder)
    write_record(part, record)
    remaining = [file for file in shard.of(files) if file.key not in record.changed]
    monitor.start("aligning", len(record.images), len(record.images) - len(remaining))
    skipped: list[SkippedFile] = []
    try:
        with PredictionWriter(work, record, keeps_scores=save_scores) as writer:
            _align(segmenter, remaining, correction.to(segmenter.device), writer, part, inference, monitor, skipped)
    except (BldaError, Interrupted):
        if shard.world == 1 and not record.changed:  # another process may have written something
            prediction_folder.leave(folder)
        raise
    if skipped:
        record.provenance = replace(provenance, skipped={entry.file.key: entry.reason for entry in skipped})
    if shard.world > 1:
        write_record(part, record)
        wait_for_all(shard)
        if shard.first:
            record = merge_records([read_record(shard.path(work / RECORD, rank)) for rank in range(shard.world)])
    if shard.first:
        if not record.changed and provenance.shard is None:
            prediction_folder.leave(folder)
            reason = next(iter(record.skipped.values()))
            raise BldaError(f"no image could be read, so there is nothing to write; the first: {reason}")
        if record.classified:
            write_classifications(work, record)
        write_record(work / RECORD, record)
        prediction_folder.finish(folder)
    wait_for_all(shard)
    return record if shard.first else read_record(folder / RECORD)


def _align(
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    correction: Correction,
    writer: PredictionWriter,
    part: Path,
    inference: InferenceOptions,
    monitor: Monitor,
    skipped: list[SkippedFile],
) -> None:
    """Write ``files``, keeping the record in ``part`` now and then and when something stops it."""
    kept = time.monotonic()
    try:
        for batch in segmenter.stream(files, inference, None, skipped):
            before, after = argmax(batch.logits), correction.predict(batch.logits)
            scores = correction.scores(batch.logits).half().cpu() if writer.keeps_scores else None
            # Class ids of a byte where they fit: what is copied and encoded is eight times smaller.
            ids = torch.stack([before, after.to(before.dtype)], dim=1).cpu().numpy()
            for index, file in enumerate(batch.files):
                writer.write(file, ids[index, 0], ids[index, 1], None if scores is None else scores[index])
            monitor.advance(len(batch.files))
            monitor.check()
            if time.monotonic() - kept > CHECKPOINT_SECONDS:
                writer.flush()
                write_record(part, writer.record)
                kept = time.monotonic()
        writer.flush()
    except (BldaError, Interrupted):  # raised between batches
        try:
            writer.flush()
        finally:
            write_record(part, writer.record)
        raise


def _make_room(folder: Path, overwrite: bool, shard: Shard) -> Path:
    """Where the predictions are put together."""
    prediction_folder.check_folder(folder, overwrite)
    wait_for_all(shard)  # nobody changes anything before everybody has looked
    if shard.first:
        work = prediction_folder.begin(folder, overwrite)
        usable = {shard.path(work / RECORD, rank) for rank in range(shard.world)}
        for path in set(work.glob(f"{RECORD}.*")) - usable:  # of another number of processes
            path.unlink()
    wait_for_all(shard)
    return prediction_folder.unfinished(folder)


def _resumed(part: Path, fresh: RunRecord, folder: Path) -> RunRecord:
    """The record an earlier call left, if it was making the same predictions."""
    kept = read_record(part)
    if not kept.changed:
        return fresh
    for name in ("model", "settings", "statistics", "ids", "images"):
        difference = difference_of(getattr(kept, name), getattr(fresh, name), name)
        if difference:
            raise BldaError(f"{folder} holds an unfinished run that differs in {difference}: --overwrite starts anew")
    replaced = next((key for key in kept.changed if kept.stamps.get(key) != fresh.stamps[key]), None)
    if replaced is not None:
        raise BldaError(
            f"{fresh.images[replaced]} is not the file it was when an unfinished run in {folder} predicted it: "
            "--overwrite starts anew"
        )
    return replace(kept, stamps=fresh.stamps, provenance=fresh.provenance)
