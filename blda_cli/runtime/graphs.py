"""CUDA graphs: many small kernels that are launched together."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_WARM_UP = 2
"""Calls before the work is captured, in which libraries and allocator set up what may not be set up in a capture."""

_MOST_SHAPES = 4
"""Shapes of inputs that are captured; each keeps the memory of its work."""

Result = TypeVar("Result")


class GraphedCall(Generic[Result]):
    """Calls a function of tensors; on CUDA, from the third call with such shapes on, by replaying a CUDA graph.

    The function's work must be the same in every call: it does not wait for the device, keeps its state in tensors
    that it changes in place, and draws no random numbers. No gradients flow through it. Where processes share their
    results it is called as it is.

    Args:
        function: what is called.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function = function
        self._calls: dict[tuple[object, ...], int] = {}
        self._captured: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Result]] = {}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Result:
        """Call the function.

        Returns:
            What it returns; on CUDA the next call overwrites its tensors.
        """
        if not inputs[0].is_cuda or dist.is_initialized():
            return self._function(*inputs)
        key = tuple((values.shape, values.dtype) for values in inputs)
        if key not in self._captured:
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            if calls <= _WARM_UP or len(self._captured) == _MOST_SHAPES:
                return self._function(*inputs)
            self._captured[key] = self._capture(inputs)
        graph, held, result = self._captured[key]
        for own, given in zip(held, inputs, strict=True):
            own.copy_(given)
        graph.replay()
        return result

    def _capture(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Result]:
        held = tuple(torch.empty_like(values) for values in inputs)
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are captured: those that read images go on pinning and copying memory.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = self._function(*held)
        return graph, held, result
