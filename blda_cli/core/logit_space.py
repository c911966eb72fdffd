"""Which of the equivalent logits are counted: they are defined only up to a constant per pixel."""

from enum import StrEnum

import torch
from torch import Tensor


class LogitSpace(StrEnum):
    """How a pixel's free constant is fixed before its logits are counted or shifted."""

    RAW = "raw"
    """As the network gives them, as the paper counts them."""
    CENTRED = "centred"
    """Minus the pixel's mean over the classes."""
    LOG_SOFTMAX = "log-softmax"
    """Log-probabilities."""


def to_space(logits: Tensor, space: LogitSpace) -> Tensor:
    """Fix the free constant of every pixel.

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
