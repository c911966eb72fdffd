"""Networks of every ending that an export has to deal with."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 5


class Body(nn.Module):
    """Eight features at a quarter of the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(images)))


class Headed(nn.Module):
    """A body, a head, and what comes after it."""

    def __init__(self, head: nn.Module, after: Callable[[Tensor], Tensor] = lambda scores: scores) -> None:
        super().__init__()
        self.body = Body()
        self.head = head
        self._after = after

    def forward(self, images: Tensor) -> Tensor:
        return self._after(self.head(self.body(images)))


class TwoHeads(nn.Module):
    """The sum of two heads, one of which sees the image at half its size; shared among others as a dict."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.body = Body()
        self.fine = nn.Conv2d(8, CHANNELS, 1)
        self.coarse = nn.Conv2d(8, CHANNELS, 1)
        self._weight = weight

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.fine(self.body(images))
        coarse = self.coarse(self.body(F.avg_pool2d(images, 2)))
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": self._weight * (fine + coarse), "aux": fine}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.head = nn.Linear(8, CHANNELS)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).mean(dim=(2, 3)))
        return logits


def upsampled(scores: Tensor) -> Tensor:
    return F.interpolate(scores, scale_factor=4.0, mode="bilinear", align_corners=False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bias": lambda: Headed(nn.Conv2d(8, CHANNELS, 1)),
    "no bias": lambda: Headed(nn.Conv2d(8, CHANNELS, 1, bias=False)),
    "upsampled": lambda: Headed(nn.Conv2d(8, CHANNELS, 3, padding=1), upsampled),
    "transposed": lambda: Headed(nn.ConvTranspose2d(8, CHANNELS, 4, stride=4, bias=False)),
    "normed": lambda: Headed(nn.Sequential(nn.Conv2d(8, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS))),
    "two heads": TwoHeads,
    "half the sum": lambda: TwoHeads(0.5),
    "classifier": Classifier,
}
"""Networks whose last layer can take offsets."""


def randomised(network: nn.Module) -> nn.Module:
    """Norms with averages of their own, and logits some units apart."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.1, 0.4)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.mul_(2)
    return network.eval()


class Pooled(nn.Module):
    """Batch norms, one with an activation of its own, over the map and over what is pooled from it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.pooled = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.fused = FusedNorm(8)
        self.head = nn.Conv2d(8, CHANNELS, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        context = self.pooled(features.mean(dim=(2, 3), keepdim=True))
        scores: Tensor = self.head(self.fused(features + context))
        return scores


class FusedNorm(nn.BatchNorm2d):
    """A batch norm that ends in an activation, as timm's ``BatchNormAct2d``."""

    def forward(self, values: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(values), 0.1)


def make(name: str, seed: int = 3) -> nn.Module:
    """A network by name, as a factory of kind ``python``."""
    torch.manual_seed(seed)
    return randomised((NETWORKS | MORE)[name]())


MORE: dict[str, Callable[[], nn.Module]] = {
    "pooled": Pooled,
    "probabilities": lambda: Headed(nn.Conv2d(8, CHANNELS, 1), softmax),
    "clamped": lambda: Headed(nn.Conv2d(8, CHANNELS, 1), clamped),
}
"""Networks whose last layer cannot take offsets, and one that norms can be mixed in."""


def softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=1)


def clamped(scores: Tensor) -> Tensor:
    return scores.clamp(-3, 3)
