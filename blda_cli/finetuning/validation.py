"""Scores of a segmenter in training on labelled images."""

from collections.abc import Sequence
from typing import Any

from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.kernels import argmax
from blda_cli.data.images import ImageFile
from blda_cli.data.labels import LabelReader
from blda_cli.segmenters.base import InferenceOptions, Segmenter


def validate(segmenter: Segmenter, files: Sequence[ImageFile], labels: LabelReader, workers: int) -> dict[str, Any]:
    """Score argmax over whole images.

    Returns:
        ``mean_iou``, ``mean_accuracy`` and ``iou_spread`` (the classes' standard deviation), and by class name
        ``iou``, ``accuracy`` and ``bias``; None for classes without a labelled pixel.
    """
    confusion = ConfusionMatrix(len(segmenter.classes))
    for batch in segmenter.stream(files, InferenceOptions(workers=workers), labels):
        assert batch.labels is not None
        confusion.update(batch.labels, argmax(batch.logits))
    per_class = {"iou": confusion.iou(), "accuracy": confusion.accuracy(), "bias": confusion.bias()}
    return {
        "mean_iou": confusion.mean_iou(),
        "mean_accuracy": confusion.mean_accuracy(),
        "iou_spread": confusion.iou_spread(),
        **{
            name: {
                one: value if value == value else None
                for one, value in zip(segmenter.classes.names, values.tolist(), strict=True)
            }
            for name, values in per_class.items()
        },
    }
