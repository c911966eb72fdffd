"""Strong augmentation of training images: colour jitter and Gaussian blur, one draw an image, no gradient."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.finetuning.settings import HostSettings

_LUMA = (0.299, 0.587, 0.114)
_TO_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
# Blurs wider than four deviations of the published 1.15 pixels do not occur.
_BLUR_RADIUS = 5


@dataclass(frozen=True)
class Augmentation:
    """One image's draw.

    Attributes:
        color: float32 ``[3, 3]``: saturation, hue and brightness as one matrix on RGB.
        contrast: factor about the image's mean luma.
        blur: float32 taps of a Gaussian, ``[2 · 5 + 1]``.
    """

    color: np.ndarray
    contrast: float
    blur: np.ndarray

    @classmethod
    def draw(cls, generator: np.random.Generator, settings: HostSettings) -> "Augmentation":
        """Draw brightness, contrast, saturation and hue within ``1 ± strength`` (hue: ± strength turns), and blur."""
        color, contrast = np.eye(3), 1.0
        if generator.random() < settings.color_jitter:
            strength = settings.color_strength
            brightness, contrast, saturation = generator.uniform(1 - strength, 1 + strength, 3)
            angle = 2 * math.pi * generator.uniform(-strength, strength)
            turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
            chroma = np.diag([1, saturation, saturation])
            color = brightness * (_FROM_YIQ @ chroma @ turn @ _TO_YIQ)
        taps = np.zeros(2 * _BLUR_RADIUS + 1)
        taps[_BLUR_RADIUS] = 1.0
        if generator.random() < settings.blur:
            sigma = generator.uniform(*settings.blur_sigma)
            taps = np.exp(-0.5 * (np.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1) / sigma) ** 2)
            taps /= taps.sum()
        return cls(color.astype(np.float32), float(contrast), taps.astype(np.float32))

    def fields(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays by name, as a batch holds them."""
        values = {"color": self.color, "contrast": np.array(self.contrast, dtype=np.float32), "blur": self.blur}
        return {prefix + name: value for name, value in values.items()}


def augment(images: Tensor, color: Tensor, contrast: Tensor, blur: Tensor) -> Tensor:
    """Apply a batch's draws.

    Args:
        images: float ``[N, 3, H, W]``, RGB in 0..255.
        color: ``[N, 3, 3]``.
        contrast: ``[N]``.
        blur: ``[N, T]``, T odd.

    Returns:
        Of the same shape and range.
    """
    count, _, height, width = images.shape
    images = (color @ images.flatten(2)).clamp_(0, 255)
    means = images.mean(dim=2)
    mean = sum((weight * means[:, channel] for channel, weight in enumerate(_LUMA)), start=torch.zeros_like(contrast))
    images = (
        torch.lerp(mean.view(-1, 1, 1), images, contrast.view(-1, 1, 1))
        .clamp_(0, 255)
        .view(1, count * 3, height, width)
    )
    taps = blur.repeat_interleave(3, dim=0)
    radius = blur.shape[1] // 2
    images = F.conv2d(F.pad(images, (radius, radius, 0, 0), "replicate"), taps[:, None, None, :], groups=count * 3)
    images = F.conv2d(F.pad(images, (0, 0, radius, radius), "replicate"), taps[:, None, :, None], groups=count * 3)
    return images.view(count, 3, height, width)
