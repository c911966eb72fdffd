from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from blda_cli.finetuning.augmentation import Augmentation, augment
from blda_cli.finetuning.settings import HostSettings

OFF = HostSettings(color_jitter=0.0, blur=0.0)


def apply(images: Tensor, draws: list[Augmentation]) -> Tensor:
    color = torch.from_numpy(np.stack([draw.color for draw in draws]))
    contrast = torch.tensor([draw.contrast for draw in draws])
    return augment(images, color, contrast, torch.from_numpy(np.stack([draw.blur for draw in draws])))


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
    assert abs(jittered - 0.2) < 0.06
    assert abs(blurred - 0.5) < 0.1  # the narrowest blurs change nothing in float32
