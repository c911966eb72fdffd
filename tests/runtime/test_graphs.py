from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from blda_cli.runtime import graphs
from blda_cli.runtime.graphs import GraphedCall, GraphMemory, wanted
from tests.recorded_graphs import RecordedMemory, use_recorded_graphs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


class Average:
    """A state changed in place, as by a step of training."""

    def __init__(self, device: str) -> None:
        self.value = torch.zeros(3, device=device)
        self.calls = 0

    def update(self, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.value.copy_(torch.where(labels > 0, 0.5 * self.value + values, self.value))
        return self.value * 2, labels + 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_graph_gives_what_the_function_gives_call_after_call(device: str) -> None:
    plain, average = Average(device), Average(device)
    graphed = GraphedCall(average.update)
    for step in range(8):
        values = torch.arange(3.0, device=device) + step
        labels = torch.tensor([step % 2, 1, 0], device=device)
        doubled, following = plain.update(values, labels)
        got, after = graphed(values, labels)
        assert torch.equal(got, doubled)
        assert torch.equal(after, following)
    assert torch.equal(average.value, plain.value)
    assert average.calls == (8 if device == "cpu" else 3)  # twice as it is, once captured


@pytest.mark.parametrize("device", DEVICES)
def test_shapes_take_turns(device: str) -> None:
    graphed = GraphedCall(lambda values: values + 1)
    for _ in range(5):
        for size in range(1, 8):
            values = torch.full((size,), float(size), device=device)
            assert torch.equal(graphed(values), values + 1)


@pytest.mark.parametrize("device", DEVICES)
def test_no_gradient_flows_through(device: str) -> None:
    graphed = GraphedCall(lambda values: values * 2)
    for _ in range(4):
        assert not graphed(torch.ones(2, device=device, requires_grad=True)).requires_grad


class Fails(RecordedMemory):
    def capture(self, function: Any, *inputs: Tensor) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("fails", [False, True])
def test_what_cannot_be_captured_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    use_recorded_graphs(monkeypatch, "blda_cli.runtime.graphs")
    if fails:
        monkeypatch.setattr("blda_cli.runtime.graphs.GraphMemory", Fails)
    calls = []
    graphed = GraphedCall(lambda values: calls.append(1) or values * 2)  # type: ignore[func-returns-value]
    for step in range(6):
        assert torch.equal(graphed(torch.full((2,), float(step))), torch.full((2,), 2.0 * step))
    assert len(calls) == (6 if fails else 3)


@pytest.mark.parametrize("value", ["", "off", "on"])
def test_the_environment_turns_graphs_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BLDA_GRAPHS", value)
    if value == "on":
        with pytest.raises(ValueError, match="BLDA_GRAPHS=on in the environment: it must be off, or unset"):
            wanted()
    else:
        assert wanted() == (value == "")


class Driver:
    """A stand-in for what PyTorch and CUDA keep of captures, which refuses what they refuse.

    Attributes:
        begins: whether captures begin.
        valid: whether the capture under way is.
        recording: pools that captures allocate from.
        uses: captures and graphs that use a pool.
        released: pools that none uses any longer.
        workspaces: streams for which cuBLAS has memory, and whether it took that in a capture.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begins = self.valid = True
        self.recording: set[int] = set()
        self.uses: Counter[int] = Counter()
        self.released: set[int] = set()
        self.workspaces: dict[int, bool] = {}
        self._current = -1
        pools, streams = count(), count()
        cuda = {
            "CUDAGraph": lambda: DriversGraph(self),
            "Stream": lambda device: next(streams),
            "stream": self._within,
            "device": lambda device: self._within(self._current),
            "current_blas_handle": lambda: self.workspaces.setdefault(self._current, bool(self.recording)),
            "graph_pool_handle": lambda: next(pools),
            "synchronize": lambda: None,
            "mem_get_info": lambda *device: (1, 1),
            "memory_reserved": lambda *device: 0,
            "default_generators": [SimpleNamespace(graphsafe_set_state=id, clone_state=object)],
        }
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda _, pool: self.recording.remove(pool), False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _, pool: self.release(pool), False)
        graphs._capturing_stream.cache_clear()

    @contextmanager
    def _within(self, stream: int) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def release(self, pool: int) -> None:
        assert self.uses[pool] > 0
        self.uses[pool] -= 1
        if not self.uses[pool]:
            self.released.add(pool)


class DriversGraph:
    def __init__(self, driver: Driver) -> None:
        self._driver, self._pool = driver, -1

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        assert pool not in self._driver.released
        self._driver.uses[pool] += 1
        self._driver.recording.add(pool)
        if not self._driver.begins:
            raise RuntimeError("the stream cannot be captured")
        self._pool, self._driver.valid = pool, True

    def capture_end(self) -> None:
        assert self._pool in self._driver.recording
        if not self._driver.valid:
            raise RuntimeError("operation failed due to a previous error during capture")
        self._driver.recording.remove(self._pool)
        self.__class__ = CapturedGraph


class CapturedGraph(DriversGraph):
    def __del__(self) -> None:
        self._driver.release(self._pool)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    yield Driver(monkeypatch)
    graphs._capturing_stream.cache_clear()


@pytest.mark.parametrize("how", ["does not begin", "is valid", "is invalid"])
def test_a_capture_that_failed_keeps_no_memory(driver: Driver, how: str) -> None:
    def fails(values: Tensor) -> Tensor:
        driver.valid = how == "is valid"
        raise RuntimeError("operation not permitted when stream is capturing")

    memory = GraphMemory(torch.device("cuda", 0))
    for _ in range(2):
        driver.begins = how != "does not begin"
        with pytest.raises(RuntimeError):
            memory.capture(fails, torch.zeros(2))
        assert not driver.recording
        assert not driver.uses.total()
    driver.begins = True
    found = [memory.capture(torch.neg, torch.zeros(2)) for _ in range(2)]
    assert driver.uses.total() == len(found)


def test_cublas_takes_memory_for_one_stream_and_not_from_a_graph(driver: Driver) -> None:
    def multiplies(values: Tensor) -> Tensor:
        torch.cuda.current_blas_handle()
        return values

    for _ in range(3):
        GraphMemory(torch.device("cuda", 0)).capture(multiplies, torch.zeros(2))
    assert list(driver.workspaces.values()) == [False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_after_a_capture_that_failed_the_device_works_as_before() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    values, stream = torch.arange(4.0, device=device), torch.cuda.current_stream()
    memory = GraphMemory(device)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            memory.capture(lambda values: values * float(values.sum()), values)  # waits
        assert torch.cuda.current_stream() == stream
        assert torch.equal((values * 2).cpu(), torch.arange(4.0) * 2)
        assert torch.rand(3, device=device).sum() > 0
    # Its memory comes back.
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    with pytest.raises(RuntimeError):
        memory.capture(lambda values: torch.zeros(1 << 26, device=device) + float(values.sum()), values)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 1 << 26
    # Memory that another stream used comes back, which it does not while the allocator believes in a capture.
    other = torch.cuda.Stream()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        large = torch.zeros(1 << 22, device=device)
        large.record_stream(other)
        del large
        torch.cuda.synchronize()
    torch.zeros(1, device=device)
    assert torch.cuda.memory_allocated() - before <= 2 << 24
    graph = GraphMemory(device).capture(lambda values: values + 1, values)
    assert torch.equal(graph.replay(values + 1).cpu(), torch.arange(4.0) + 2)
