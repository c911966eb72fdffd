"""Gallery: the images that a correction changed most, as small pictures for the page."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

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
        changed: share of the pixels changed.
    """

    run: str
    after: str
    difference: str
    changed: float


@dataclass(frozen=True)
class Frame:
    """A frame of the gallery.

    Attributes:
        key: the image's name.
        width: of the pictures, in pixels.
        height: of the pictures.
        image: data URI; None where the image cannot be shown.
        before: data URI of the network's own prediction.
        runs: one per correction.
        classes: ids of the classes in its predictions.
    """

    key: str
    width: int
    height: int
    image: str | None
    before: str
    runs: list[Corrected]
    classes: list[int]

    @property
    def size(self) -> int:
        """Characters that its pictures take."""
        pictures = [self.image or "", self.before, *(p for run in self.runs for p in (run.after, run.difference))]
        return sum(map(len, pictures))


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
) -> list[Frame]:
    """Make the pictures of some frames, one frame at a time.

    Args:
        keys: the frames.
        images: the image of each.
        before: reads the class ids ``[H, W]`` of the network's own prediction.
        after: per run, reads those of the corrected one.
        classes: the classes.

    Returns:
        The frames, as many as fit the page's budget but at least one.
    """
    frames: list[Frame] = []
    taken = 0
    for key in keys:
        frame = _frame(images[key], before(key), {run: read(key) for run, read in after.items()}, classes)
        taken += frame.size
        if frames and taken > _BUDGET:
            break
        frames.append(frame)
    return frames


def _frame(image: ImageSource, before: np.ndarray, after: dict[str, np.ndarray], classes: ClassSet) -> Frame:
    height, width = before.shape
    scale = min(1.0, _WIDEST / width, _WIDEST / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = _picture(image, size)
    grey = np.full((size[1], size[0]), 128, dtype=np.uint8) if picture is None else np.asarray(picture.convert("L"))
    dimmed = np.repeat((grey // 3 + 150)[..., None], 3, axis=2).astype(np.uint8)
    palette = np.array([*classes.palette, (0, 0, 0)], dtype=np.uint8)  # IGNORE_INDEX is the last entry
    small_before = _shrunk(before, size)
    runs = []
    for name, labels in after.items():
        small = _shrunk(labels, size)
        difference = np.where((small != small_before)[..., None], palette[small], dimmed)
        runs.append(
            Corrected(
                run=name,
                after=_uri(Image.fromarray(palette[small]), lossless=True),
                difference=_uri(Image.fromarray(difference.astype(np.uint8)), lossless=False),
                changed=float((labels != before).mean()),
            )
        )
    shown = np.unique(np.concatenate([before.ravel(), *(labels.ravel() for labels in after.values())]))
    return Frame(
        key=image.key,
        width=size[0],
        height=size[1],
        image=None if picture is None else _uri(picture, lossless=False),
        before=_uri(Image.fromarray(palette[small_before]), lossless=True),
        runs=runs,
        classes=shown[shown >= 0].tolist(),
    )


def _picture(image: ImageSource, size: tuple[int, int]) -> Image.Image | None:
    """The image at (width, height); None where it is gone, damaged, or only its logits are there."""
    try:
        return Image.fromarray(image.picture()).resize(size, Image.Resampling.LANCZOS)
    except BldaError:
        return None


def _shrunk(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    small = Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(small)


def _uri(picture: Image.Image, *, lossless: bool) -> str:
    data = io.BytesIO()
    picture.save(data, format="WEBP", lossless=lossless, quality=75, method=4)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
