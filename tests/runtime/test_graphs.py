from typing import Any

import pytest
import torch
from torch import Tensor

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
