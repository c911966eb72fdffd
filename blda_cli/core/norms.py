"""Norm statistics: mean and variance per channel, their distance, and blends of those of two domains."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blda_cli.core.confusion import ConfusionMatrix

SHIFTED = 0.01
"""From this mean :func:`hellinger` distance on, over all channels of all norms, target norms help: over eight images it
was 0.0017 at most in domain (0.0075 over one image), 0.023 to 0.055 out of domain."""


@dataclass
class ChannelMoments:
    """Mean and variance of every channel over all batches, each weighted by its number of values.

    Attributes:
        count: values per channel.
        mean: float64 ``[C]`` on the CPU; a number before the first update.
        deviation: summed squared deviation from the mean, likewise.
    """

    count: int = 0
    mean: Tensor | float = 0.0
    deviation: Tensor | float = 0.0

    def update(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch (Chan, Golub and LeVeque, "Updating formulae ...", 1979, eq. 2.1).

        Args:
            values: ``[N, C, *spatial]`` floating point.

        Returns:
            The batch's own mean and (biased) variance, float32 ``[C]``.
        """
        # As they lie in memory, a pixel a row or a channel a row: torch.var_mean over several axes takes five times as
        # long.
        over = 0 if values.stride(1) == 1 else 1
        rows = (values.movedim(1, -1).flatten(0, -2) if over == 0 else values.transpose(0, 1).flatten(1)).float()
        mean = rows.mean(dim=over, keepdim=True)
        variance = (rows - mean).square_().mean(dim=over)
        mean, count = mean.squeeze(over), rows.shape[over]
        total = self.count + count
        step = mean.cpu().double() - self.mean
        self.deviation = self.deviation + variance.cpu().double() * count + step.square() * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total
        return mean, variance

    @property
    def variance(self) -> Tensor:
        """Unbiased, as batch norms keep it; float64 ``[C]``. Needs two values per channel."""
        return torch.as_tensor(self.deviation) / (self.count - 1)


@dataclass(frozen=True)
class Norms:
    """Norm statistics of target images, blended with those that the network was trained with.

    Attributes:
        averages: float32 ``[channels]`` each, by the names of the network's state dict: ``NAME.running_mean`` and
            ``NAME.running_var``.
        images: number of target images they were measured on.
        source_images: how many images the source's statistics counted as.
    """

    averages: dict[str, Tensor]
    images: int
    source_images: int

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of these norm statistics, as JSON."""
        digest = hashlib.sha256()
        for name, values in sorted(self.averages.items()):
            digest.update(f"{name} {len(values)}\n".encode())
            digest.update(values.numpy().tobytes())
        return {
            "images": self.images,
            "source_images": self.source_images,
            "digest": f"sha256:{digest.hexdigest()}",
        }


@dataclass(frozen=True)
class MixedNorms:
    """Norms that mix their running statistics with each image's own, and how their weight was chosen.

    Attributes:
        weight: λ, of the running statistics; with 1 the network is as it was trained.
        images: images that it was chosen on; 0 where it was given.
        agreements: of every weight that was compared, the share of pixels whose class is the same in a smaller copy of
            the image.
        information: likewise, the mutual information of the two predictions in nats, by which it was chosen.
        shares: of 1 and of the weight, the share of the images' pixels that is predicted as each class.
        confusions: of the same, the confusion matrix on these images; empty where there are no labels.
        changed: of every weight that was compared, the share of the images' pixels whose class differs from that with
            1; empty where that was not counted.
        scales: those of the averaged views that are left after less telling ones were dropped; empty: all.
    """

    weight: float
    images: int = 0
    agreements: Mapping[float, float] = field(default_factory=dict)
    information: Mapping[float, float] = field(default_factory=dict)
    shares: Mapping[float, Sequence[float]] = field(default_factory=dict)
    confusions: Mapping[float, ConfusionMatrix] = field(default_factory=dict)
    changed: Mapping[float, float] = field(default_factory=dict)
    scales: Sequence[float] = ()

    def __str__(self) -> str:
        mixed = f"mixed with each image's own statistics, weight {self.weight:g}"
        words = "as trained" if self.weight == 1 else mixed
        if self.weight not in self.information:
            return words
        shared = f"{self.information[self.weight]:.3f} nats of information"
        other = "no other weight is clearly ahead" if self.weight == 1 else f"{self.information[1.0]:.3f} as trained"
        changed = ""
        if self.weight < 1 and self.weight in self.changed:
            changed = f", {self.changed[self.weight]:.0%} of the pixels change class"
        return (
            f"{words}: the classes of an image and of its smaller copy share {shared}, {other}{changed} "
            f"({self.images} images)"
        )

    @property
    def identity(self) -> dict[str, Any] | None:
        """Identity of the mixed norms, as JSON; None where the network is as it was trained."""
        return None if self.weight == 1 else {"weight": self.weight}


def image_moments(values: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of every channel of each image.

    Args:
        values: ``[N, C, *spatial]`` floating point.
        counted: bool ``[N, *spatial]``, the positions that count; of an image without any, all do. None: all count.

    Returns:
        float32 ``[N, C]`` each.
    """
    if counted is None and _one_kernel(values):
        variance, mean = torch.var_mean(values.float(), dim=tuple(range(2, values.ndim)), correction=0)
        return mean, variance
    rows = values.flatten(2).float()
    if counted is None:
        mean = rows.mean(dim=2)
        variance = torch.linalg.vector_norm(rows - mean.unsqueeze(2), dim=2).square() / rows.shape[2]
        return mean, variance
    counted = counted.flatten(1)
    weights = (counted | ~counted.any(dim=1, keepdim=True)).unsqueeze(1)
    total = weights.sum(dim=2)
    mean = (rows * weights).sum(dim=2) / total
    variance = ((rows - mean.unsqueeze(2)).square() * weights).sum(dim=2) / total
    return mean, variance


def _one_kernel(values: Tensor) -> bool:
    """Whether ``var_mean`` is one kernel; on a CPU it takes twenty times as long as the operations in its place."""
    return values.is_cuda


def mix_moments(
    running: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], weight: float | Tensor
) -> tuple[Tensor, Tensor]:
    """``weight · running + (1 − weight) · own``, for means and variances alike.

    Wang et al., "Dynamically Instance-Guided Adaptation", CVPR 2023, eq. 3. The variance of a mixture of the two would
    have a third term, ``weight (1 − weight) (difference of the means)²``: see ``tests/benchmarks/README.md``.

    Args:
        running: mean and variance ``[C]``.
        own: of each image, float32 ``[N, C]``.
        weight: λ, 0 to 1.

    Returns:
        float32 ``[N, C]`` each.
    """
    mean, variance = (torch.lerp(one, other.float(), weight) for one, other in zip(own, running, strict=True))
    return mean, variance


def hellinger(source_mean: Tensor, source_variance: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Squared Hellinger distance of two normal distributions, channel by channel.

    ``1 − sqrt(2 σ_s σ_t / (σ_s² + σ_t²)) exp(−(μ_s − μ_t)² / (4 (σ_s² + σ_t²)))``, 0 where they are equal, at most 1.
    """
    one, other = source_variance.clamp_min(1e-12), variance.clamp_min(1e-12)  # a channel may be dead
    together = one + other
    overlap = (2 * (one * other).sqrt() / together).sqrt()
    return 1 - overlap * (-(source_mean - mean).square() / (4 * together)).exp()


def blend(source: Tensor, target: Tensor, source_images: int, images: int) -> Tensor:
    """Blend norm statistics of source and target, each weighted by its number of images.

    Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020,
    eq. 1: ``N/(N+n) source + n/(N+n) target``, for means and variances alike.

    Args:
        source: means or variances of the norms as trained.
        target: of the target images, of the same shape.
        source_images: N, how many images the source counts as; 0 leaves it out.
        images: n, at least 1.
    """
    share = source_images / (source_images + images)
    return share * source + (1 - share) * target
