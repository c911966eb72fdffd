"""Centroids (the paper's category anchors): mean features of the classes, labels by distance to them, and losses.

CAG-UDA (Zhang et al., NeurIPS 2019).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.core import IGNORE_INDEX

PUBLISHED_MARGIN, PUBLISHED_CHANNELS = 2.5, 256
RELATIVE_MARGIN = 0.25
"""Of the mean distance between two centroids: the margin for features that are not the published ones."""


class CentroidSums:
    """Sums of features by class, over pixels that are classified correctly.

    Attributes:
        sums: float64 ``[C, D]``; summable over batches and processes.
        pixels: float64 ``[C]``, the pixels in them.
    """

    def __init__(self, num_classes: int, channels: int, device: torch.device | None = None) -> None:
        self.sums = torch.zeros(num_classes, channels, dtype=torch.float64, device=device)
        self.pixels = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def update(self, features: Tensor, labels: Tensor, predicted: Tensor) -> None:
        """Add the pixels whose prediction is their label.

        Args:
            features: ``[N, D, h, w]``.
            labels: ``[N, h, w]``, at the features' size.
            predicted: likewise.
        """
        right = torch.where(predicted == labels, labels, IGNORE_INDEX)
        one_hot = F.one_hot(torch.where(right == IGNORE_INDEX, len(self.sums), right).long(), len(self.sums) + 1)
        one_hot = one_hot[..., :-1].float()
        sums = torch.einsum("nhwc,ndhw->cd", one_hot, features.float())  # float32 does for one batch
        self.sums += sums.to(self.sums.device)
        self.pixels += one_hot.sum(dim=(0, 1, 2)).to(self.pixels.device)

    def centroids(self) -> Tensor:
        """Mean feature of every class, float32 ``[C, D]``; infinite for classes without a pixel."""
        means = self.sums / self.pixels.unsqueeze(1)
        return torch.where(self.pixels.unsqueeze(1) > 0, means, torch.inf).float()


def default_margin(centroids: Tensor) -> float:
    """``Δ_d``: 2.5 for features of 256 channels, as published; else a quarter of the mean distance of two centroids.

    Distances grow with the number and the spread of the channels, and so does the distance between centroids.
    """
    known = centroids[centroids.isfinite().all(dim=1)]
    if centroids.shape[1] == PUBLISHED_CHANNELS or len(known) < 2:
        return PUBLISHED_MARGIN
    return RELATIVE_MARGIN * float(torch.pdist(known.cpu().double()).mean())


def distances(features: Tensor, centroids: Tensor) -> Tensor:
    """Euclidean distances of features ``[N, D, h, w]`` to centroids ``[C, D]``: ``[N, C, h, w]``."""
    known = centroids.isfinite().all(dim=1)
    features, found = features.float(), centroids[known]
    squares = features.square().sum(dim=1, keepdim=True) + found.square().sum(dim=1).view(1, -1, 1, 1)
    near = (squares - 2 * torch.einsum("ndhw,cd->nchw", features, found)).clamp(min=1e-12).sqrt()
    far = near.new_full((len(near), len(centroids), *near.shape[2:]), torch.inf)
    return far.index_copy(1, known.nonzero().squeeze(1), near)


def active_labels(features: Tensor, centroids: Tensor, margin: float) -> Tensor:
    """The nearest centroid's class, where the second-nearest is further by more than the margin.

    Args:
        features: ``[N, D, h, w]``.
        centroids: ``[C, D]``, infinite for classes without one.
        margin: ``Δ_d``.

    Returns:
        int64 ``[N, h, w]``, ignored where a pixel is not active.
    """
    nearest, labels = distances(features, centroids).topk(2, dim=1, largest=False)
    return labels[:, 0].masked_fill(nearest[:, 1] - nearest[:, 0] <= margin, IGNORE_INDEX)


def distance_loss(features: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Smooth L1 between the mean feature of each class in an image and the class's centroid.

    Args:
        features: ``[N, D, h, w]``.
        labels: int64 ``[N, h, w]``.
        centroids: ``[C, D]``.

    Returns:
        A scalar, the mean over channels and over the pairs of an image and a class in it; 0 where there is none.
    """
    one_hot, pixels = _memberships(labels, centroids)
    means = torch.einsum("nchw,ndhw->ncd", one_hot, features.float()) / pixels.clamp(min=1).unsqueeze(-1)
    present = pixels > 0
    targets = centroids.nan_to_num(posinf=0.0).expand_as(means)
    losses = F.smooth_l1_loss(means, targets, reduction="none").mean(dim=2)
    return (losses * present).sum() / present.sum().clamp(min=1)


def discriminative_loss(features: Tensor, labels: Tensor, centroids: Tensor, margin: float) -> Tensor:
    """``max(0, d(f, a_y) − min_{c ≠ y} d(f, a_c) + Δ_d)``: nearer to its own centroid than to the others, by a margin.

    Args:
        features: ``[N, D, h, w]``.
        labels: int64 ``[N, h, w]``.
        centroids: ``[C, D]``.
        margin: ``Δ_d``.

    Returns:
        A scalar, the mean over the labelled pixels whose class has a centroid; 0 where there is none.
    """
    one_hot, _ = _memberships(labels, centroids)
    counted = one_hot.sum(dim=1)
    found = distances(features, centroids).nan_to_num(posinf=torch.finfo(torch.float32).max)
    own = (found * one_hot).sum(dim=1)
    others = found.masked_fill(one_hot > 0, torch.finfo(torch.float32).max).amin(dim=1)
    return (F.relu(own - others + margin) * counted).sum() / counted.sum().clamp(min=1)


def at_features(labels: Tensor, features: Tensor) -> Tensor:
    """Labels ``[N, H, W]`` at the size of features ``[N, D, h, w]``: those of the nearest pixels."""
    size = features.shape[2], features.shape[3]
    return F.interpolate(labels.unsqueeze(1).float(), size, mode="nearest-exact").squeeze(1).long()


def _memberships(labels: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """1 where a pixel is of a class that has a centroid, float32 ``[N, C, h, w]``; those pixels, ``[N, C]``."""
    classes = len(centroids)
    one_hot = F.one_hot(torch.where(labels == IGNORE_INDEX, classes, labels), classes + 1)[..., :-1].movedim(-1, 1)
    known = centroids.isfinite().all(dim=1).view(1, -1, 1, 1)
    memberships = (one_hot * known).float()
    return memberships, memberships.sum(dim=(2, 3))
