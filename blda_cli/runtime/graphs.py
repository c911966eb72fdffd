"""CUDA graphs: many small kernels that are launched together."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

WARM_UP = 2
"""Calls before the work is captured, in which libraries and allocator set up what may not be set up in a capture."""

_MOST_SHAPES = 4
"""Shapes of inputs that are captured; each keeps the memory of its work."""

Result = TypeVar("Result")


def wanted() -> bool:
    """Whether work may be replayed as CUDA graphs: not where ``BLDA_GRAPHS`` in the environment is ``off``.

    Raises:
        ValueError: it is something else.
    """
    value = os.environ.get("BLDA_GRAPHS") or None
    if value not in (None, "off"):
        raise ValueError(f"BLDA_GRAPHS={value} in the environment: it must be off, or unset")
    return value is None


def available(values: Tensor) -> bool:
    """Whether work on a tensor may be captured: it is on CUDA, no capture is under way, and graphs are wanted."""
    return values.is_cuda and wanted() and not torch.cuda.is_current_stream_capturing()


def make_room(device: torch.device) -> None:
    """Give memory that nothing uses back to a device, where that has less than is kept for later use."""
    if torch.cuda.mem_get_info(device)[0] < torch.cuda.memory_reserved(device):
        torch.cuda.empty_cache()


@dataclass
class Graph(Generic[Result]):
    """A function's work on the device, captured.

    Attributes:
        inputs: what it works on; `replay` copies its arguments there.
        result: what the function returned; each replay overwrites its tensors.
    """

    inputs: tuple[Tensor, ...]
    result: Result
    _graph: torch.cuda.CUDAGraph

    def replay(self, *inputs: Tensor) -> Result:
        """Do the work on other inputs of the same shapes, in the current stream.

        Returns:
            `result`.
        """
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self.result


@cache
def _capturing_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that work on a device is captured in: always the same, as cuBLAS keeps memory for every stream."""
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda.current_blas_handle()  # takes that memory now, where a capture would keep its own for it
    return stream


class GraphMemory:
    """Memory on a CUDA device that captured work uses, and graphs that are replayed in turns share.

    Args:
        device: with an index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _capturing_stream(device)  # the allocator shares memory within a stream alone
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[..., Result], *inputs: Tensor) -> Graph[Result]:
        """Capture what a function does on the device; nothing is computed.

        Args:
            function: what is called, once, on copies of the inputs.
            inputs: its arguments.

        Raises:
            MemoryError: no more memory is left than the work takes.
            Exception: the function failed or did what cannot be captured. The device can be used as before.
        """
        graph = torch.cuda.CUDAGraph()
        held = tuple(values.clone() for values in inputs)
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            make_room(self._device)
            before = torch.cuda.memory_reserved()
            with torch.cuda.stream(self._stream):
                try:
                    # Only this thread's calls are captured: others may go on copying memory.
                    graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                    result = function(*held)
                    graph.capture_end()
                except BaseException:
                    self._abandon(graph)
                    raise
            if torch.cuda.mem_get_info()[0] < torch.cuda.memory_reserved() - before:
                raise MemoryError("a CUDA graph would take more memory than it leaves")
        return Graph(held, result, graph)

    def wait(self) -> None:
        """Wait until no graph is at work."""
        torch.cuda.synchronize(self._device)

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that failed."""
        with suppress(Exception):  # it is invalid, or has ended
            graph.capture_end()
        # Of a capture that is invalid the allocator would not learn the end, and go on keeping for it all memory that
        # two streams used, and the pool.
        names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # the second in PyTorch 2.6
        end = next((getattr(torch._C, name) for name in names if hasattr(torch._C, name)), None)
        with suppress(Exception):  # it has, and the graph releases the pool
            if end is not None:
                end(self._device.index, self._pool)
                torch._C._cuda_releasePool(self._device.index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()  # one that was released is refused
        with suppress(Exception):  # which would refuse to draw numbers outside of the capture
            generator = torch.cuda.default_generators[self._device.index]
            generator.graphsafe_set_state(generator.clone_state())


class GraphedCall(Generic[Result]):
    """Calls a function of tensors; on CUDA, from the third call with such shapes on, by replaying a CUDA graph.

    The function's work must be the same in every call: it does not wait for the device, keeps its state in tensors
    that it changes in place, and draws no random numbers. No gradients flow through it. Where processes share their
    results, or a capture failed, it is called as it is.

    Args:
        function: what is called.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function = function
        self._calls: dict[tuple[object, ...], int] = {}
        self._captured: dict[tuple[object, ...], Graph[Result]] = {}
        self._failed = False

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Result:
        """Call the function.

        Returns:
            What it returns; on CUDA the next call overwrites its tensors.
        """
        if self._failed or not available(inputs[0]) or dist.is_initialized():
            return self._function(*inputs)
        key = tuple((values.shape, values.dtype) for values in inputs)
        if key not in self._captured:
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            if calls <= WARM_UP or len(self._captured) == _MOST_SHAPES:
                return self._function(*inputs)
            try:
                self._captured[key] = GraphMemory(inputs[0].device).capture(self._function, *inputs)
            except Exception:  # out of memory, or what a driver says
                self._failed = True
                return self._function(*inputs)
        return self._captured[key].replay(*inputs)
