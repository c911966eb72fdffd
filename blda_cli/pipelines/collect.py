"""``blda collect-stats``: one pass over images, counting logits."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blda_cli.core.histogram import DEFAULT_BINS
from blda_cli.core.logit_space import LogitSpace
from blda_cli.core.mixture import fit_mixtures
from blda_cli.core.statistics import LabelSource, LogitStatistics
from blda_cli.data.images import ImageFile
from blda_cli.data.labels import LabelReader
from blda_cli.data.loader import SkippedFile
from blda_cli.errors import BldaError
from blda_cli.pipelines.monitor import Monitor
from blda_cli.pipelines.sharding import Shard
from blda_cli.segmenters.base import InferenceOptions, Segmenter
from blda_cli.store.statistics import (
    StatisticsFile,
    difference_of,
    merge_statistics,
    read_statistics,
    write_statistics,
)

CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class CountingOptions:
    """What is counted.

    Attributes:
        sources: the label sources.
        space: the logits that the cells hold.
        bins: bins per cell.
    """

    sources: tuple[LabelSource, ...]
    space: LogitSpace = LogitSpace.RAW
    bins: int = DEFAULT_BINS


def model_identity(segmenter: Segmenter, inference: InferenceOptions) -> dict[str, Any]:
    """What makes the logits what they are: the segmenter and the ways of running it that change them."""
    return {
        **segmenter.identity,
        "inference": {
            "slide": list(inference.slide) if inference.slide else None,
            "stride": list(inference.stride) if inference.stride else None,
            "scales": list(inference.scales),
            "flip": inference.flip,
        },
    }


def collect_statistics(
    segmenter: Segmenter,
    files: Sequence[ImageFile],
    output: Path,
    *,
    counting: CountingOptions,
    inference: InferenceOptions,
    labels: LabelReader | None,
    provenance: dict[str, Any],
    overwrite: bool,
    monitor: Monitor,
    shard: Shard,
) -> StatisticsFile:
    """Count the logits of images and write them to a file.

    What is counted so far is kept beside ``output`` every two minutes, at an interruption and at an error; the same
    call goes on from there.

    Args:
        segmenter: gives the logits.
        files: the images.
        output: the HDF5 file to write.
        counting: what is counted.
        inference: how images are run.
        labels: reads ground truth; needed where it is counted.
        provenance: what to note on how the file came to be.
        overwrite: replace ``output`` and forget what an earlier call kept.
        monitor: is told the progress.
        shard: this process among those of ``torchrun``.

    Returns:
        The content of ``output`` (in every process).

    Raises:
        BldaError: ``output`` exists, an image cannot be read, or what an earlier call kept is of another model.
        Interrupted: the user asked to stop.
    """
    if output.exists() and not overwrite:
        raise BldaError(f"{output} exists already: --overwrite replaces it")
    part = shard.path(output)
    content = StatisticsFile(
        statistics=LogitStatistics.empty(
            len(segmenter.classes),
            counting.sources,
            space=counting.space,
            bins=counting.bins,
            device=segmenter.device,
        ),
        classes=segmenter.classes,
        model=model_identity(segmenter, inference),
        provenance=provenance,
    )
    shard.wait()  # nobody writes before everybody has looked
    if part.exists() and not overwrite:
        content = _resumed(part, content, output)
    mine = shard.of(files)
    done = set(content.images)
    remaining = [file for file in mine if file.key not in done]
    monitor.start("counting", len(mine), len(mine) - len(remaining))
    skipped: list[SkippedFile] = []
    _count(segmenter, remaining, content, part, inference, labels, monitor, skipped)
    if skipped:
        content.provenance["skipped"] = {entry.file.key: entry.reason for entry in skipped}
    content.complete = True
    if shard.world > 1:
        write_statistics(part, content)
        shard.wait()
        if shard.first:
            parts = [shard.path(output, rank) for rank in range(shard.world)]
            content = merge_statistics({path: read_statistics(path) for path in parts})
            order = {file.key: index for index, file in enumerate(files)}
            content.images.sort(key=lambda key: order[key])
    if shard.first:
        if content.statistics.images == 0:
            raise BldaError("no image could be read, so there is nothing to count")
        content.mixtures = {source: fit_mixtures(cells) for source, cells in content.statistics.cells.items()}
        write_statistics(output, content)
    shard.wait()
    part.unlink(missing_ok=True)
    return content if shard.first else read_statistics(output)


def _count(
    segmenter: Segmenter,
    files: Sequence[ImageFile],
    content: StatisticsFile,
    part: Path,
    inference: InferenceOptions,
    labels: LabelReader | None,
    monitor: Monitor,
    skipped: list[SkippedFile],
) -> None:
    """Count ``files``, keeping what is counted in ``part`` now and then and when something stops it."""
    kept = time.monotonic()
    try:
        for batch in segmenter.stream(files, inference, labels, skipped):
            keys = [file.key for file in batch.files]
            content.statistics.update(batch.logits, batch.labels, keys)
            content.images += keys
            monitor.advance(len(keys))
            monitor.check()
            if time.monotonic() - kept > CHECKPOINT_SECONDS:
                write_statistics(part, content)
                kept = time.monotonic()
    except Exception:  # Interrupted and BldaError: what is counted is whole batches
        if content.images:
            write_statistics(part, content)
        raise


def _resumed(part: Path, fresh: StatisticsFile, output: Path) -> StatisticsFile:
    """What an earlier call kept, if it is of the same model and counts the same."""
    kept = read_statistics(part)
    one, other = kept.statistics, fresh.statistics
    difference = difference_of(kept.model, fresh.model)
    if kept.classes != fresh.classes:
        difference = difference or "the classes"
    if list(one.cells) != list(other.cells) or one.space != other.space or _bins(one) != _bins(other):
        difference = difference or "what is counted"
    if difference:
        raise BldaError(
            f"{part} keeps what an earlier run for {output.name} counted, but it differs in {difference}: "
            "--overwrite starts anew"
        )
    for source, cells in one.cells.items():
        cells.counts = cells.counts.to(other.cells[source].counts.device)
    return kept


def _bins(statistics: LogitStatistics) -> list[int]:
    return [cells.bins for cells in statistics.cells.values()]
