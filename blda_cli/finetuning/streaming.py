"""Running a network over images that the processes share, within a run."""

from collections.abc import Iterator, Sequence

import torch

from blda_cli.data.labels import LabelReader
from blda_cli.data.source import ImageSource
from blda_cli.runtime.monitor import Interrupted, Monitor
from blda_cli.runtime.process_group import all_maximum
from blda_cli.runtime.shards import current_shard
from blda_cli.segmenters.base import LogitBatch
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.options import InferenceOptions


def stream_share(
    what: str,
    segmenter: NetworkSegmenter,
    files: Sequence[ImageSource],
    inference: InferenceOptions,
    monitor: Monitor,
    labels: LabelReader | None = None,
) -> Iterator[LogitBatch]:
    """Run this process's share of the images.

    Args:
        what: name of the pass, for the monitor.
        segmenter: the segmenter to run.
        files: the images, the same in all processes.
        inference: how they are run.
        monitor: receives the progress.
        labels: reads their labels.

    Yields:
        Batches of logits of the share.

    Raises:
        Interrupted: the user asked one of the processes to stop; raised in all processes, after their share.
    """
    mine = current_shard().of(files)
    monitor.start(what, len(mine))
    asked = 0.0
    for batch in segmenter.stream(mine, inference, labels):
        yield batch
        monitor.advance(len(batch.files))
        try:
            monitor.check()
        except Interrupted:
            asked = 1.0
            break
    if all_maximum(torch.tensor(asked, device=segmenter.device)):
        raise Interrupted
