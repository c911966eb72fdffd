"""ClassMix and masking: what is pasted, and what is blanked (Olsson et al., WACV 2021; Hoyer et al., CVPR 2023)."""

import numpy as np
import torch
from torch import Tensor

from blda_cli.data.classes import IGNORE_INDEX


def class_mask(generator: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Half of the classes present, rounded up: bool ``[H, W]``, true where the source is pasted onto the target."""
    present = np.setdiff1d(np.unique(labels), [IGNORE_INDEX])
    chosen = generator.choice(present, (len(present) + 1) // 2, replace=False)
    return np.isin(labels, chosen)


def block_mask(generator: np.random.Generator, size: tuple[int, int], block: int, ratio: float) -> np.ndarray:
    """Blank blocks, each with probability ``ratio``: bool ``[H, W]``, true where the image stays."""
    rows, columns = (-(-side // block) for side in size)
    kept = generator.random((rows, columns)) >= ratio
    return kept.repeat(block, axis=0).repeat(block, axis=1)[: size[0], : size[1]]


def paste(pasted: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Source where ``pasted`` (bool ``[N, H, W]``) is true, else target; ``[N, H, W]`` or ``[N, 3, H, W]``."""
    return torch.where(pasted if source.dim() == 3 else pasted.unsqueeze(1), source, target)
