"""Neighbouring images that are alike, such as frames of one drive, which intervals must draw together."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

_FEWEST = 8
"""Blocks that are left to draw from at least: an interval from fewer is no interval."""

_ALIKE = 0.1
"""Correlation from which on images are alike, where there are many."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive images, each of which an interval draws as a whole.

    Attributes:
        count: how many blocks.
        correlated: images are still alike from one block to the next, as longer blocks would be too few.
    """

    count: int
    correlated: bool = False


def natural_order(keys: Iterable[str]) -> list[str]:
    """Keys in the order of their folders and numbers: ``a/9`` before ``a/10``."""

    def numbered(key: str) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", key)  # text and numbers in turn
        return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)]

    return sorted(keys, key=numbered)


def blocks_of(images: Tensor) -> Blocks:
    """Divide images, in their order, into blocks about twice as long as images remain alike.

    The correlation of images ``k`` apart is that of their vectors about the mean, summed over all entries. They are
    alike while it exceeds 0.1, or two standard errors of the correlation of independent images where those are few. A
    block of twice that many holds most of what neighbours share (block bootstrap; Carlstein, Annals of Statistics 14,
    1986). Where neighbours differ as if drawn at random each image is a block of its own.

    Args:
        images: what is compared of each, float64 ``[I, D]``; two images at least.
    """
    count = len(images)
    deviations = images - images.mean(dim=0)
    variance = float(deviations.square().sum()) / count
    threshold = max(_ALIKE, 2 / count**0.5)
    longest = max(1, count // _FEWEST)
    for apart in range(1, longest + 1):
        shared = float((deviations[:-apart] * deviations[apart:]).sum()) / (count - apart)
        if shared <= threshold * variance:
            length = 1 if apart == 1 else min(2 * apart, longest)
            return Blocks(count // length)
    return Blocks(count // longest, correlated=True)
