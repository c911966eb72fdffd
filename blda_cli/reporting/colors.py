"""Colours of heat maps: a diverging scale for shifts, a sequential one for rates, and text that can be read on them."""

from collections.abc import Sequence

import numpy as np

# Ends that stay apart under the common colour blindnesses (after ColorBrewer's PuOr and Blues).
_DIVERGING = ((8, 69, 148), (107, 174, 214), (247, 247, 247), (253, 174, 97), (153, 52, 4))
_SEQUENTIAL = ((250, 250, 250), (158, 202, 225), (33, 113, 181), (8, 48, 107))
_MISSING = (200, 200, 200)

Rgb = tuple[int, int, int]


def diverging(values: np.ndarray, reach: float) -> np.ndarray:
    """Blue at ``reach`` and beyond, white at 0, orange at ``-reach``; grey where NaN.

    Args:
        values: ``[...]``.
        reach: positive.

    Returns:
        uint8 ``[..., 3]``.
    """
    return _interpolated((1 - values / reach) / 2, _DIVERGING)


def sequential(values: np.ndarray) -> np.ndarray:
    """White at 0 to dark blue at 1; grey where NaN. uint8 ``[..., 3]`` for values ``[...]``."""
    return _interpolated(values, _SEQUENTIAL)


def text_on(color: Sequence[int]) -> str:
    """Black or white, whichever has more contrast on a colour (WCAG 2.1: at least 4.58 to 1)."""
    return "#000" if (luminance(color) + 0.05) ** 2 > 1.05 * 0.05 else "#fff"


def luminance(color: Sequence[int]) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.1)."""
    parts = [part / 255 for part in color]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _interpolated(position: np.ndarray, stops: Sequence[Rgb]) -> np.ndarray:
    place = np.nan_to_num(position).clip(0, 1) * (len(stops) - 1)
    channels = [np.interp(place, range(len(stops)), [stop[channel] for stop in stops]) for channel in range(3)]
    colors = np.stack(channels, axis=-1).round().astype(np.uint8)
    colors[np.isnan(position)] = _MISSING
    return colors
