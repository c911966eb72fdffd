"""ClassMix and masking: which pixels are pasted, and which are blanked (Olsson et al., WACV 2021; Hoyer et al., CVPR
2023)."""

import numpy as np
import torch
from torch import Tensor


def class_masks(labels: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Where the source is pasted: half of the classes that the batch's labels hold, rounded up, for each image anew.

    As published, pixels without a label count as a class (Olsson et al., WACV 2021; Tranheden et al., WACV 2021).

    Args:
        labels: integers ``[N, H, W]``.
        orders: of each image, all values of a label, ``IGNORE_INDEX`` among them, in the order in which they are
            chosen, ``[N, C + 1]``.

    Returns:
        bool ``[N, H, W]``.
    """
    present = np.unique(labels)
    half = (len(present) + 1) // 2
    chosen = [order[np.isin(order, present)][:half] for order in orders]
    return np.stack([np.isin(one, classes) for one, classes in zip(labels, chosen, strict=True)])


def block_mask(generator: np.random.Generator, size: tuple[int, int], block: int, ratio: float) -> np.ndarray:
    """Blank blocks, each with probability ``ratio``: bool ``[H, W]``, true where the image stays."""
    rows, columns = (-(-side // block) for side in size)
    kept = generator.random((rows, columns)) >= ratio
    return kept.repeat(block, axis=0).repeat(block, axis=1)[: size[0], : size[1]]


def paste(pasted: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Source where ``pasted`` (bool ``[N, H, W]``) is true, else target; ``[N, H, W]`` or ``[N, 3, H, W]``."""
    return torch.where(pasted if source.dim() == 3 else pasted.unsqueeze(1), source, target)
