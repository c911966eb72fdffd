"""Annotated regions of images, and their pixels."""

import base64
import binascii
import io
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from blda_cli.errors import BldaError


@dataclass(frozen=True)
class Shape:
    """One annotated region.

    Attributes:
        name: of its class.
        kind: ``outline``, ``polygon``, ``rectangle``, ``circle``, ``mask`` (a picture there), ``coco``, ``runs`` or
            ``brush``.
        data: points ``[[x, y], ...]`` in pixels: of an ``outline`` from the first pixel's corner, as it holds the
            pixels whose centres lie within; of others, pixels that belong to it. For ``coco`` COCO's ``segmentation``;
            for ``runs`` a box (left, top, width, height) and the lengths of zeros and ones in turn, row by row; for
            ``brush`` the bytes of Label Studio's packed picture.
        size: (height, width) of the image it was drawn on; None: not stated.
        picture: of a ``mask``, as base64 of a PNG.
    """

    name: str
    kind: str
    data: Any
    size: tuple[int, int] | None
    picture: str = field(default="", repr=False)

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """Where it lies, bool ``[H, W]``.

        Raises:
            BldaError: it cannot be drawn.
        """
        if self.kind == "coco":
            return _coco_mask(self.data, size)
        if self.kind == "runs":
            box, counts = self.data
            return _boxed_runs(box, counts, size)
        if self.kind == "brush":
            return _brush(self.data, size)
        points = _points(self.data)
        if self.kind == "mask":
            return self._pasted(points, size)
        if self.kind == "outline":
            return _filled(points, size)
        canvas = Image.new("1", (size[1], size[0]))
        draw = ImageDraw.Draw(canvas)
        if self.kind == "polygon" and len(points) >= 3:
            draw.polygon(points, fill=1)
        elif self.kind == "rectangle" and len(points) == 2:
            (left, right), (top, bottom) = (sorted(values) for values in zip(*points, strict=True))
            draw.rectangle([left, top, right, bottom], fill=1)
        elif self.kind == "circle" and len(points) == 2:
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=1)
        else:
            raise BldaError(f"is a {str(self.kind)[:20]} of {len(points)} points, which covers no area")
        return np.asarray(canvas)

    def _pasted(self, points: list[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
        """Labelme's masks: the picture's upper left is the first point."""
        try:
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(self.picture, validate=True)))).astype(bool)
        except (OSError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
            raise BldaError("holds no picture that can be read") from error
        whole = np.zeros(size, dtype=bool)
        left, top = (max(0, round(value)) for value in points[0])
        part = picture[: max(0, size[0] - top), : max(0, size[1] - left)]
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
        return whole


def _points(data: Any) -> list[tuple[float, float]]:
    try:
        points = [(float(x), float(y)) for x, y in data]
    except (TypeError, ValueError) as error:
        raise BldaError("has points that are no pairs of numbers") from error
    if not points or not all(math.isfinite(value) and abs(value) < 1e7 for point in points for value in point):
        raise BldaError("has no points, or points that no image has")
    return points


def _coco_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a COCO segmentation: polygons, or runs in columns, as numbers or packed."""
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        return _from_runs(segmentation["counts"], segmentation.get("size"), size)
    try:
        from pycocotools import mask as coco
    except ModuleNotFoundError as error:
        raise BldaError("is a polygon or packed runs: pip install 'blda-cli[coco]' for what reads those") from error
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", size)) != list(size):
            raise BldaError(f"is of size {segmentation['size']}, the image of {list(size)}")
        runs = [segmentation]
    else:
        flat = [_points(list(zip(one[::2], one[1::2], strict=False))) for one in segmentation if len(one) >= 6]
        if not flat:
            raise BldaError("is a polygon of fewer than three points")
        runs = coco.frPyObjects([[value for point in one for value in point] for one in flat], *size)
    try:
        mask: np.ndarray = coco.decode(coco.merge(runs)).astype(bool)
    except (TypeError, ValueError, KeyError) as error:
        raise BldaError("cannot be decoded") from error
    return mask


def _filled(points: list[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie within a polygon, by the even-odd rule."""
    crossings = np.zeros((size[0], size[1] + 1), dtype=np.int64)
    for (x, y), (next_x, next_y) in zip(points, points[1:] + points[:1], strict=True):
        first, last = (min(max(math.ceil(end - 0.5), 0), size[0]) for end in sorted((y, next_y)))
        if first < last:
            rows = np.arange(first, last)
            edge = x + (rows + 0.5 - y) * (next_x - x) / (next_y - y)
            columns = np.ceil(edge - 0.5).clip(0, size[1]).astype(np.int64)
            np.add.at(crossings, (rows, columns), 1)
    within: np.ndarray = crossings.cumsum(axis=1)[:, :-1] % 2 == 1
    return within


def _boxed_runs(box: tuple[int, int, int, int], counts: list[int], size: tuple[int, int]) -> np.ndarray:
    left, top, width, height = box
    inside = left >= 0 and top >= 0 and left + width <= size[1] and top + height <= size[0]
    if not inside or min(counts, default=-1) < 0 or sum(counts) != width * height:
        raise BldaError("has runs that do not add up to its box, or a box outside the image")
    whole = np.zeros(size, dtype=bool)
    whole[top : top + height, left : left + width] = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(
        height, width
    )
    return whole


def _brush(data: Any, size: tuple[int, int]) -> np.ndarray:
    """Label Studio's brush: red, green, blue and alpha of every pixel, packed as the npm package rle-pack does.

    After the number of values (32 bits), the bits of a value less one (5) and four lengths less one (4 each) come runs:
    a bit that is set where one value is repeated, the index of a length (2 bits), the run's length less one in so many
    bits, and the value, or the values.
    """
    try:
        bits = "".join(f"{byte:08b}" for byte in bytes(data))
        count, word = int(bits[:32], 2), int(bits[32:37], 2) + 1
        lengths = [int(bits[at : at + 4], 2) + 1 for at in range(37, 53, 4)]
        if count != 4 * size[0] * size[1]:
            raise BldaError("is a brush of a picture of another size")
        values = np.zeros(count, dtype=np.int64)
        place, at = 0, 53
        while place < count:
            repeated, length = bits[at] == "1", lengths[int(bits[at + 1 : at + 3], 2)]
            run = int(bits[at + 3 : at + 3 + length], 2) + 1
            at += 3 + length
            words = 1 if repeated else run
            starts = range(at, at + word * words, word)
            values[place : place + run] = [int(bits[start : start + word], 2) for start in starts]
            place, at = place + run, at + word * words
    except (ValueError, TypeError, IndexError) as error:
        raise BldaError("cannot be unpacked as a brush of Label Studio") from error
    return values.reshape(*size, 4)[..., 3] > 0


def _from_runs(counts: list[Any], of: Any, size: tuple[int, int]) -> np.ndarray:
    if of is not None and list(of) != list(size):
        raise BldaError(f"is of size {of}, the image of {list(size)}")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise BldaError("has runs that do not add up to the image")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[1], size[0]).T
