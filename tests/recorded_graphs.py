"""A stand-in for CUDA graphs: operations on the CPU that are recorded with the tensors they work on, and done again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


class Recorded(TorchDispatchMode):
    """As a CUDA graph: what was captured lies where it lay, and is computed by replays alone."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inputs = inputs
        self.result: Any = None
        self._work: list[tuple[Any, Any, Any, list[Tensor | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {one.untyped_storage().data_ptr() for one in tensors((args, kwargs))}
        result = func(*args, **kwargs)
        made = [None if one.untyped_storage().data_ptr() in given else one for one in tensors(result)]
        self._work.append((func, args, kwargs, made))
        return result

    def spoil(self) -> None:
        """A capture computes nothing."""
        for _, _, _, made in self._work:
            for one in made:
                if one is not None and one.is_floating_point():
                    one.fill_(float("nan"))

    def replay(self, *inputs: Tensor) -> Any:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        for func, args, kwargs, made in self._work:
            if made and all(one is None for one in made) and not func._schema.is_mutable:
                continue  # a view of what is there
            for place, new in zip(made, tensors(func(*args, **kwargs)), strict=True):
                if place is not None:
                    place.copy_(new)
        return self.result


class RecordedMemory:
    """In place of ``blda_cli.runtime.graphs.GraphMemory``."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def capture(self, function: Callable[..., Any], *inputs: Tensor) -> Recorded:
        recorded = Recorded(tuple(values.clone() for values in inputs))
        with recorded:
            recorded.result = function(*recorded.inputs)
        recorded.spoil()
        return recorded

    def wait(self) -> None:
        pass


def use_recorded_graphs(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Let modules capture work on the CPU, as they do on CUDA."""
    for module in modules:
        monkeypatch.setattr(f"{module}.available", lambda values: True)
        monkeypatch.setattr(f"{module}.GraphMemory", RecordedMemory)
