"""Positions of windows that cover an image."""

import itertools
import math

Window = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns, each from and to."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis so that they cover it.

    Args:
        length: of the axis, in pixels.
        window: length of a window, at most ``length``.
        stride: step between windows, at most ``window``.

    Returns:
        Multiples of ``stride``; the last is moved back so that its window ends with the axis.
    """
    return [*range(0, length - window, stride), length - window]


def touching(start: int, stop: int, length: int, window: int, stride: int) -> tuple[int, int]:
    """The range of an axis that is covered by the windows touching a part of the axis.

    Args:
        start: of the part.
        stop: its end, not in it.
        length: of the axis.
        window: length of a window; cut to the axis where that is shorter.
        stride: step between windows.

    Returns:
        Where the first of these windows begins and the last ends.
    """
    window = min(window, length)
    starts = [one for one in window_starts(length, window, stride) if one < stop and one + window > start]
    return starts[0], starts[-1] + window


def spread_windows(size: tuple[int, int], window: tuple[int, int], most: int) -> list[Window]:
    """Windows spread evenly over an image: as many as cover it, or at most so many.

    Args:
        size: (height, width) of the image.
        window: (height, width), cut to the image where that is smaller.
        most: at least 1.
    """
    height, width = (min(one, whole) for one, whole in zip(window, size, strict=True))
    rows, columns = -(-size[0] // height), -(-size[1] // width)
    if rows * columns > most:
        rows = min(most, max(1, int(rows * math.sqrt(most / (rows * columns)))))
        columns = min(columns, most // rows)
    places = itertools.product(_spread(size[0] - height, rows), _spread(size[1] - width, columns))
    return [((top, top + height), (left, left + width)) for top, left in places]


def _spread(last: int, count: int) -> list[int]:
    """``count`` whole numbers spread evenly over 0 to ``last``."""
    return [last * number // (count - 1) for number in range(count)] if count > 1 else [last // 2]
