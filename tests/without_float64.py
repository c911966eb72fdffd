"""A stand-in for Apple's GPUs, which refuse float64: what CPU tensors do that say they are on ``mps``."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps")
_LEAVING = {Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.cpu}


class OnDevice(Tensor):
    """A tensor in the CPU's memory that says it is on the device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE


class DeviceWithoutFloat64(TorchFunctionMode):
    """Within ``with``, tensors that are made on ``mps``, or from such tensors, are on it, and must not be float64.

    Parameters of modules are not seen to be there, so mixing devices is not noticed.
    """

    refused: torch.dtype | None = torch.float64

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        if func is Tensor.device.__get__:
            return DEVICE if isinstance(args[0], OnDevice) else args[0].__class__.device.__get__(args[0])
        asked = [
            str(value) for value in given if isinstance(value, str | torch.device) and str(value) in ("mps", "cpu")
        ]
        there = asked[0] == "mps" if asked else any(isinstance(value, OnDevice) for value in given)
        args, kwargs = tree_map(_onto_the_cpu, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if isinstance(result, torch.Size):  # tree_map would make a tuple of it
            return result
        if not there or func in _LEAVING:
            return tree_map(_plain, result)
        return tree_map(lambda value: self._placed(value, func, given), result)

    def _placed(self, value: Any, func: Any, given: list[Any]) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, OnDevice):
            return value
        in_place = any(value is one for one in given) and func is not Tensor.to
        if in_place and (func is Tensor.copy_ or isinstance(value, Parameter)):
            return value
        if in_place:
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found at least two devices")
        if value.dtype is self.refused:
            raise TypeError(f"{func}: the MPS framework doesn't support float64. Please use float32 instead.")
        return value.as_subclass(OnDevice)


def _onto_the_cpu(value: Any) -> Any:
    is_device = isinstance(value, str | torch.device) and str(value) == "mps"
    return torch.device("cpu") if is_device else value


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, OnDevice) else value
