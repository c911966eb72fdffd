"""``blda merge``: merge the outputs of several runs over different images, e.g. the shards of an array job."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from blda_cli.data.label_files import write_label_png
from blda_cli.errors import BldaError
from blda_cli.files import claim, real
from blda_cli.pipelines.job import Job
from blda_cli.pipelines.requests import MergeRequest
from blda_cli.store import prediction_folder
from blda_cli.store.differences import difference_of, of_one_kind
from blda_cli.store.predictions import (
    ARGMAX,
    CONFIDENCE,
    PREDICTIONS,
    RECORD,
    SCORES,
    AlignedFolder,
    RunRecord,
    merge_records,
    prediction_path,
    read_record,
    write_classifications,
    write_confidence,
    write_divided,
    write_record,
)
from blda_cli.store.statistics import (
    StatisticsFile,
    merge_statistics,
    read_statistics,
    write_statistics,
)


def merge(request: MergeRequest, job: Job) -> StatisticsFile | RunRecord:
    """Put statistics files, or folders of predictions, of different images together as ``job.output``.

    Args:
        request: the parts.
        job: where to write; the output may be one of the parts.

    Returns:
        What was written.

    Raises:
        BldaError: the parts do not go together, a shard is missing or there twice, or the output cannot be written.
    """
    folders = all(path.is_dir() for path in request.parts)
    with job.running():
        return merge_folders(request.parts, job) if folders else merge_files(request.parts, job)


def merge_files(paths: Sequence[Path], job: Job) -> StatisticsFile:
    """Add statistics of different images; see :func:`merge`."""
    output = job.output
    claim(output, overwrite=job.overwrite)
    _refuse_twice(paths)
    shards = []

    def read(path: Path) -> StatisticsFile:
        content = read_statistics(path)
        shards.append(content.provenance.shard)
        return content

    whole = merge_statistics((path, read(path)) for path in paths)
    if _check_shards(paths, shards):  # as one process counts them
        whole.images.sort()
    if whole.statistics.images == 0:
        raise BldaError(f"{paths[0]} and the others count no image: there is nothing to write")
    summed = whole.provenance
    whole.provenance = replace(
        job.provenance, norm_distance=summed.norm_distance, skipped=summed.skipped, merged=summed.merged
    )
    write_statistics(output, whole)
    return whole


def merge_folders(paths: Sequence[Path], job: Job) -> RunRecord:
    """Put folders of predictions of different images together; see :func:`merge`. The parts stay as they are."""
    output = job.output
    prediction_folder.check_folder(output, job.overwrite)
    _refuse_twice([*paths, output])
    records = [read_record(path / RECORD) for path in paths]
    owners: dict[str, Path] = {}
    for path, record in of_one_kind(zip(paths, records, strict=True), _difference):
        for key in record.images:
            if owners.setdefault(key, path) != path:
                raise BldaError(f"{owners[key]} and {path} both hold image {key}: merge folders of different images")
    _check_shards(paths, [record.provenance.shard for record in records])
    whole = merge_records(records)
    if not whole.changed:
        raise BldaError(f"{paths[0]} and the others hold no prediction: there is nothing to write")
    parts = tuple(record.provenance for record in records)
    whole.provenance = replace(job.provenance, labels=parts[0].labels, skipped=whole.skipped, merged=parts)
    pictured = [path for path, one in zip(paths, records, strict=True) if one.changed.keys() - one.classified.keys()]
    without = [path for path in pictured if not (path / CONFIDENCE).is_dir()]
    if without and len(without) < len(pictured):
        job.monitor.say(f"pictures of confidence are left out: {without[0]} has none")
    work = prediction_folder.begin(output, overwrite=True)
    try:
        for path, record in zip(paths, records, strict=True):
            folder = AlignedFolder(path, record)
            more = [*([SCORES] if record.settings["scores"] else []), *([] if without else [CONFIDENCE])]
            for kind in (ARGMAX, PREDICTIONS, *more):
                for key in sorted(record.changed.keys() - record.classified.keys()):
                    origin, place = prediction_path(path, key, kind), prediction_path(work, key, kind)
                    if kind == SCORES or origin.exists():
                        _copy(origin, place)
                    elif kind == CONFIDENCE:  # put together with those of the image's other parts, as classes are
                        write_confidence(work, key, folder.confidence(key))
                    else:
                        write_label_png(place, folder.read(key, kind), whole.class_set, original_ids=True)
        write_divided(work, whole)
        if whole.classified:
            write_classifications(work, whole)
        write_record(work / RECORD, whole)
    except BldaError:
        prediction_folder.leave(output)
        raise
    prediction_folder.finish(output)
    return whole


def _difference(one: RunRecord, other: RunRecord) -> str | None:
    return difference_of(_made_alike(one), _made_alike(other))


def _made_alike(record: RunRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in ("classes", "palette", "ids", "model", "settings", "statistics")}


def _copy(origin: Path, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, place)
    except OSError as error:
        raise BldaError(f"{origin} cannot be copied to {place}: {error.strerror or error}") from error


def _refuse_twice(paths: Sequence[Path]) -> None:
    if len({real(path) for path in paths}) < len(paths):
        raise BldaError("a file or folder is named twice: every image would count twice")


def _check_shards(paths: Sequence[Path], shards: Sequence[Mapping[str, Any] | None]) -> bool:
    """Whether the parts are shards of one job.

    Raises:
        BldaError: some are, but one is missing, there twice, or of another job.
    """
    if not any(shards):
        return False
    owners: dict[int, Path] = {}
    for path, shard in zip(paths, shards, strict=True):
        if shard is None or {**shard, "number": 0} != {**(shards[0] or {}), "number": 0}:
            raise BldaError(f"{paths[0]} and {path} are no shards of the same images: merge the shards of one job")
        if shard["number"] in owners:
            raise BldaError(f"{owners[shard['number']]} and {path} are both shard {shard['number']} of {shard['of']}")
        owners[shard["number"]] = path
    of = next(shard["of"] for shard in shards if shard)
    missing = [str(number) for number in range(1, of + 1) if number not in owners]
    if missing:
        raise BldaError(
            f"shard {', '.join(missing[:8])}{', ...' if missing[8:] else ''} of {of} is missing: run it with "
            f"--shard {missing[0]}/{of}"
        )
    return True
