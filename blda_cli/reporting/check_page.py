"""``check.html`` and ``overlays.png``: what ``blda check`` found, to be judged at a glance."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blda_cli.reporting.check_model import Check
from blda_cli.reporting.check_words import described, label_lines, loaded_lines, table
from blda_cli.reporting.matrices import confusion_matrix
from blda_cli.reporting.page import rendered
from blda_cli.text import printable

WIDEST = 480
"""Longer side of a picture, in pixels."""

_COLUMNS = 3
_GAP = 8
_LINE = 18
_OPACITY = 0.55


def overlay(picture: np.ndarray, classes: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """A picture in grey under the colours of its predicted classes.

    Args:
        picture: uint8 ``[H, W, 3]``.
        classes: class ids ``[H, W]``; ``IGNORE_INDEX`` has no colour.
        palette: one colour per class.
    """
    colors = np.array(palette, dtype=np.float64)[classes]
    grey = picture.mean(axis=2, keepdims=True)
    mixed = np.where((classes < 0)[..., None], grey, _OPACITY * colors + (1 - _OPACITY) * grey)
    return Image.fromarray(mixed.round().astype(np.uint8))


def overlay_sheet(check: Check) -> Image.Image:
    """All pictures with their predictions as one image, with a legend of the classes shown."""
    tiles = [(key, overlay(picture, classes, check.classes.palette)) for key, picture, classes in check.frames]
    width = max((tile.width for _, tile in tiles), default=WIDEST)
    height = max((tile.height for _, tile in tiles), default=1) + _LINE
    columns = min(_COLUMNS, max(1, len(tiles)))
    rows = -(-len(tiles) // columns)
    font = ImageFont.load_default()
    shown = _shown(check)
    total = columns * width + (columns + 1) * _GAP
    per_row = max(1, (total - 2 * _GAP) // 160)
    legend = -(-len(shown) // per_row) * _LINE
    sheet = Image.new("RGB", (total, rows * (height + _GAP) + 2 * _GAP + legend), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (key, tile) in enumerate(tiles):
        left, top = _GAP + index % columns * (width + _GAP), _GAP + index // columns * (height + _GAP)
        sheet.paste(tile, (left, top))
        draw.text((left, top + tile.height + 2), _ascii(key)[-width // 7 :], fill="black", font=font)
    for index, one in enumerate(shown):
        left, top = _GAP + index % per_row * 160, rows * (height + _GAP) + _GAP + index // per_row * _LINE
        draw.rectangle((left, top, left + 12, top + 12), fill=check.classes.palette[one], outline="black")
        draw.text((left + 18, top), _ascii(check.classes.names[one])[:20], fill="black", font=font)
    return sheet


def to_html(check: Check) -> str:
    """Render the page; it loads nothing from anywhere."""
    names = check.classes.names
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in check.classes.palette]
    confusion = (
        None if check.labels is None else confusion_matrix("Confusion", check.labels.confusion.counts.tolist(), names)
    )
    return rendered(
        "check.html.j2",
        remarks=check.remarks,
        loaded=loaded_lines(check),
        sentences=[] if check.comparison is None else described(check.comparison),
        descriptions=[] if check.comparison is None else table(check.comparison),
        shares=sorted(zip(names, colors, check.shares.tolist(), strict=True), key=lambda row: -row[2]),
        labels=label_lines(check),
        confusion=confusion,
        names=names,
        frames=[
            (key, _uri(overlay(picture, classes, check.classes.palette)), _uri(Image.fromarray(picture)))
            for key, picture, classes in check.frames
        ],
        legend=[(names[index], colors[index]) for index in _shown(check)],
        images=check.images,
    )


def _shown(check: Check) -> list[int]:
    """Classes in the pictures, the most frequent first."""
    if not check.frames:
        return []
    counts = sum(np.bincount(classes[classes >= 0], minlength=len(check.classes)) for _, _, classes in check.frames)
    order = np.argsort(-np.asarray(counts), kind="stable")
    return [int(index) for index in order if np.asarray(counts)[index]]


def _uri(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, format="WEBP", quality=75, method=4)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def _ascii(text: str) -> str:
    """Reduce text to the characters that Pillow's built-in font can draw."""
    return printable(text).encode("ascii", "replace").decode()
