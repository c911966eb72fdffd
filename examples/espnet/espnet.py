"""ESPNet, a small and fast segmentation network.

Mehta, Rastegari, Caspi, Shapiro, Hajishirzi: "ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic
Segmentation", ECCV 2018. Attributes are named so that the published checkpoints load as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3


def espnet(p: int = 2, q: int = 8, channels: int = 20) -> "ESPNet":
    """Build the network.

    Args:
        p: ESP blocks at a quarter of the input's resolution.
        q: ESP blocks at an eighth.
        channels: output channels; the Cityscapes checkpoints have the 19 train ids, then "unlabelled".

    Returns:
        A network from ``[N, 3, H, W]`` float images to ``[N, channels, H, W]`` logits.
    """
    return ESPNet(p, q, channels)


class Conv(nn.Module):
    """A square convolution without bias, padded so that only the stride changes the resolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``, rounded up."""
        return self.conv(x)  # type: ignore[no-any-return]


class BR(nn.Module):
    """Batch normalisation and PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.act(self.bn(x))  # type: ignore[no-any-return]


class ConvBR(Conv):
    """A convolution, batch normalisation and PReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride)
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``, rounded up."""
        return self.act(self.bn(self.conv(x)))  # type: ignore[no-any-return]


class Pyramid(nn.Module):
    """The efficient spatial pyramid: reduce, convolve at five dilations, sum hierarchically, concatenate.

    The sums (dilation 2, 2 + 4, 2 + 4 + 8, ...) remove the gridding of large dilations.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        width = outputs // 5
        self.c1 = Conv(inputs, width, kernel, stride)
        self.d1 = Conv(width, outputs - 4 * width, 3)
        self.d2 = Conv(width, width, 3, dilation=2)
        self.d4 = Conv(width, width, 3, dilation=4)
        self.d8 = Conv(width, width, 3, dilation=8)
        self.d16 = Conv(width, width, 3, dilation=16)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``, rounded up."""
        reduced = self.c1(x)
        sum2 = self.d2(reduced)
        sum4 = sum2 + self.d4(reduced)
        sum8 = sum4 + self.d8(reduced)
        sum16 = sum8 + self.d16(reduced)
        return torch.cat([self.d1(reduced), sum2, sum4, sum8, sum16], dim=1)


class Downsample(Pyramid):
    """A pyramid that halves the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel=3, stride=2)
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` to ``[N, outputs, H / 2, W / 2]``, rounded up."""
        return self.act(self.bn(super().forward(x)))  # type: ignore[no-any-return]


class ESP(Pyramid):
    """A pyramid at one resolution, residual in the encoder."""

    def __init__(self, inputs: int, outputs: int, residual: bool = True) -> None:
        super().__init__(inputs, outputs, kernel=1)
        self.bn = BR(outputs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` to ``[N, outputs, H, W]``."""
        pyramid = super().forward(x)
        return self.bn(x + pyramid if self.residual else pyramid)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """The network down to an eighth of the resolution."""

    def __init__(self, p: int, q: int, channels: int) -> None:
        super().__init__()
        self.level1 = ConvBR(3, 16, kernel=3, stride=2)
        self.b1 = BR(16 + 3)
        self.level2_0 = Downsample(16 + 3, 64)
        self.level2 = nn.Sequential(*(ESP(64, 64) for _ in range(p)))
        self.b2 = BR(64 + 64 + 3)
        self.level3_0 = Downsample(64 + 64 + 3, 128)
        self.level3 = nn.Sequential(*(ESP(128, 128) for _ in range(q)))
        self.b3 = BR(128 + 128)
        self.classifier = Conv(128 + 128, channels, kernel=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[N, 3, H, W]`` to features at a half and a quarter of the resolution and logits at an eighth."""
        half_image = F.avg_pool2d(image, 3, stride=2, padding=1)
        quarter_image = F.avg_pool2d(half_image, 3, stride=2, padding=1)
        half = self.level1(image)
        quarter = self.level2_0(self.b1(torch.cat([half, half_image], dim=1)))
        quarter = self.b2(torch.cat([self.level2(quarter), quarter, quarter_image], dim=1))
        eighth = self.level3_0(quarter)
        eighth = self.b3(torch.cat([eighth, self.level3(eighth)], dim=1))
        return half, quarter, self.classifier(eighth)


class ESPNet(nn.Module):
    """The encoder and a light decoder back to the input's resolution."""

    def __init__(self, p: int, q: int, channels: int) -> None:
        super().__init__()
        self.encoder = Encoder(p, q, channels)
        self.br = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.up_l3 = nn.Sequential(_upsample(channels))
        self.level3_C = Conv(64 + 64 + 3, channels, kernel=1)
        self.combine_l2_l3 = nn.Sequential(BR(2 * channels), ESP(2 * channels, channels, residual=False))
        self.up_l2 = nn.Sequential(_upsample(channels), BR(channels))
        self.conv = ConvBR(channels + 16, channels, kernel=3)
        self.classifier = _upsample(channels)

    def forward(self, image: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, channels, H, W]`` logits."""
        half, quarter, eighth = self.encoder(image)
        upsampled = _crop(self.up_l3(self.br(eighth)), quarter)
        decoded = self.combine_l2_l3(torch.cat([self.level3_C(quarter), upsampled], dim=1))
        upsampled = _crop(self.up_l2(decoded), half)
        return _crop(self.classifier(self.conv(torch.cat([upsampled, half], dim=1))), image)


def _upsample(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)


def _crop(x: Tensor, like: Tensor) -> Tensor:
    # An odd size is rounded up on the way down, so the way up ends a row or column too far.
    return x[..., : like.shape[-2], : like.shape[-1]]
