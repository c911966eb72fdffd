"""A stand-in for a GPU that counts how often the processor waits for it."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.without_float64 import DeviceWithoutFloat64, OnDevice

_WAITS: dict[Any, int] = {
    Tensor.item: 1,
    Tensor.tolist: 1,
    Tensor.cpu: 1,
    Tensor.numpy: 1,
    Tensor.__bool__: 1,
    Tensor.__int__: 1,
    Tensor.__float__: 1,
    Tensor.__index__: 1,
    Tensor.nonzero: 1,
    torch.nonzero: 1,
    torch.equal: 1,
    torch.unique: 1,
    torch.masked_select: 1,
    torch.bincount: 2,  # for the lowest and the highest value
    Tensor.bincount: 2,
}


class WaitingDevice(DeviceWithoutFloat64):
    """Within ``with``, tensors on ``mps`` behave as on CUDA.

    Attributes:
        waits: how often each function waited for the device, a copy from the CPU's ordinary memory among them.
    """

    refused = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        given = tree_leaves((args, kwargs or {}))
        there = any(isinstance(one, OnDevice) for one in given)
        waits = _WAITS.get(func, 0) if there else 0
        if func in (Tensor.__getitem__, Tensor.__setitem__) and there:
            waits = sum(isinstance(one, Tensor) and one.dtype is torch.bool for one in tree_leaves(args[1]))
        if func is Tensor.to or (func is torch.tensor and kwargs):
            asked = {str(one) for one in given if isinstance(one, str | torch.device)}
            waits = int(asked == {"cpu"} if there else asked == {"mps"})
        if waits:
            self.waits[getattr(func, "__name__", str(func))] += waits
        return super().__torch_function__(func, types, args, kwargs)
