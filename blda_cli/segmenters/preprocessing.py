"""Preprocessing: resizing, colour order, normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.segmenters.spec import PreprocessingSection


class Preprocessor:
    """Makes a network's input from pixels; differentiable.

    In this order: resize to ``section.size``; order the colours; divide by 255 unless ``section.scale`` is given;
    subtract ``mean``; divide by ``std``; divide by ``scale``. Padding to ``section.multiple_of`` is a separate step
    (`pad_to_multiple`), as the padding has to be cut off again.

    Attributes:
        section: the ``[preprocessing]`` section it applies.
    """

    def __init__(self, section: PreprocessingSection, device: torch.device) -> None:
        self.section = section
        # On the device once, as making a tensor there from numbers waits for the device.
        self._mean = _per_channel(section.mean, device)
        self._std = _per_channel(section.std, device)

    def __call__(self, images: Tensor) -> Tensor:
        """Preprocess images.

        Args:
            images: float ``[N, 3, H, W]``, RGB in 0..255.

        Returns:
            float ``[N, 3, h, w]``; ``h, w`` are ``section.size`` where it is given, else ``H, W``.
        """
        if self.section.size is not None:
            images = resize_images(images, self.section.size)
        return self.normalise(images)

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
