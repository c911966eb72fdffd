"""A small segmentation network for the street scenes."""

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (16, 32, 48)


def streetnet(classes: int = 11) -> "StreetNet":
    """Build the network.

    Args:
        classes: output channels.

    Returns:
        A network from ``[N, 3, H, W]`` images to ``[N, classes, H / 2, W / 2]`` logits.
    """
    return StreetNet(classes)


class StreetNet(nn.Module):
    """Three stages down to an eighth of the resolution, dilated context, and two additive steps up to a half."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        half, quarter, eighth = CHANNELS
        self.stage2 = nn.Sequential(_conv(3, half, stride=2), _conv(half, half))
        self.stage4 = nn.Sequential(_conv(half, quarter, stride=2), _conv(quarter, quarter))
        self.stage8 = nn.Sequential(
            _conv(quarter, eighth, stride=2),
            _conv(eighth, eighth, dilation=2),
            _conv(eighth, eighth, dilation=4),
        )
        self.lateral4 = nn.Conv2d(eighth, quarter, 1)
        self.lateral2 = nn.Conv2d(quarter, half, 1)
        self.fuse = _conv(half, half)
        self.classifier = nn.Conv2d(half, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, classes, H / 2, W / 2]`` logits, sizes rounded up."""
        half = self.stage2(image)
        quarter = self.stage4(half)
        quarter = quarter + _resize(self.lateral4(self.stage8(quarter)), quarter)
        half = half + _resize(self.lateral2(quarter), half)
        return self.classifier(self.fuse(half))  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
