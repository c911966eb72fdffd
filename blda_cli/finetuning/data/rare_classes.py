"""Rare-class sampling: labelled images and crops drawn so that rare classes are seen (Hoyer et al., CVPR 2022)."""

import math
from collections.abc import Sequence

import numpy as np

from blda_cli.finetuning.settings import Settings

CROP_TRIES = 10
CROP_SHARE = 1500 / 512**2
"""Share of a crop that its class should have: the published pixels over the published crop."""


class RareClassSampler:
    """Draws a class, and an image that holds it.

    A class is drawn with ``softmax((1 − frequency) / temperature)`` over the classes that occur; then one of the
    images whose labelled pixels are of it by more than ``share``, or where there is none, of those that hold it at all.

    Attributes:
        probabilities: of the classes, ``[C]``.
    """

    def __init__(self, class_pixels: np.ndarray, temperature: float, share: float) -> None:
        """Set up from int ``[images, C]``: how many pixels of each class every image has."""
        totals = class_pixels.sum(axis=0)
        scores = np.where(totals > 0, (1 - totals / totals.sum()) / temperature, -np.inf)
        weights = np.exp(scores - scores.max())
        self.probabilities = weights / weights.sum()
        enough = class_pixels > share * class_pixels.sum(axis=1, keepdims=True)
        self._images = [
            np.flatnonzero(many if many.any() else some)
            for many, some in zip(enough.T, class_pixels.T > 0, strict=True)
        ]

    def draw(self, generator: np.random.Generator) -> tuple[int, int]:
        """A class, and the index of an image that holds it."""
        drawn = int(generator.choice(len(self.probabilities), p=self.probabilities))
        return drawn, int(generator.choice(self._images[drawn]))


class HardSampleMiner:
    """Draws images that hold the classes a network predicts least (Zou et al., ECCV 2018, §5.1).

    Attributes:
        pool: a class and the index of an image that holds it: images with a class of the first group come first,
            then those of the next, until they are the share of all images that may be mined.
    """

    def __init__(self, class_pixels: np.ndarray, groups: Sequence[Sequence[int]], share: float) -> None:
        """Set up from int ``[images, C]``, pixels of each class in every image, and the classes, hardest first."""
        first: dict[int, int] = {}
        for group in groups:
            for index, pixels in enumerate(class_pixels):
                held = [one for one in group if pixels[one] > 0]
                if held:
                    first.setdefault(index, held[0])
        room = math.ceil(share * len(class_pixels))
        self.pool = [(wanted, index) for index, wanted in list(first.items())[:room]]

    def draw(self, generator: np.random.Generator) -> tuple[int, int]:
        """A class, and the index of an image that holds it."""
        return self.pool[int(generator.integers(len(self.pool)))]


class ImageDraws:
    """Draws labelled images: for the classes that a method prefers, for rare ones, or all alike."""

    def __init__(self, class_pixels: np.ndarray, drawn: Sequence[int], settings: Settings) -> None:
        """Set up the draws.

        Args:
            class_pixels: pixels of each class in every image, int64 ``[images, C]``.
            drawn: the images' indices, each as often as the image is to be drawn.
            settings: of the run.
        """
        self._drawn, self._class_pixels = np.asarray(drawn), class_pixels[drawn]
        self._mined_share = settings.rounds.mined_share
        self._miner: HardSampleMiner | None = None
        self._rare: RareClassSampler | None = None
        host = settings.host
        if host.rare_class_sampling and self._class_pixels.any():
            self._rare = RareClassSampler(self._class_pixels, host.rare_class_temperature, host.rare_class_share)

    def prefer(self, classes: Sequence[Sequence[int]]) -> None:
        """Draw some images for these classes, those of the first group first; for none, as before."""
        miner = HardSampleMiner(self._class_pixels, classes, self._mined_share)
        self._miner = miner if miner.pool else None

    def draw(self, generator: np.random.Generator) -> tuple[int, int | None]:
        """An image's index, and the class that it is drawn for, if any."""
        wanted: int | None = None
        if self._miner is not None and generator.random() < self._mined_share:
            wanted, place = self._miner.draw(generator)
        elif self._rare is not None:
            wanted, place = self._rare.draw(generator)
        else:
            place = int(generator.integers(len(self._drawn)))
        return int(self._drawn[place]), wanted


def crop_with(
    generator: np.random.Generator, labels: np.ndarray, wanted: int, size: tuple[int, int]
) -> tuple[int, int]:
    """Where to crop so that a class is in it.

    Args:
        generator: draws.
        labels: ``[H, W]``, of the whole image.
        wanted: the class.
        size: (height, width) of the crop.

    Returns:
        The crop's top and left: the first of ten tries that holds more than :data:`CROP_SHARE` of the class, or
        half of the class's pixels where they are that few, or else the last.
    """
    needed = min(np.count_nonzero(labels == wanted) / 2, CROP_SHARE * size[0] * size[1])
    for _ in range(CROP_TRIES):
        top, left = random_crop(generator, labels.shape, size)
        if np.count_nonzero(labels[top : top + size[0], left : left + size[1]] == wanted) >= needed:
            break
    return top, left


def random_crop(generator: np.random.Generator, shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of a random crop of an image ``[H, W, ...]``."""
    return int(generator.integers(shape[0] - size[0] + 1)), int(generator.integers(shape[1] - size[1] + 1))
