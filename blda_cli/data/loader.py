"""Reading images and labels ahead, and batching those of one shape."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np

from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.runtime.read_ahead import read_ahead

Sample = tuple[ImageSource, np.ndarray, np.ndarray | None]


@dataclass
class SkippedFile:
    """A file passed over under ``on_error="skip"``, and why, in one line."""

    file: ImageSource
    reason: str


@dataclass
class SampleBatch:
    """Consecutive samples of one shape.

    Attributes:
        files: the N images.
        arrays: ``[N, ...]``, the pixels or stored logits read for each.
        labels: ``[N, ...]``, their labels; None where none are read.
    """

    files: list[ImageSource]
    arrays: np.ndarray
    labels: np.ndarray | None = None


def load_batches(
    files: Sequence[ImageSource],
    read: Callable[[ImageSource], np.ndarray],
    labels: Callable[[ImageSource], np.ndarray] | None = None,
    *,
    batch_size: int = 1,
    workers: int = 2,
    on_error: Literal["stop", "skip"] = "stop",
    skipped: list[SkippedFile] | None = None,
) -> Iterator[SampleBatch]:
    """Read samples ahead in threads and yield them in order, batched while their shapes agree.

    At most ``batch_size + workers`` samples are read ahead of the consumer's batch. Closing the iterator waits for the
    reads under way and drops the rest.

    Args:
        files: the images.
        read: reads the array of an image: its pixels, or stored logits. Called from several threads.
        labels: reads its label, likewise.
        batch_size: most samples in a batch.
        workers: threads.
        on_error: ``"stop"`` at the first sample that raises `BldaError` (after yielding the batch before it), or
            ``"skip"`` it.
        skipped: samples passed over are appended here.

    Yields:
        Batches in the order of ``files``.

    Raises:
        BldaError: a sample cannot be read, under ``on_error="stop"``.
    """

    def load(file: ImageSource) -> Sample:
        return file, read(file), None if labels is None else labels(file)

    batch: list[Sample] = []
    with closing(read_ahead(load, files, workers=workers, ahead=batch_size + workers)) as samples:
        for file, future in samples:
            try:
                sample = future.result()
            except BldaError as error:
                if on_error == "stop":
                    if batch:
                        yield _take(batch)
                    raise
                if skipped is not None:
                    skipped.append(SkippedFile(file, str(error)))
                continue
            if batch and _shape(sample) != _shape(batch[0]):
                yield _take(batch)
            batch.append(sample)
            if len(batch) == batch_size:
                yield _take(batch)
        if batch:
            yield _take(batch)


def _shape(sample: Sample) -> tuple[object, ...]:
    file, array, label = sample
    return (file.core, array.shape, array.dtype) + (() if label is None else (label.shape, label.dtype))


def _take(batch: list[Sample]) -> SampleBatch:
    """Stack and release the samples; only the consumer keeps the batch alive."""
    files, arrays, labels = zip(*batch, strict=True)
    batch.clear()
    return SampleBatch(list(files), _stack(arrays), None if labels[0] is None else _stack(labels))


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(arrays) if len(arrays) > 1 else arrays[0][np.newaxis]  # one is not copied: logits are large
