"""Strong augmentation of training images: colour jitter and Gaussian blur, one draw an image, no gradient."""

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from blda_cli.finetuning.settings import HostSettings

_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
# Blurs wider than four deviations of the published 1.15 pixels do not occur.
_BLUR_RADIUS = 5


@dataclass(frozen=True)
class Augmentation:
    """One image's draw.

    Attributes:
        brightness: offset of every value, in units of the range.
        contrast: factor about zero.
        color: float32 ``[3, 3]``: saturation and hue as one matrix on RGB.
        blur: float32 taps of a Gaussian, ``[2 · 5 + 1]``.
    """

    brightness: float
    contrast: float
    color: np.ndarray
    blur: np.ndarray

    @classmethod
    def draw(cls, generator: np.random.Generator, settings: HostSettings) -> "Augmentation":
        """Draw all within their strength ``s``, as DACS does (Tranheden et al., WACV 2021).

        Brightness in ``±s`` of the range, contrast and saturation in ``1 ± s``, hue in ``±s`` turns. Saturation and hue
        scale and turn the chroma of YIQ, which is one matrix; the published code goes through HSV.
        """
        brightness, contrast, color = 0.0, 1.0, np.eye(3)
        if generator.random() < settings.color_jitter:
            strength = settings.color_strength
            brightness, hue = generator.uniform(-strength, strength, 2)
            contrast, saturation = generator.uniform(1 - strength, 1 + strength, 2)
            cosine, sine = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
            turn = np.eye(3)
            turn[1:, 1:] = saturation * np.array([[cosine, -sine], [sine, cosine]])
            color = _FROM_YIQ @ turn @ _TO_YIQ
        taps = np.zeros(2 * _BLUR_RADIUS + 1)
        taps[_BLUR_RADIUS] = 1.0
        if generator.random() < settings.blur:
            sigma = generator.uniform(*settings.blur_sigma)
            taps = np.exp(-0.5 * (np.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1) / sigma) ** 2)
            taps /= taps.sum()
        return cls(brightness, contrast, color.astype(np.float32), taps.astype(np.float32))

    def fields(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays by name, as a batch holds them."""
        tone = np.array([self.brightness, self.contrast], dtype=np.float32)
        values = {"tone": tone, "color": self.color, "blur": self.blur}
        return {prefix + name: value for name, value in values.items()}


def augment(images: Tensor, tone: Tensor, color: Tensor, blur: Tensor) -> Tensor:
    """Apply a batch's draws.

    Args:
        images: float ``[N, B, H, W]`` in 0..255; RGB where B is 3.
        tone: brightness and contrast, ``[N, 2]``.
        color: ``[N, 3, 3]``; other bands than RGB have none.
        blur: ``[N, T]``, T odd.

    Returns:
        Of the same shape and range.
    """
    count, bands, height, width = images.shape
    brightness, contrast = tone.view(count, 2, 1, 1).unbind(1)
    images = ((images.flatten(2) + 255 * brightness).clamp_(0, 255) * contrast).clamp_(0, 255)
    images = (color @ images).clamp_(0, 255) if bands == 3 else images
    images = images.reshape(1, count * bands, height, width)
    taps = blur.repeat_interleave(bands, dim=0)
    radius = blur.shape[1] // 2
    images = F.conv2d(F.pad(images, (radius, radius, 0, 0), "replicate"), taps[:, None, None, :], groups=count * bands)
    images = F.conv2d(F.pad(images, (0, 0, radius, radius), "replicate"), taps[:, None, :, None], groups=count * bands)
    return images.view(count, bands, height, width)
