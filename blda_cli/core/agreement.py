"""How far two predictions of the same pixels agree, from a table of the pairs of classes."""

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
