import math

import numpy as np
import pytest
import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.centroids import (
    CentroidSums,
    active_labels,
    at_features,
    default_margin,
    discriminative_loss,
    distance_loss,
    distances,
)

C, D = 4, 5
ANCHORS = torch.randn(C, D, generator=torch.Generator().manual_seed(9)) * 2
ANCHORS[2] = torch.inf  # a class without a centroid


def scene(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features, and labels some of which are ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C + 1, (2, 6, 7), generator=generator)
    labels[labels == C] = IGNORE_INDEX
    return torch.randn(2, D, 6, 7, generator=generator), labels


def exact_distance(feature: np.ndarray, centroid: np.ndarray) -> float:
    return math.inf if np.isinf(centroid).any() else math.sqrt(sum((feature - centroid) ** 2))


def test_anchors_are_the_mean_features_of_pixels_classified_rightly() -> None:
    features, labels = scene()
    predicted = torch.where(torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.5, labels, 0)
    labels[labels == 3] = 2  # no pixel of class 3
    predicted[predicted == 3] = 2
    sums = CentroidSums(C, D)
    for n in range(2):
        sums.update(features[n : n + 1], labels[n : n + 1], predicted[n : n + 1])
    for c in range(C):
        own = [
            features[n, :, row, column].double()
            for n, row, column in np.ndindex(2, 6, 7)
            if labels[n, row, column] == c and predicted[n, row, column] == c
        ]
        expected = torch.stack(own).mean(dim=0) if own else torch.full((D,), torch.inf).double()
        torch.testing.assert_close(sums.centroids()[c].double(), expected, atol=1e-6, rtol=1e-5)
        assert sums.pixels[c] == len(own)
    assert sums.pixels[3] == 0


@pytest.mark.parametrize("margin", [0.0, 0.7, 1.5])
def test_active_pixels_are_nearer_to_one_anchor_by_the_margin(margin: float) -> None:
    features, _ = scene()
    found = distances(features, ANCHORS)
    labels = active_labels(features, ANCHORS, margin)
    for n, row, column in np.ndindex(2, 6, 7):
        exact = [exact_distance(features[n, :, row, column].numpy(), centroid) for centroid in ANCHORS.numpy()]
        np.testing.assert_allclose(found[n, :, row, column].numpy(), exact, rtol=1e-4)
        nearest, second = sorted(exact)[:2]
        assert int(labels[n, row, column]) == (exact.index(nearest) if second - nearest > margin else IGNORE_INDEX)
    assert (labels != 2).all()
    assert (labels != IGNORE_INDEX).any()


def test_the_margin_is_the_published_one_or_a_share_of_the_distance_between_centroids() -> None:
    assert default_margin(torch.randn(3, 256)) == 2.5
    pairs = [exact_distance(ANCHORS[a].numpy(), ANCHORS[b].numpy()) for a, b in ((0, 1), (0, 3), (1, 3))]
    assert default_margin(ANCHORS) == pytest.approx(0.25 * np.mean(pairs), rel=1e-5)
    assert default_margin(10 * ANCHORS) == pytest.approx(10 * default_margin(ANCHORS), rel=1e-5)


def exact_distance_loss(features: Tensor, labels: Tensor) -> Tensor:
    terms = []
    for n in range(2):
        for c in (0, 1, 3):
            own = [features[n, :, r, k] for r, k in np.ndindex(6, 7) if labels[n, r, k] == c]
            if own:
                difference = (sum(own) / len(own) - ANCHORS[c]).abs()
                terms.append(torch.where(difference < 1, difference**2 / 2, difference - 0.5).sum() / D)
    return torch.stack(terms).sum() / len(terms)


def exact_discriminative_loss(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    terms = []
    for n, row, column in np.ndindex(2, 6, 7):
        label = int(labels[n, row, column])
        if label in (0, 1, 3):
            to = {c: (features[n, :, row, column] - ANCHORS[c]).norm() for c in (0, 1, 3)}
            terms.append((to[label] - min(to[c] for c in to if c != label) + margin).clamp(min=0))
    return torch.stack(terms).sum() / len(terms)


def test_losses_and_their_gradients_are_those_of_the_formulas() -> None:
    features, labels = scene(3)
    for discriminative in (False, True):
        ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
        if discriminative:
            loss, expected = (
                discriminative_loss(ours, labels, ANCHORS, 0.8),
                exact_discriminative_loss(theirs, labels, 0.8),
            )
        else:
            loss, expected = distance_loss(ours, labels, ANCHORS), exact_distance_loss(theirs, labels)
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
        loss.backward()
        expected.backward()
        assert ours.grad is not None
        assert float(ours.grad.abs().sum()) > 0
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)


def test_without_a_label_losses_are_zero() -> None:
    features, labels = scene()
    features.requires_grad_()
    for ignored in (torch.full_like(labels, IGNORE_INDEX), torch.full_like(labels, 2)):
        loss = distance_loss(features, ignored, ANCHORS) + discriminative_loss(features, ignored, ANCHORS, 1.0)
        assert float(loss.detach()) == 0
        loss.backward()
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())


def test_labels_at_the_features_size_are_those_of_the_nearest_pixels() -> None:
    labels = torch.arange(6 * 8).view(1, 6, 8)
    assert at_features(labels, torch.zeros(1, D, 3, 4))[0].tolist() == labels[0, 1::2, 1::2].tolist()
