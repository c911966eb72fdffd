"""Class-balanced selection of pseudo-labels (CBST; Zou et al., ECCV 2018)."""

import torch
from torch import Tensor


def class_thresholds(confidence: Tensor, predicted: Tensor, num_classes: int, portion: float) -> Tensor:
    """``exp(−k_c)``: the confidence ranked at ``round(p N_c)`` among the ``N_c`` pixels predicted ``c``.

    Zou et al., ECCV 2018, algorithm 2.

    Args:
        confidence: ``[P]``, the largest softmax probability.
        predicted: int64 ``[P]``, its class.
        num_classes: C.
        portion: p in (0, 1].

    Returns:
        float64 ``[C]``; 1 for classes that are never predicted.
    """
    by_confidence = confidence.argsort(descending=True, stable=True)
    order = by_confidence[predicted[by_confidence].argsort(stable=True)]
    counts = torch.bincount(predicted, minlength=num_classes)
    starts = counts.cumsum(0) - counts
    ranks = (portion * counts.double()).round().long().clamp(min=1) - 1
    position = (starts + ranks).clamp(max=max(len(order) - 1, 0))
    thresholds = torch.ones(num_classes, dtype=torch.float64, device=confidence.device)
    seen = counts > 0
    thresholds[seen] = confidence[order[position[seen]]].double()
    return thresholds
