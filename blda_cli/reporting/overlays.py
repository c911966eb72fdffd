"""Predictions over their images, before and after a correction, with a legend: pictures to send to others."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blda_cli.data.classes import ClassSet
from blda_cli.text import printable

_OPACITY = 0.55
_WIDEST = 1280
"""Pixels of one of the two pictures at most, in either direction."""

_PAPER, _INK = (255, 255, 255), (30, 30, 30)


def overlay(
    picture: np.ndarray, before: np.ndarray, after: np.ndarray, classes: ClassSet, titles: tuple[str, str]
) -> Image.Image:
    """The image under its predictions, argmax on the left and aligned on the right, and the classes that are there.

    Args:
        picture: the image, uint8 ``[H, W, 3]``.
        before: class ids ``[H, W]``, ``IGNORE_INDEX`` where nothing is predicted.
        after: of the same shape.
        classes: the classes.
        titles: of the two.

    Returns:
        The picture, at most 1280 pixels a side and prediction.
    """
    height, width = before.shape
    scale = min(1.0, _WIDEST / width, _WIDEST / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    palette = np.array([*classes.palette, (0, 0, 0)], dtype=np.float32)  # IGNORE_INDEX is the last entry
    panels = []
    for labels in (before, after):
        small = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        blended = (1 - _OPACITY) * image + _OPACITY * palette[small]
        panels.append(np.where((small < 0)[..., None], image, blended).astype(np.uint8))
    font = ImageFont.load_default(max(11, min(22, size[0] // 28)))
    line = round(font.getbbox("Ag")[3] * 1.5)
    present = [index for index in np.unique(np.concatenate([before.ravel(), after.ravel()])).tolist() if index >= 0]
    total = 2 * size[0] + line // 2
    rows = _rows([printable(classes.names[index]) for index in present], font, line, total)
    canvas = Image.new("RGB", (total, line + size[1] + line * (1 + (rows[-1][0] if rows else -1)) + line // 2), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for left, title, panel in zip((0, size[0] + line // 2), titles, panels, strict=True):
        draw.text((left + 4, line // 6), title, _INK, font)
        canvas.paste(Image.fromarray(panel), (left, line))
    for index, (row, left, name) in zip(present, rows, strict=True):
        top = line + size[1] + line // 4 + row * line
        color = classes.palette[index]
        draw.rectangle((left, top + line // 6, left + line // 2, top + line // 6 + line // 2), color, _INK)
        draw.text((left + line * 3 // 4, top), name, _INK, font)
    return canvas


def _rows(
    names: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, line: int, width: int
) -> list[tuple[int, int, str]]:
    """Row, left edge and text of each entry of a legend, broken into rows."""
    entries = []
    row, left = 0, 4
    for name in names:
        needed = line + round(font.getlength(name)) + line // 2
        if left > 4 and left + needed > width:
            row, left = row + 1, 4
        entries.append((row, left, name))
        left += needed
    return entries
