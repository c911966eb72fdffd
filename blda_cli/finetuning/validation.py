"""Scores of a segmenter in training on labelled images."""

from collections.abc import Sequence
from typing import Any

from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.kernels import argmax
from blda_cli.data.labels import LabelReader
from blda_cli.data.source import ImageSource
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.options import InferenceOptions


def validate(segmenter: Segmenter, files: Sequence[ImageSource], labels: LabelReader, workers: int) -> dict[str, Any]:
    """Score argmax over whole images.

    Returns:
        ``mean_iou``, ``mean_accuracy`` and ``iou_spread`` (the classes' standard deviation), and by class name
        ``iou``, ``accuracy`` and ``bias``; NaN for classes without a labelled pixel.
    """
    confusion = ConfusionMatrix(len(segmenter.classes))
    for batch in segmenter.stream(files, InferenceOptions(workers=workers), labels):
        assert batch.labels is not None
        confusion.update(batch.labels, argmax(batch.logits))
    per_class = {"iou": confusion.iou(), "accuracy": confusion.accuracy(), "bias": confusion.bias()}
    names = segmenter.classes.names
    return {
        "mean_iou": confusion.mean_iou(),
        "mean_accuracy": confusion.mean_accuracy(),
        "iou_spread": confusion.iou_spread(),
        **{key: dict(zip(names, values.tolist(), strict=True)) for key, values in per_class.items()},
    }
