"""How often a batch makes the processor wait for a GPU, which meanwhile is given nothing to do."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from blda_cli.core.corrections import OffsetCorrection
from blda_cli.core.counting import count_values
from blda_cli.core.kernels import argmax
from blda_cli.core.statistics import LogitStatistics
from blda_cli.segmenters.outputs import check_range
from tests.waiting_device import WaitingDevice
from tests.without_float64 import DEVICE

C = 5


def batches(labelled: bool) -> list[tuple[Tensor, Tensor | None]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 2, C, 60, 80, generator=generator)
    labels = torch.randint(-1, C + 1, (12, 2, 60, 80), generator=generator)
    return [(one, of_one if labelled else None) for one, of_one in zip(logits, labels, strict=True)]


@pytest.mark.parametrize(("labelled", "most"), [(False, 3), (True, 5)])
def test_a_batch_is_waited_for_a_few_times(monkeypatch: pytest.MonkeyPatch, labelled: bool, most: int) -> None:
    """For its range, for how many pixels may be sampled, for these; and for what counts labels."""
    monkeypatch.setattr("blda_cli.core.counting._bincount_waits", lambda values: values.device.type != "cpu")
    sources = ("pseudo", "ground_truth") if labelled else ("pseudo",)
    plain = LogitStatistics(C, sources, bins=64)
    plain._sampled.capacity = 300
    seen = []
    with WaitingDevice() as device:
        counted = LogitStatistics(C, sources, bins=64, device=DEVICE)
        counted._sampled.capacity = 300
        for number, (logits, labels) in enumerate(batches(labelled)):
            there, labels_there = logits.to(DEVICE), None if labels is None else labels.to(DEVICE)
            device.waits.clear()
            names = [f"{number} {index}" for index in range(2)]
            counted.update(there, labels_there, names, largest=check_range(there, names))
            seen.append(sum(device.waits.values()))
        sample = counted.sample
    for number, (logits, labels) in enumerate(batches(labelled)):
        plain.update(logits, labels, [f"{number} {index}" for index in range(2)])
    assert min(seen) <= most
    assert max(seen[1:]) <= most + 1  # where the sample has changed, so that its ceilings are brought to the device
    for one in fields(sample):
        found, expected = getattr(sample, one.name), getattr(plain.sample, one.name)
        assert torch.equal(torch.as_tensor(found).as_subclass(Tensor), torch.as_tensor(expected)), one.name
    if counted.confusion is not None and plain.confusion is not None:
        assert torch.equal(counted.confusion.counts.as_subclass(Tensor), plain.confusion.counts)
    if counted.positions is not None and plain.positions is not None:
        assert torch.equal(counted.positions.counts.as_subclass(Tensor), plain.positions.counts)


def test_a_batch_is_aligned_without_waiting_for_it() -> None:
    logits = batches(False)[0][0]
    with WaitingDevice() as device:
        there, correction = logits.to(DEVICE), OffsetCorrection(torch.zeros(C).to(DEVICE))
        device.waits.clear()
        ids = torch.stack([argmax(there).long(), correction.predict(there)], dim=1)
        assert not device.waits
        assert torch.equal(ids.cpu()[:, 0], logits.argmax(dim=1))


@pytest.mark.parametrize("number", [1, 2, 19, 361, 300 * 300 + 1])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_numbers_are_counted_without_waiting(monkeypatch: pytest.MonkeyPatch, number: int, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    values = torch.cat([torch.arange(number), torch.randint(0, number, (1000,)), torch.tensor([number - 1] * 5)])
    expected = torch.bincount(values, minlength=number)
    monkeypatch.setattr("blda_cli.core.counting._bincount_waits", lambda values: True)
    assert torch.equal(count_values(values.to(device), number).cpu(), expected)
    if number <= 256:
        assert torch.equal(count_values(values.to(torch.uint8).to(device), number).cpu(), expected)
