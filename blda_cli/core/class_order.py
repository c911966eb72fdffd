"""Detect from a confusion matrix that labels and network have their classes in different orders."""

from dataclasses import dataclass

import torch

from blda_cli.core.confusion import ConfusionMatrix

MATCHES = 0.2
"""IoU of a label class with another channel from which on the two may be the same class."""

_TIMES = 2.0
"""That IoU must be at least this many times the IoU with its own channel."""

LEAST_MOVED = 2
"""Classes that have to be matched with another channel. Over 37 pairs of network and images, 12 images at a time, no
right order had more than one; an order shifted by one had six or more, two swapped ones of the six largest classes two
or more in 89 %."""


@dataclass(frozen=True)
class Match:
    """A label class that agrees far better with another channel than with its own.

    Attributes:
        label: the class in the labels.
        channel: the channel that it agrees with.
        own_iou: IoU of the label with its own channel.
        iou: IoU with the other channel.
    """

    label: int
    channel: int
    own_iou: float
    iou: float


def moved_classes(confusion: ConfusionMatrix) -> list[Match]:
    """Label classes that seem to be other channels, the most frequent first; empty where the order looks right.

    Labels are assigned to channels so that the sum of the IoU of each pair is largest (the assignment problem; Kuhn,
    "The Hungarian method for the assignment problem", 1955).
    """
    from scipy.optimize import linear_sum_assignment  # half a second, which only this needs

    counts = confusion.counts.double()
    union = counts.sum(dim=0) + counts.sum(dim=1, keepdim=True) - counts
    iou = counts / union.clamp_min(1)
    own_first = 1e-6 * torch.eye(len(iou), dtype=iou.dtype)  # where there is no evidence for another channel
    channels = linear_sum_assignment((iou + own_first).numpy(), maximize=True)[1].tolist()
    found = [
        Match(label, channel, float(iou[label, label]), float(iou[label, channel]))
        for label, channel in enumerate(channels)
        if channel != label
        and bool(confusion.present[label])
        and iou[label, channel] >= max(MATCHES, _TIMES * float(iou[label, label]))
    ]
    found.sort(key=lambda match: -int(confusion.counts[match.label].sum()))
    return found if len(found) >= LEAST_MOVED else []
