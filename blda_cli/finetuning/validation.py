"""Scores of a segmenter in training: on labelled images, or without labels."""

from collections.abc import Sequence
from typing import Any

import torch

from blda_cli.core.agreement import agreement, count_pairs
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


LOOKED_AT = 12
"""Images that are measured without labels, spread evenly."""

SMALLER = 0.75
"""Size of the copies whose predictions are compared with the images' own."""


def look(segmenter: Segmenter, files: Sequence[ImageSource], workers: int) -> dict[str, Any]:
    """Measure a network without labels, on a dozen images.

    The share of pixels that keep their class when the network gets the image at three quarters of its size ranks
    networks, and states of one network, much as mean IoU does.

    Returns:
        ``agreement``, that share, and by class name ``share``, the share of pixels that are predicted as the class.
    """
    files = files[:: -(-len(files) // LOOKED_AT)]
    whole, smaller = (InferenceOptions(workers=workers, scales=(scale,)) for scale in (1.0, SMALLER))
    classes = len(segmenter.classes)
    pairs = torch.zeros(classes, classes, dtype=torch.int64)
    for one, other in zip(segmenter.stream(files, whole), segmenter.stream(files, smaller), strict=True):
        there = slice(None) if one.valid is None else one.valid
        pairs += count_pairs(argmax(one.logits)[there], argmax(other.logits)[there], classes).cpu()
    shares = (pairs.sum(dim=1) / pairs.sum()).tolist()
    return {"agreement": agreement(pairs), "share": dict(zip(segmenter.classes.names, shares, strict=True))}
