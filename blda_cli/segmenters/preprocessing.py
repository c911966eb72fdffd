"""Preprocessing: resizing, colour order, normalisation."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.segmenters.spec import PreprocessingSection

_LARGEST_STRIDE = 32
"""Of common networks; theirs divide it."""


class Preprocessor:
    """Makes a network's input from pixels; differentiable.

    In this order: resize to `fed_size`; order the colours; divide by 255 unless ``section.scale`` is given; subtract
    ``mean``; divide by ``std``; divide by ``scale``. Padding to a `multiple` is a separate step (`pad_to_multiple`), as
    the padding has to be cut off again.

    Attributes:
        section: the ``[preprocessing]`` section it applies.
    """

    def __init__(self, section: PreprocessingSection, device: torch.device) -> None:
        self.section = section
        # On the device once, as making a tensor there from numbers waits for the device.
        self._mean = _per_channel(section.mean, device)
        self._std = _per_channel(section.std, device)

    def __call__(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """Preprocess images.

        Args:
            images: float ``[N, 3, H, W]``, RGB in 0..255.
            scale: factor of both sides, of a view.

        Returns:
            float ``[N, 3, h, w]``, see `fed_size`.
        """
        return self.normalise(resize_images(images, self.fed_size(images.shape[-2:], scale)))

    def fed_size(self, size: Sequence[int], scale: float) -> tuple[int, int]:
        """The size at which the network gets images.

        Args:
            size: the images' (height, width).
            scale: factor of both sides.

        Returns:
            (height, width): those of the images or, where it is given, ``section.size``, times the scale.
        """
        return scaled(self.section.size or size, scale)

    def multiple(self, scale: float) -> int:
        """What the sides of the network's input are to be multiples of.

        At another scale than 1 they stay multiples of the power of two, up to 32, that ``section.size`` is one of.
        """
        if self.section.multiple_of is not None or self.section.size is None or scale == 1:
            return self.section.multiple_of or 1
        return math.gcd(*self.section.size, _LARGEST_STRIDE)

    def normalise(self, images: Tensor) -> Tensor:
        """Preprocess images without resizing them."""
        if self.section.color == "bgr":
            images = images.flip(1)
        if self.section.scale is None:
            images = images / 255
        if self._mean is not None:
            images = images - self._mean
        if self._std is not None:
            images = images / self._std
        if self.section.scale is not None:
            images = images / self.section.scale
        return images


def scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    """(Height, width) times a scale, rounded, at least 1."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[N, 3, H, W]`` to (height, width), bilinear and, where it shrinks, antialiased, as Pillow does."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def pad_to_multiple(images: Tensor, divisor: int) -> Tensor:
    """Pad ``[N, 3, H, W]`` with zeros below and on the right until both sides are multiples of ``divisor``."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % divisor, 0, -height % divisor))


def _per_channel(values: tuple[float, ...] | None, device: torch.device) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
