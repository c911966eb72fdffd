"""Checks of tensors given to the Python interface; each message says what is expected."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_LOOKED_AT = 4096
"""Pixels per image that are checked for being probabilities."""


def check_logits(logits: Any, num_classes: int) -> None:
    """Raise unless ``logits`` are ``[N, C, *spatial]`` and floating point.

    Args:
        logits: what was given.
        num_classes: C.

    Raises:
        TypeError: it is not a tensor of floating-point numbers.
        ValueError: it has another shape.
    """
    wanted = f"logits should be a floating-point tensor [N, {num_classes}, H, W]"
    if isinstance(logits, Mapping):
        raise TypeError(f"{wanted}, not {type(logits).__name__}: give the entry that holds them, of {list(logits)[:8]}")
    if not isinstance(logits, Tensor):
        raise TypeError(f"{wanted}, not {type(logits).__name__}{_hint(logits)}")
    if not logits.is_floating_point():
        raise TypeError(f"{wanted}, not {logits.dtype}: class ids after an argmax do not tell what a correction needs")
    shape = list(logits.shape)
    if 0 in shape:
        raise ValueError(f"{wanted}, not {shape}: it is empty")
    if logits.dim() >= 2 and shape[1] == num_classes:
        return
    if logits.dim() == 3 and shape[0] == num_classes:
        raise ValueError(f"{wanted}, not {shape}: give a batch of one image, logits[None]")
    if logits.dim() >= 3 and shape[-1] == num_classes:
        raise ValueError(f"{wanted}, not {shape}, channels last: give logits.movedim(-1, 1)")
    raise ValueError(f"{wanted}, not {shape}")


def check_batch(
    logits: Any,
    labels: Any,
    keys: Sequence[str] | None,
    num_classes: int,
    *,
    device: torch.device,
    first: bool,
) -> None:
    """Raise unless a batch can be counted.

    Args:
        logits: should be ``[N, C, *spatial]``, see :func:`check_logits`.
        labels: should be integers ``[N, *spatial]``, or None.
        keys: should be N different names, or None.
        num_classes: C.
        device: where both should be.
        first: also check whether the values are probabilities, which waits for the device.

    Raises:
        TypeError: one is of another type.
        ValueError: one has another shape or lies on another device, keys are repeated, or the logits are probabilities.
    """
    check_logits(logits, num_classes)
    if logits.device != device:
        raise ValueError(
            f"the logits are on {logits.device}, the statistics on {device}: give logits.to({str(device)!r}), or count "
            f"there with LogitStatistics(..., device={str(logits.device)!r})"
        )
    if labels is not None:
        wanted = [logits.shape[0], *logits.shape[2:]]
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__ + _hint(labels)
            raise TypeError(f"labels should be a tensor of integers {wanted}, not {found}")
        if list(labels.shape) != wanted:
            raise ValueError(f"labels should be of shape {wanted}, as the logits' pixels, not {list(labels.shape)}")
        if labels.device != device:
            raise ValueError(f"the labels are on {labels.device}, the logits on {device}: labels.to({str(device)!r})")
    if keys is not None and (isinstance(keys, str) or len(keys) != len(logits)):
        raise ValueError(f"keys should be a list of {len(logits)} names, one per image, not {str(keys)[:60]!r}")
    wrong = next((key for key in keys or () if not isinstance(key, str)), None)
    if wrong is not None:
        raise TypeError(f"keys should be text, not {type(wrong).__name__}: str({wrong!r})")
    if keys is not None and len(set(keys)) < len(keys):
        raise ValueError("keys should be different: pixels of images of one name would be sampled alike")
    if first and num_classes > 1 and _probabilities(logits):
        raise ValueError(
            "the values are probabilities (from 0 to 1, with a sum of 1 at every pixel): give logits, or "
            "probabilities.clamp_min(1e-8).log()"
        )


def _hint(value: Any) -> str:
    return ": torch.from_numpy(array)" if type(value).__module__ == "numpy" else ""


def _probabilities(logits: Tensor) -> bool:
    part = logits.flatten(2)[:, :, :_LOOKED_AT] if logits.dim() > 2 else logits
    sums = part.float().sum(dim=1)
    inside = ((part >= 0) & (part <= 1)).all()
    return bool(inside & ((sums - 1).abs() < 1e-2).all()) and bool((part != part[:1, :1]).any())
