import cmath
import math
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from blda_cli.finetuning.data.augmentation import Augmentation, augment
from blda_cli.finetuning.settings import HostSettings

OFF = HostSettings(color_jitter=0.0, blur=0.0)


TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def apply(images: Tensor, draws: list[Augmentation]) -> Tensor:
    fields = [draw.fields("") for draw in draws]
    return augment(images, *(torch.from_numpy(np.stack([one[name] for one in fields])) for name in fields[0]))


def chroma_factor(draw: Augmentation) -> complex:
    """What a draw's colour matrix does to chroma as a complex number; luma stays as it is."""
    matrix = TO_YIQ @ draw.color @ np.linalg.inv(TO_YIQ)
    np.testing.assert_allclose(matrix[0], [1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(matrix[1:, 0], 0, atol=1e-5)
    np.testing.assert_allclose(matrix[1:, 1:], [[matrix[1, 1], -matrix[2, 1]], [matrix[2, 1], matrix[1, 1]]], atol=1e-5)
    return complex(matrix[1, 1], matrix[2, 1])


def test_draws_are_the_published_ones() -> None:
    """DACS: brightness within ±0.2 of the range, contrast and saturation within 0.8 to 1.2, hue within ±0.2 turns."""
    draws = [Augmentation.draw(np.random.default_rng(seed), replace(OFF, color_jitter=1.0)) for seed in range(500)]
    factors = [chroma_factor(draw) for draw in draws]
    drawn = {
        "brightness": ([draw.brightness for draw in draws], (-0.2, 0.2)),
        "contrast": ([draw.contrast for draw in draws], (0.8, 1.2)),
        "saturation": ([abs(factor) for factor in factors], (0.8, 1.2)),
        "hue": ([cmath.phase(factor) / (2 * math.pi) for factor in factors], (-0.2, 0.2)),
    }
    for name, (values, (low, high)) in drawn.items():
        assert low - 1e-5 <= min(values) < low + 0.02, name
        assert high - 0.02 < max(values) <= high + 1e-5, name
        assert abs(np.mean(values) - (low + high) / 2) < 0.02, name
    together = np.array([values for values, _ in drawn.values()])
    assert np.abs(np.corrcoef(together) - np.eye(4)).max() < 0.15  # drawn one by one


def test_tone_then_colour_pixel_by_pixel() -> None:
    images = 255 * torch.rand(3, 3, 5, 6, dtype=torch.float64).float()
    draws = [Augmentation.draw(np.random.default_rng(seed), replace(OFF, color_jitter=1.0)) for seed in range(3)]
    results = apply(images, draws)
    for image, draw, result in zip(images.double().numpy(), draws, results.numpy(), strict=True):
        toned = np.clip(np.clip(image + 255 * draw.brightness, 0, 255) * draw.contrast, 0, 255)
        luma, first, second = np.einsum("ij,jhw->ihw", TO_YIQ, toned)
        turned = (first + 1j * second) * chroma_factor(draw)
        expected = np.einsum("ij,jhw->ihw", np.linalg.inv(TO_YIQ), np.stack([luma, turned.real, turned.imag]))
        np.testing.assert_allclose(result, np.clip(expected, 0, 255), atol=1e-2)


def test_switched_off_it_changes_nothing() -> None:
    images = 255 * torch.rand(2, 3, 9, 11)
    draws = [Augmentation.draw(np.random.default_rng(0), OFF)] * 2
    torch.testing.assert_close(apply(images, draws), images, atol=1e-3, rtol=0)


def test_blur_is_gaussian() -> None:
    images = 255 * torch.rand(1, 3, 20, 24)
    draw = Augmentation.draw(np.random.default_rng(0), replace(OFF, blur=1.0, blur_sigma=(1.0, 1.0)))
    expected = ndimage.gaussian_filter(images[0].numpy(), (0, 1, 1), mode="nearest", radius=(0, 5, 5))
    torch.testing.assert_close(apply(images, [draw])[0], torch.from_numpy(expected), atol=1e-2, rtol=0)


def test_each_image_has_its_own_draw() -> None:
    images = (255 * torch.rand(1, 3, 8, 8)).expand(2, -1, -1, -1)
    jitter = Augmentation.draw(np.random.default_rng(1), replace(OFF, color_jitter=1.0))
    still = Augmentation.draw(np.random.default_rng(1), OFF)
    changed, same = apply(images, [jitter, still])
    torch.testing.assert_close(same, images[1], atol=1e-3, rtol=0)
    assert float((changed - same).abs().mean()) > 1


def test_grey_stays_grey_and_in_range() -> None:
    images = (255 * torch.rand(1, 1, 8, 8)).expand(-1, 3, -1, -1)
    for seed in range(20):
        draw = Augmentation.draw(np.random.default_rng(seed), replace(OFF, color_jitter=1.0, color_strength=0.2))
        result = apply(images, [draw])
        assert float(result.min()) >= 0
        assert float(result.max()) <= 255
        assert float((result.amax(dim=1) - result.amin(dim=1)).max()) < 0.05


def test_it_is_applied_as_often_as_asked() -> None:
    draws = [Augmentation.draw(np.random.default_rng(seed), HostSettings()) for seed in range(600)]
    jittered = np.mean([not np.array_equal(draw.color, np.eye(3)) for draw in draws])
    blurred = np.mean([draw.blur.max() < 1 for draw in draws])
    assert abs(jittered - 0.8) < 0.06
    assert abs(blurred - 0.5) < 0.1  # the narrowest blurs change nothing in float32


def test_bands_as_they_come_from_a_batch() -> None:
    """Four bands, which lie in memory as in a file: the last axis first."""
    images = (255 * torch.rand(2, 8, 9, 4)).permute(0, 3, 1, 2)
    draw = Augmentation.draw(np.random.default_rng(0), replace(OFF, blur=1.0))
    torch.testing.assert_close(apply(images, [draw] * 2), apply(images.contiguous(), [draw] * 2))
