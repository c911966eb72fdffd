"""Validation of a checkpoint against the run that resumes from it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def check_tensors(value: Any, where: str) -> None:
    """Refuse tensors that are sparse, without values, or not finite, and numbers that are not.

    Args:
        value: a tensor or a number, or mappings and lists of some.
        where: what to call it.

    Raises:
        ValueError: there is one; the message names it.
    """
    if isinstance(value, Tensor):
        plain = (
            value.layout is torch.strided and not value.is_meta and not value.is_quantized and not value.is_complex()
        )
        if not plain or not bool(torch.isfinite(value).all()):
            raise ValueError(f"{where} is not a tensor of finite numbers")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_tensors(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            check_tensors(item, f"{where}.{place}")


def check_alike(saved: Any, own: Any, where: str) -> None:
    """Raise unless keys, shapes and types equal those of this run.

    Args:
        saved: of a checkpoint.
        own: the same of a run that has just begun; entries that are None or empty there match anything.
        where: what to call it.

    Raises:
        ValueError: they differ; the message names where.
    """
    if own is None or (isinstance(own, Mapping | list | tuple) and not own):
        return
    if isinstance(own, Tensor):
        alike = isinstance(saved, Tensor) and saved.dtype == own.dtype
        if not alike or (own.numel() and saved.shape != own.shape):
            raise ValueError(f"{where} is not a tensor of shape {list(own.shape)} and type {own.dtype}")
    elif isinstance(own, Mapping):
        if not isinstance(saved, Mapping) or saved.keys() != own.keys():
            odd = saved.keys() ^ own.keys() if isinstance(saved, Mapping) else own.keys()
            raise ValueError(f"{where} does not hold what it should ({min(map(str, odd))})")
        for key, item in own.items():
            check_alike(saved[key], item, f"{where}.{key}")
    elif isinstance(own, list | tuple):
        if not isinstance(saved, list | tuple) or len(saved) != len(own):
            raise ValueError(f"{where} is no list of {len(own)}")
        for place, (one, item) in enumerate(zip(saved, own, strict=True)):
            check_alike(one, item, f"{where}.{place}")
    elif isinstance(own, bool | int | float | str):
        number = isinstance(own, int | float) and not isinstance(own, bool)
        if not isinstance(saved, (int, float) if number else type(own)) or (number and isinstance(saved, bool)):
            raise ValueError(f"{where} is {type(saved).__name__}, not {type(own).__name__}")


def check_optimizer(saved: Any, parameters: list[nn.Parameter], where: str) -> None:
    """Refuse an AdamW's state that is not of these parameters.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(saved, Mapping) or not saved.keys() <= {*range(len(parameters))}:
        raise ValueError(f"{where} is not of the network's {len(parameters)} parameters")
    for index, state in saved.items():
        own = {"step": torch.zeros(()), "exp_avg": parameters[index], "exp_avg_sq": parameters[index]}
        check_alike(state, own, f"{where}.{index}")
        if state["step"] < 0 or bool((state["exp_avg_sq"] < 0).any()):
            raise ValueError(f"{where}.{index} counts or squares to less than zero")
