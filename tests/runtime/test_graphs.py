import pytest
import torch
from torch import Tensor

from blda_cli.runtime.graphs import GraphedCall

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
