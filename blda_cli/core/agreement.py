"""Agreement of two predictions of the same pixels, from a table of the pairs of classes."""

import torch
from torch import Tensor


def count_pairs(one: Tensor, other: Tensor, classes: int) -> Tensor:
    """Count the pairs of classes that two predictions give the same pixels.

    Args:
        one: class ids, integers of any shape.
        other: of the same shape.
        classes: C.

    Returns:
        int64 ``[C, C]``: the first prediction's class by the other's.
    """
    pairs = one.flatten().long() * classes + other.flatten()
    return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)


def agreement(pairs: Tensor) -> float:
    """Share of the pixels that have one class in both predictions.

    Args:
        pairs: ``[C, C]``, see `count_pairs`; not empty.
    """
    return float(pairs.diagonal().sum() / pairs.sum())


def mutual_information(pairs: Tensor) -> float:
    """Mutual information of the two predictions' classes, in nats: ``Σ p(a, b) log(p(a, b) / (p(a) p(b)))``.

    Unlike their agreement it is no higher where both predict little but one class.

    Args:
        pairs: ``[C, C]``, see `count_pairs`; not empty.
    """
    joint = pairs.double() / pairs.sum()
    apart = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    return max(float(torch.where(joint > 0, joint * (joint / apart).log(), 0.0).sum()), 0.0)


def information_gain(pairs: Tensor, others: Tensor) -> tuple[float, float]:
    """How much more information predictions share than others of the same images, and the standard error of that.

    The error is the jackknife's, images left out one by one; 0 of a single image.

    Args:
        pairs: ``[N, C, C]``, see `count_pairs`: a table of each image, none empty.
        others: of the other predictions, likewise.
    """

    def gain(kept: Tensor) -> float:
        return mutual_information(pairs[kept].sum(dim=0)) - mutual_information(others[kept].sum(dim=0))

    every = torch.ones(len(pairs), dtype=torch.bool)
    if len(pairs) == 1:
        return gain(every), 0.0
    left_out = torch.tensor([gain(~one) for one in torch.eye(len(pairs), dtype=torch.bool)], dtype=torch.float64)
    return gain(every), float(((len(pairs) - 1) * left_out.var(correction=0)).sqrt())


def kappa(pairs: Tensor) -> float:
    """Agreement of two class maps beyond chance (Cohen, "A coefficient of agreement for nominal scales", 1960).

    A network that predicts one class everywhere agrees with itself on every copy; that shows nothing, and gives 0.

    Args:
        pairs: ``[C, C]``, see `count_pairs`; may be empty.

    Returns:
        ``(observed − expected) / (1 − expected)``: 1 where all agree, 0 where they agree as independent maps would.
    """
    shares = pairs.double() / pairs.sum().clamp_min(1)
    expected = float((shares.sum(dim=0) * shares.sum(dim=1)).sum())
    if expected > 1 - 1e-9:
        return 0.0
    return (float(shares.trace()) - expected) / (1 - expected)
