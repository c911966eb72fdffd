"""Choice and scaling of the samples of a file that a network gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from blda_cli.errors import BldaError

Layout = Literal["hwc", "chw"]


@dataclass(frozen=True)
class PixelFormat:
    """How the samples of a file become pixels, as ``[preprocessing]`` says; by default RGB of 8 bits.

    Attributes:
        bands: numbers (from 1) or names of the bands, in the network's order; empty: RGB.
        range: the samples that become 0 and 255 (0 and 1 after the division by 255); None: the range of the file's
            integer type.
        layout: order of an array's axes; None: found by their lengths.
    """

    bands: tuple[int | str, ...] = ()
    range: tuple[float, float] | None = None
    layout: Layout | None = None

    @property
    def as_seen(self) -> bool:
        """Whether pixels are RGB of 8 bits, as an image viewer shows them."""
        return not self.bands and self.range is None

    @property
    def channels(self) -> int:
        """How many channels the network takes."""
        return len(self.bands) or 3

    def indices(self, names: Sequence[str], location: str) -> list[int]:
        """Which bands of a file are read.

        Args:
            names: of the file's bands, empty where they have none.
            location: the file, for messages.

        Returns:
            Indices from 0, one per channel: of an RGB file the first three, of a grey one three times the first.

        Raises:
            BldaError: it lacks one, or the description does not state which of its bands to read.
        """
        if not self.bands:
            if len(names) in (2, 1):  # grey, with or without alpha
                return [0, 0, 0]
            if len(names) in (3, 4):
                return [0, 1, 2]
            raise BldaError(f"{location} has {_listed(names)}: say which the network takes: [preprocessing] bands")
        plain = [name.lower() for name in names]
        found = []
        for band in self.bands:
            if isinstance(band, int) and band <= len(names):
                found.append(band - 1)
            elif isinstance(band, str) and plain.count(band.lower()) == 1:
                found.append(plain.index(band.lower()))
            else:
                raise BldaError(f"{location} has {_listed(names)}: [preprocessing] bands names {band!r}, which is none")
        return found

    def scaled(self, samples: np.ndarray, location: str) -> np.ndarray:
        """Samples on the scale of 8-bit pixels.

        Args:
            samples: ``[H, W, B]`` as the file holds them.
            location: the file, for messages.

        Returns:
            float32 ``[H, W, B]``: the range's ends become 0 and 255; values beyond them are kept.

        Raises:
            BldaError: neither type nor description gives their range, or they are not finite.
        """
        low, high = self.range or _type_range(samples.dtype, location)
        if samples.dtype.kind == "f" and not np.isfinite(samples).all():
            raise BldaError(f"{location} holds values that are not finite: replace them, or declare them as nodata")
        scaled = np.empty(samples.shape, dtype=np.float32)
        for band in range(samples.shape[-1]):  # one by one, as double precision takes four times the memory
            scaled[..., band] = (samples[..., band].astype(np.float64) - low) * (255 / (high - low))
        return scaled


AS_SEEN = PixelFormat()
"""RGB of 8 bits."""


def _type_range(dtype: np.dtype, location: str) -> tuple[float, float]:
    """The range of an unsigned type."""
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return 0.0, float(np.iinfo(dtype).max)
    raise BldaError(
        f"{location} holds {dtype} values: say which of them become 0 and 1: [preprocessing] range = [low, high]"
    )


def _listed(names: Sequence[str]) -> str:
    known = [name for name in names if name]
    count = f"{len(names)} band{'' if len(names) == 1 else 's'}"
    return f"{count} ({', '.join(known[:12])}{', ...' if len(known) > 12 else ''})" if known else count


def stretched(pixels: np.ndarray) -> np.ndarray:
    """A picture of up to three bands, each stretched between its 2nd and 98th percentile.

    Args:
        pixels: numbers ``[H, W, B]``; values that are not finite become black.

    Returns:
        uint8 ``[H, W, 3]``: the first three bands, or the first in grey where there are fewer.
    """
    shown = (0, 1, 2) if pixels.shape[-1] >= 3 else (0, 0, 0)
    picture = np.zeros((*pixels.shape[:-1], 3), dtype=np.uint8)
    for place, band in enumerate(shown):  # one by one, for the memory
        there = np.isfinite(pixels[..., band])
        if there.any():
            values = pixels[..., band][there].astype(np.float64)
            low, high = np.percentile(values, (2, 98))
            values -= low
            values *= 255 / max(high - low, 1e-12)
            picture[..., place][there] = values.clip(0, 255, out=values).astype(np.uint8)
    return picture
