"""``blda align``: run the segmenter again and write corrected predictions."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import LabelSource
from blda_cli.core.corrections import Correction
from blda_cli.core.fitting import Evidence, resolve_strength
from blda_cli.core.fitting.strength import DomainGap, domain_gap
from blda_cli.core.kernels import argmax
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.norms import MixedNorms
from blda_cli.data.images import refuse_among
from blda_cli.data.loader import SkippedFile
from blda_cli.data.source import ImageSource, refuse_parts
from blda_cli.errors import BldaError
from blda_cli.files import real
from blda_cli.pipelines.alignment_inputs import AlignmentInputs, StatisticsInput, fit
from blda_cli.pipelines.collect import (
    CHECKPOINT_SECONDS,
    CountingOptions,
    check_images,
    collect_statistics,
    input_stamp,
    requested_norms,
    say_strong,
    with_kept_scales,
)
from blda_cli.pipelines.job import Job
from blda_cli.pipelines.pictures import write_overlays, write_video
from blda_cli.pipelines.requests import (
    AlignRequest,
    ExportRequest,
    FilesRequest,
    NormsRequest,
    OutputsRequest,
    chooses_scales,
)
from blda_cli.pipelines.subject import Subject, load_subject
from blda_cli.reporting.data_files import gap_data
from blda_cli.reporting.words import domain_verdict, found_gap
from blda_cli.runtime.monitor import COMMAND, Interrupted, Monitor
from blda_cli.runtime.process_group import wait_for_all
from blda_cli.runtime.shards import Shard
from blda_cli.segmenters.base import Segmenter, model_identity
from blda_cli.segmenters.norms import use_norms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.store import prediction_folder
from blda_cli.store.annotations import write_annotations
from blda_cli.store.differences import difference_of
from blda_cli.store.predictions import (
    RECORD,
    AlignedFolder,
    PredictionWriter,
    RunRecord,
    merge_records,
    read_record,
    write_classifications,
    write_divided,
    write_record,
)
from blda_cli.store.statistics import StatisticsFile


def align(request: AlignRequest, job: Job) -> RunRecord:
    """Load a segmenter, fit the correction and write corrected predictions of the images to ``job.output``.

    Args:
        request: the segmenter, the images, the statistics and the correction.
        job: where to write.

    Returns:
        The record of the folder (in every process).

    Raises:
        BldaError: the segmenter, an image or a statistics file cannot be read, the statistics are of another model,
            or the predictions cannot be written.
        Interrupted: the user asked to stop.
    """
    settings, files, inference, say = request.alignment, request.files, request.inference, job.monitor.say
    # Files are checked before the network is loaded, so that a misspelt name is refused at once.
    prediction_folder.check_folder(job.output, job.overwrite)
    refuse_among(job.output, request.subject.images, [])
    inputs = AlignmentInputs.read(files) if files.stats else None
    subject = load_subject(request.subject, inference.device, job.shard)
    refuse_among(job.output, request.subject.images, (image.path for image in subject.images))
    _refuse_clashes(subject.share, scores=request.outputs.save_scores)
    for option, given in (("--spatial-priors", files.spatial_priors), ("--annotations", request.outputs.annotations)):
        if given:
            refuse_parts(subject.images, option)
    segmenter = subject.segmenter
    refuse_second_correction(segmenter, request)
    if inputs is not None:
        inference = _inference(request, inputs)
    say_strong(request.preset, segmenter, inference, say)
    with job.running():
        if inputs is None:
            inputs = AlignmentInputs.read(files, collected(request, subject, job))
            inference = _inference(request, inputs)
        target = inputs.target.content
        use_norms(segmenter, target.norms)
        inputs.check(segmenter, inference, force=request.force)
        for used in inputs.every():
            if not used.content.complete:
                say(f"{used.path} is of an interrupted run: it counts {used.content.statistics.images} images")
        settings = without_doubt(settings, target, say, force=request.force)
        if not settings.corrects:
            say("nothing is corrected: the predictions are the network's argmax")
        evidence = inputs.evidence(settings)
        _say_impossible(evidence, target, files, say)
        fitted = replace(settings, tau=resolve_strength(settings, evidence))
        gap = _gap(evidence) if settings.finds_strength else None
        record = write_predictions(
            segmenter,
            subject.share,
            job.recording(source=request.subject.images, labels=asdict(subject.spec.labels), shard=subject.record),
            fit(fitted, evidence),
            settings=fitted,
            statistics=inputs.record(),
            gap=gap,
            inference=inference,
            original_ids=request.ids,
            outputs=request.outputs,
        )
    subject.keep()
    if gap is not None:
        say(found_gap(gap, target.statistics.images))
        if gap.distance > 0 and not target.norms_shifted:
            command = ["blda", "report", "--stats", inputs.target.path, "--aligned", job.output, "--output", "report"]
            averaged = inference.flip or len(inference.scales) > 1
            ways = "labels of a few images or training" if averaged else "labels of a few images, views or training"
            say(f"{ways} may bring more, the report says how:")
            say(f"{COMMAND}{shlex.join(map(str, command))}")
    say_notes(segmenter, target if files.stats else None, say)
    job.monitor.warn(f"skipped {key}: {reason}" for key, reason in record.skipped.items())
    return record


def _inference(request: AlignRequest, inputs: AlignmentInputs) -> InferenceOptions:
    """How images are run: of the scales of ``--preset strong`` those that the statistics kept."""
    if not chooses_scales(request.preset, request.inference):
        return request.inference
    return with_kept_scales(request.inference, inputs.target.content.norms)


def _gap(evidence: Evidence) -> DomainGap:
    reference = None if evidence.reference is None else evidence.reference.sample
    return domain_gap(evidence.statistics.sample, evidence.norms_shifted, reference, evidence.norms_adapted)


def say_notes(segmenter: Segmenter, given: StatisticsFile | None, say: Callable[[str], None]) -> None:
    """Make a segmenter's remarks, without those that were made when the given statistics were collected."""
    told = given.provenance.all_notes() if given else set()
    for note in segmenter.notes:
        if note not in told:
            say(note)


def without_doubt(
    settings: AlignmentSettings, target: StatisticsFile, say: Callable[[str], None], *, force: bool
) -> AlignmentSettings:
    """The settings, with strength 0 in place of ``auto`` where the statistics record a doubt about the model.

    Args:
        settings: the alignment.
        target: the statistics.
        say: receives the message about it.
        force: correct in spite of the doubt.
    """
    doubts = target.provenance.all_doubts()
    if force or not doubts or settings.tau != "auto":
        return settings
    say(
        f"the model's {' and '.join(doubts)} may be wrong: --tau NUMBER or --force corrects all the same, blda check "
        "tells more"
    )
    return replace(settings, tau=0.0)


def refuse_second_correction(segmenter: Segmenter, request: AlignRequest | ExportRequest) -> None:
    """Refuse to correct a model that ``blda export`` corrected, unless that is asked for.

    Raises:
        BldaError: the model is corrected already.
    """
    if segmenter.corrected and request.alignment.corrects and not request.force:
        raise BldaError(
            f"{request.subject.model} is corrected already ({segmenter.corrected}): --method none takes it as it is, "
            "--force corrects it a second time"
        )


def collected(request: AlignRequest | ExportRequest, subject: Subject, job: Job) -> StatisticsInput:
    """Statistics of the images themselves, kept from an earlier run or collected now, as OUTPUT.h5."""
    norms = request.norms.recorded
    output = job.output
    path = Path(f"{output if output.name else real(output)}.h5")
    own = replace(job, output=path).recording(source=request.subject.images, norms=norms)
    with own.lock():
        if path.exists() and not job.shard.path(path).exists() and not job.overwrite:
            held = StatisticsInput.read(path)
            if request.norms.given and not _has_norms_of(held.content, request.norms):
                raise BldaError(f"{path} is there, but was not collected with --norms {norms}: --overwrite replaces it")
            job.monitor.say(f"no --stats given: {path} is used, which is there")
            check_images(held.content, path, subject.segmenter, subject.images)
            return held
        job.monitor.say(f"no --stats given: statistics are collected first, as {path}")
        collect_statistics(
            subject.segmenter,
            subject.images,
            own,
            counting=CountingOptions(tuple(dict.fromkeys((LabelSource.PSEUDO, request.alignment.label_source)))),
            described=subject.spec if request.check else None,
            inference=request.inference,
            labels=None,
            norms=requested_norms(request.norms, subject.spec),
            compare_norms=request.norms.given,
            choose_scales=chooses_scales(request.preset, request.inference),
        )
        return StatisticsInput.read(path)


def _has_norms_of(content: StatisticsFile, request: NormsRequest) -> bool:
    """Whether statistics were collected with the norms that are asked for."""
    weight = request.norm_weight
    same = weight is None or (isinstance(content.norms, MixedNorms) and content.norms.weight == weight)
    return content.provenance.norms == request.recorded and same


def _say_impossible(
    evidence: Evidence, target: StatisticsFile, files: FilesRequest, say: Callable[[str], None]
) -> None:
    """Name classes that the spatial priors rule out everywhere."""
    if evidence.priors is None:
        return
    never = [n for n, prior in zip(target.classes.names, evidence.priors, strict=True) if not bool((prior > 0).any())]
    if never:
        say(f"{files.spatial_priors}: no label is {', '.join(never)}, so the priors rule that out everywhere")


def _refuse_clashes(files: Sequence[ImageSource], *, scores: bool) -> None:
    """Refuse images of which one's prediction would have the name of the other's folder."""
    keys = {file.key: file.location for file in files}
    folders = {parent.as_posix(): file for file in files for parent in PurePosixPath(file.key).parents}
    for suffix in (".png", ".h5")[: 1 + scores]:
        for folder, file in folders.items():
            if folder.endswith(suffix) and folder.removesuffix(suffix) in keys:
                other = keys[folder.removesuffix(suffix)]
                raise BldaError(
                    f"{other} would be predicted as {folder}, the folder of {file.location}: rename one of them"
                )


def write_predictions(
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    job: Job,
    correction: Correction,
    *,
    settings: AlignmentSettings,
    statistics: Mapping[str, Any],
    inference: InferenceOptions,
    gap: DomainGap | None = None,
    original_ids: bool = False,
    outputs: OutputsRequest = OutputsRequest(),  # noqa: B008  # frozen
) -> RunRecord:
    """Write corrected predictions of images.

    A folder that an earlier call left unfinished is completed.

    Args:
        segmenter: gives the logits.
        files: the images.
        job: where to write, see :mod:`blda_cli.store.predictions`.
        correction: the fitted correction, as ``settings`` describe it.
        settings: recorded.
        statistics: recorded: file name and digest of the statistics.
        inference: how images are run.
        gap: how far out of domain the images are; recorded.
        original_ids: write the data set's original ids in place of class ids.
        outputs: outputs beside the predictions.

    Returns:
        The record of the folder (in every process).

    Raises:
        BldaError: the folder holds other predictions or other things, an image cannot be read, or a file cannot
            be written.
        Interrupted: the user asked to stop.
    """
    folder, overwrite, monitor, shard, provenance = job.output, job.overwrite, job.monitor, job.shard, job.provenance
    classes = segmenter.classes
    record = RunRecord(
        classes=list(classes.names),
        palette=[list(color) for color in classes.palette],
        ids=list(classes.ids) if original_ids else list(range(len(classes))),
        model=model_identity(segmenter, inference),
        settings={**asdict(settings), "scores": outputs.save_scores, **_rejecting(outputs)},
        statistics=dict(statistics),
        verdict=domain_verdict(gap) if gap else None,
        evidence=gap_data(gap) if gap else None,
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
        with PredictionWriter(work, record) as writer:
            corrected = correction.to(segmenter.device)
            _align(segmenter, remaining, corrected, writer, outputs, part, inference, monitor, skipped)
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
        write_divided(work, record)
        if not record.classified and record.changed:
            aligned = AlignedFolder(work, record)
            if outputs.overlay:
                write_overlays(aligned, None if outputs.overlay == "all" else outputs.overlay, monitor)
            if outputs.annotations:
                write_annotations(aligned, outputs.annotations, monitor)
            if outputs.video:
                write_video(aligned, outputs.video, monitor)
        write_record(work / RECORD, record)
        prediction_folder.finish(folder)
    wait_for_all(shard)
    return record if shard.first else read_record(folder / RECORD)


def _rejecting(outputs: OutputsRequest) -> dict[str, Any]:
    """The output options that decide which pixels are predicted, as they are recorded."""
    return {} if outputs.reject is None else {"reject": outputs.reject}


def _align(
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    correction: Correction,
    writer: PredictionWriter,
    outputs: OutputsRequest,
    part: Path,
    inference: InferenceOptions,
    monitor: Monitor,
    skipped: list[SkippedFile],
) -> None:
    """Write ``files``; the record is saved to ``part`` every two minutes and on interruption."""
    kept = time.monotonic()
    try:
        for batch in segmenter.stream(files, inference, None, skipped, ahead=True):
            with batch.aside():
                before, after = argmax(batch.logits), correction.predict(batch.logits)
                scores = confidence = None
                if outputs.save_scores or outputs.confidence or outputs.reject is not None:
                    of_classes = correction.scores(batch.logits)
                    winning = of_classes.amax(dim=1).exp().clamp(max=1)
                    if batch.valid is not None:
                        winning = winning.masked_fill(~batch.valid, 0)
                    if outputs.save_scores:
                        scores = of_classes.half().cpu()
                    if outputs.confidence:
                        confidence = (255 * winning).round().to(torch.uint8).cpu().numpy()
                # Class ids of a byte where they fit: what is copied and encoded is eight times smaller.
                ids = torch.stack([before, after.to(before.dtype)], dim=1).cpu().numpy()
                if batch.valid is not None:
                    ids = np.where(batch.valid[:, None].cpu().numpy(), ids, np.int16(IGNORE_INDEX))
                if outputs.reject is not None:
                    if ids.ndim == 2:
                        raise BldaError("--reject is for segmenters: this model gives one answer per image")
                    sure = (winning >= outputs.reject).cpu().numpy()
                    ids = np.stack([ids[:, 0], np.where(sure, ids[:, 1], np.int16(IGNORE_INDEX))], axis=1)
            for index, file in enumerate(batch.files):
                writer.write(
                    file,
                    ids[index, 0],
                    ids[index, 1],
                    None if scores is None else scores[index],
                    None if confidence is None else confidence[index],
                )
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
    """Prepare the folder in which the predictions are assembled."""
    prediction_folder.check_folder(folder, overwrite)
    wait_for_all(shard)  # no process changes anything before all have checked
    if shard.first:
        work = prediction_folder.begin(folder, overwrite)
        usable = {shard.path(work / RECORD, rank) for rank in range(shard.world)}
        for path in set(work.glob(f"{RECORD}.*")) - usable:  # of another number of processes
            path.unlink()
    wait_for_all(shard)
    return prediction_folder.unfinished(folder)


def _resumed(part: Path, fresh: RunRecord, folder: Path) -> RunRecord:
    """The record of an interrupted run, if it made the same predictions."""
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
            f"{fresh.images[replaced]} changed since the interrupted run in {folder}; --overwrite starts anew"
        )
    return replace(kept, stamps=fresh.stamps, provenance=fresh.provenance)
