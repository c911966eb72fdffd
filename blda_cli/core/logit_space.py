"""Which of the equivalent logits are counted: they are defined only up to a constant per pixel."""

import torch
from torch import Tensor

from blda_cli.core.choices import LogitSpace


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
