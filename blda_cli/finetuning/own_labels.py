"""The target's own labels, which a run begins with: the original network's predictions."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import LabelSource, NormSource
from blda_cli.core.float64 import float64_device
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.norms import MixedNorms
from blda_cli.core.self_training import ConfidenceHistogram, keep_confident
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import replacing, to_json
from blda_cli.finetuning.data.stored_labels import StoredLabels
from blda_cli.finetuning.streaming import stream_share
from blda_cli.pipelines.alignment_inputs import AlignmentInputs, StatisticsInput, fit
from blda_cli.pipelines.collect import CountingOptions, collect_statistics, with_kept_scales
from blda_cli.pipelines.job import Job
from blda_cli.pipelines.requests import STRONG
from blda_cli.runtime.device import free_memory
from blda_cli.runtime.monitor import Monitor
from blda_cli.runtime.process_group import all_sum, wait_for_all
from blda_cli.runtime.shards import current_shard
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.reasons import InputRefusedError, MemoryShortError

_WITHOUT = "With source images, --no-own-labels trains without labels of the target's own"

_COUNTED = 200
"""Images, spread evenly, that the alignment and the thresholds are taken from; all are labelled."""


def label_target(
    segmenter: NetworkSegmenter,
    target: Sequence[ImageSource],
    share: float,
    stored: StoredLabels,
    statistics: Path,
    workers: int,
    monitor: Monitor,
    *,
    norms: NormSource | MixedNorms,
) -> None:
    """Label every image as ``--preset strong`` does, and keep each class's most confident pixels.

    Batch norms are mixed with each image's own statistics; scales and the mirrored image are averaged, and an alignment
    of the preset's strength is fitted to the result. Where the memory does not suffice for enlarged images, or the
    network does not take other sizes, a run in a single process does without them. A pixel is labelled where its
    confidence, the probability of its class after the alignment, ranks among the first ``share`` of all pixels
    predicted as that class.

    Args:
        segmenter: the original segmenter, not used elsewhere: its norms are changed.
        target: the images, the same in all processes; each labels its share.
        share: of each class's pixels that is labelled, in (0, 1].
        stored: where the labels are kept.
        statistics: where the alignment's statistics are written.
        workers: threads that read images.
        monitor: receives the progress.
        norms: the weight of that mix, or ``AUTO``, which finds it without labels.

    Raises:
        BldaError: an image cannot be read, a file cannot be written, or the memory does not suffice.
        Interrupted: the user asked to stop.
    """
    label = partial(_label_target, segmenter, target, share, stored, statistics, monitor)
    inference = replace(STRONG, workers=workers)
    try:
        label(norms, inference)
        return
    except (MemoryShortError, InputRefusedError) as error:
        if current_shard().world > 1:  # the others would wait for this one
            raise BldaError(f"{error}. {_WITHOUT}") from error
        short, failure = isinstance(error, MemoryShortError), str(error)
    # After the block, as what the error refers to holds memory.
    free_memory()
    scales = (norms.scales if isinstance(norms, MixedNorms) else ()) or inference.scales
    scales = tuple(scale for scale in scales if scale <= 1) if short else (1.0,)
    monitor.say(f"labels are made without {'enlarged images' if short else 'copies at other scales'}: {failure}")
    if isinstance(norms, MixedNorms):
        norms = replace(norms, scales=scales)
    try:
        label(norms, replace(inference, scales=scales))
    except MemoryShortError as error:
        raise BldaError(
            f"the memory does not suffice to label whole target images: give smaller ones. {_WITHOUT}"
        ) from error


def _label_target(
    segmenter: NetworkSegmenter,
    target: Sequence[ImageSource],
    share: float,
    stored: StoredLabels,
    statistics: Path,
    monitor: Monitor,
    norms: NormSource | MixedNorms,
    inference: InferenceOptions,
) -> None:
    """See :func:`label_target`; ``inference`` has the views."""
    classes, device = segmenter.classes, segmenter.device
    counted = target[:: -(-len(target) // _COUNTED)]
    content = collect_statistics(
        segmenter,
        counted,
        Job(statistics, overwrite=True, monitor=monitor),
        counting=CountingOptions((LabelSource.PSEUDO,)),
        inference=inference,
        labels=None,
        norms=norms,
        choose_scales=True,
    )
    inference = with_kept_scales(inference, content.norms)
    settings = AlignmentSettings()
    correction = fit(settings, AlignmentInputs(StatisticsInput(content)).evidence(settings)).to(device)
    stream = partial(stream_share, segmenter=segmenter, inference=inference, monitor=monitor)
    histogram = ConfidenceHistogram(len(classes), float64_device(device))
    for batch in stream("ranking", files=counted):
        histogram.update(correction.scores(batch.logits).clamp_(max=0), batch.valid)
    all_sum(histogram.counts)
    thresholds = histogram.class_thresholds(share)
    kept = torch.zeros(len(classes), dtype=torch.float64, device=histogram.counts.device)
    for batch in stream("labelling", files=target):
        labels = batch.known(keep_confident(correction.scores(batch.logits).clamp_(max=0), thresholds))
        kept += torch.bincount(labels[labels != IGNORE_INDEX], minlength=len(classes)).to(kept.device)
        for file, one in zip(batch.files, labels, strict=True):
            stored.write(file, one, classes)
    all_sum(kept)
    if current_shard().first:
        shares = (histogram.pixels() / histogram.pixels().sum()).tolist()
        record = {
            "share": share,
            "threshold": dict(zip(classes.names, torch.exp(-thresholds).tolist(), strict=True)),
            "predicted_share": dict(zip(classes.names, shares, strict=True)),
            "labelled_pixels": dict(zip(classes.names, map(int, kept.tolist()), strict=True)),
        }
        with replacing(stored.folder / "labels.json") as temporary:
            temporary.write_text(to_json(record), encoding="utf-8")
        never = [name for name, predicted in zip(classes.names, shares, strict=True) if predicted == 0]
        if never:
            monitor.say(f"never predicted on the target, so never labelled: {', '.join(never)}")
    wait_for_all(current_shard())
