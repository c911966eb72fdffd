from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from blda_cli.data.images import find_images
from blda_cli.data.source import ImageSource

CHANNELS = 5


class TinyNet(nn.Module):
    """Logits at a quarter of the input's size."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.norm(self.body(images))))
        return out


@pytest.fixture
def tiny_net() -> TinyNet:
    torch.manual_seed(3)
    net = TinyNet().eval()
    net.norm.running_mean = torch.randn(8) * 0.1
    return net


@pytest.fixture
def images(tmp_path: Path) -> list[ImageSource]:
    """Three random pictures, the first two of one size that no power of two divides."""
    folder = tmp_path / "images"
    (folder / "town").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in {"town/a": (50, 70), "town/b": (50, 70), "c": (40, 60)}.items():
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return sorted(find_images(folder), key=lambda file: file.path.stem)


@pytest.fixture
def pixels(images: list[ImageSource]) -> Tensor:
    """The first two pictures, uint8 ``[2, 50, 70, 3]``."""
    return torch.stack([torch.from_numpy(np.array(Image.open(file.path))) for file in images[:2]])


@pytest.fixture
def reference() -> Callable[[nn.Module, Tensor], Tensor]:
    """What a segmenter without preprocessing should give: pixels in 0..1 through the network, resized back."""

    def run(net: nn.Module, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            out = net(pixels.permute(0, 3, 1, 2).float() / 255)
        return nn.functional.interpolate(out, pixels.shape[1:3], mode="bilinear", align_corners=False)

    return run
