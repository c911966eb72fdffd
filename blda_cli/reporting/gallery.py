"""Gallery: the images that a correction changed most, as small pictures for the page."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.classes import ClassSet
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError

FRAMES = 6
"""Frames shown at most."""

_WIDEST = 480
_BUDGET = 1_500_000
"""Characters that all pictures of a page may take; frames are left out from the end to keep it."""

Read = Callable[[str, str], np.ndarray]


@dataclass(frozen=True)
class Corrected:
    """A frame after a correction.

    Attributes:
        run: its name.
        after: data URI of the corrected prediction.
        difference: data URI of the image in grey, changed pixels in their new class's colour.
        changed: share of the predicted pixels that changed.
        right: share of the labelled pixels that are right; None where there are no labels, NaN where all are void.
    """

    run: str
    after: str
    difference: str
    changed: float
    right: float | None


@dataclass(frozen=True)
class Frame:
    """A frame of the gallery.

    Attributes:
        key: the image's name.
        width: of the pictures, in pixels.
        height: of the pictures.
        image: data URI; None where the image cannot be shown.
        before: data URI of the network's own prediction.
        labels: data URI of the labels; None where there are none.
        right: share of the labelled pixels that are right before, see :class:`Corrected`.
        runs: one per correction.
        classes: pixels of each class in its predictions and labels, by id.
    """

    key: str
    width: int
    height: int
    image: str | None
    before: str
    labels: str | None
    right: float | None
    runs: list[Corrected]
    classes: dict[int, int]

    @property
    def size(self) -> int:
        """Characters that its pictures take."""
        corrected = [picture for run in self.runs for picture in (run.after, run.difference)]
        return sum(len(picture) for picture in (self.image, self.before, self.labels, *corrected) if picture)


def choose_frames(changed: dict[str, float], count: int = FRAMES) -> list[str]:
    """The frames with the largest share of changed pixels, none of them next to another in the images' order.

    Neighbours in a video show the same scene; where leaving them out leaves too few, fewer are shown.

    Args:
        changed: share of pixels changed per image, in the images' order.
        count: how many at most.

    Returns:
        Their keys, the most changed first; frames that did not change are not among them.
    """
    keys = list(changed)
    place = {key: index for index, key in enumerate(keys)}
    chosen: list[str] = []
    for key in sorted(keys, key=lambda key: -changed[key]):
        if len(chosen) == count or changed[key] == 0:
            break
        if all(abs(place[key] - place[other]) > 1 for other in chosen):
            chosen.append(key)
    return chosen


def make_gallery(
    keys: Sequence[str],
    images: Mapping[str, ImageSource],
    before: Callable[[str], np.ndarray],
    after: dict[str, Callable[[str], np.ndarray]],
    classes: ClassSet,
    truth: Callable[[ImageSource], np.ndarray] | None = None,
) -> list[Frame]:
    """Make the pictures of some frames, one frame at a time.

    Args:
        keys: the frames.
        images: the image of each.
        before: reads the class ids ``[H, W]`` of the network's own prediction.
        after: per run, reads those of the corrected one.
        classes: the classes.
        truth: reads the labels of an image, of the predictions' size; None where there are none.

    Returns:
        The frames, as many as fit the page's budget but at least one.
    """
    frames: list[Frame] = []
    taken = 0
    for key in keys:
        corrected = {run: read(key) for run, read in after.items()}
        frame = _frame(images[key], before(key), corrected, truth and truth(images[key]), classes)
        taken += frame.size
        if frames and taken > _BUDGET:
            break
        frames.append(frame)
    return frames


def _frame(
    image: ImageSource,
    before: np.ndarray,
    after: dict[str, np.ndarray],
    truth: np.ndarray | None,
    classes: ClassSet,
) -> Frame:
    height, width = before.shape
    scale = min(1.0, _WIDEST / width, _WIDEST / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = _picture(image, size)
    grey = np.full((size[1], size[0]), 128, dtype=np.uint8) if picture is None else np.asarray(picture.convert("L"))
    dimmed = np.repeat((grey // 3 + 150)[..., None], 3, axis=2).astype(np.uint8)
    palette = np.array([*classes.palette, (0, 0, 0)], dtype=np.uint8)  # IGNORE_INDEX is the last entry
    small_before = _shrunk(before, size)
    runs = []
    for name, predicted in after.items():
        small = _shrunk(predicted, size)
        difference = np.where((small != small_before)[..., None], palette[small], dimmed)
        runs.append(
            Corrected(
                run=name,
                after=_uri(Image.fromarray(palette[small]), lossless=True),
                difference=_uri(Image.fromarray(difference.astype(np.uint8)), lossless=False),
                changed=int((predicted != before)[predicted >= 0].sum()) / max(1, int((predicted >= 0).sum())),
                right=_right(predicted, truth),
            )
        )
    counts = np.zeros(len(classes), dtype=np.int64)
    for labels in (before, *after.values(), *([] if truth is None else [truth])):
        counts += np.bincount(labels[labels >= 0], minlength=len(classes))
    return Frame(
        key=image.key,
        width=size[0],
        height=size[1],
        image=None if picture is None else _uri(picture, lossless=False),
        before=_uri(Image.fromarray(palette[small_before]), lossless=True),
        labels=None if truth is None else _uri(Image.fromarray(palette[_shrunk(truth, size)]), lossless=True),
        right=_right(before, truth),
        runs=runs,
        classes={index: int(count) for index, count in enumerate(counts) if count},
    )


def _picture(image: ImageSource, size: tuple[int, int]) -> Image.Image | None:
    """The image at (width, height); None where it is gone, damaged, or only its logits are there."""
    try:
        return Image.fromarray(image.picture()).resize(size, Image.Resampling.LANCZOS)
    except BldaError:
        return None


def _right(predicted: np.ndarray, truth: np.ndarray | None) -> float | None:
    """Share of the pixels that have both a label and a prediction whose prediction is right."""
    if truth is None:
        return None
    counted = (truth != IGNORE_INDEX) & (predicted != IGNORE_INDEX)
    return float((predicted == truth)[counted].mean()) if counted.any() else math.nan


def _shrunk(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    small = Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(small)


def _uri(picture: Image.Image, *, lossless: bool) -> str:
    data = io.BytesIO()
    picture.save(data, format="WEBP", lossless=lossless, quality=75, method=4)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
