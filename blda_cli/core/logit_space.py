"""Logit spaces: how the free additive constant of a pixel's logits is fixed."""

import torch
from torch import Tensor

from blda_cli.core.choices import LogitSpace


def to_space(logits: Tensor, space: LogitSpace) -> Tensor:
    """Convert logits to a logit space.

    Args:
        logits: ``[N, C, *spatial]`` floating point.
        space: the convention.

    Returns:
        Logits of the same shape and dtype; the same tensor for ``RAW``. Argmax and softmax do not change.
    """
    match space:
        case LogitSpace.RAW:
            return logits
        case LogitSpace.CENTRED:
            return logits - logits.mean(dim=1, keepdim=True)
        case LogitSpace.LOG_SOFTMAX:
            return torch.log_softmax(logits, dim=1)
