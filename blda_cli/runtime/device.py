"""Choice of the torch device, and work concurrent with its computation."""

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from blda_cli.core import kernels
from blda_cli.errors import BldaError
from blda_cli.runtime import graphs


def choose_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Args:
        name: ``auto`` (a GPU where there is one: under ``torchrun`` each process its own), ``cpu``, ``cuda``,
            ``cuda:N`` or ``mps``.

    Raises:
        BldaError: there is no such device, or ``BLDA_KERNELS`` or ``BLDA_GRAPHS`` in the environment is unknown.
    """
    try:
        kernels.wanted()
        graphs.wanted()
    except ValueError as error:
        raise BldaError(str(error)) from error
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise _missing(name)
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _missing(name) from error
    return device


def _missing(name: str) -> BldaError:
    return BldaError(f"--device {name}: there is no such device here; --device cpu always works")


class SideStream:
    """Work on results while a device goes on computing: a CUDA stream of its own; without effect on other devices.

    Attributes:
        there: whether the device has such streams.
    """

    def __init__(self, device: torch.device) -> None:
        self.there = device.type == "cuda"
        # Of high priority: its few small kernels do not wait for those of a whole network.
        self._stream = torch.cuda.Stream(device, priority=-1) if self.there else None

    def mark(self) -> torch.cuda.Event | None:
        """A point in the device's ordinary stream, after the work submitted so far; None where there is no side
        stream."""
        return torch.cuda.current_stream(self._stream.device).record_event() if self._stream is not None else None

    @contextmanager
    def after(self, mark: torch.cuda.Event | None) -> Iterator[None]:
        """Within ``with``, work in this stream, once the device has reached ``mark``; on leaving, wait until it is
        done."""
        if self._stream is None or mark is None:
            yield
            return
        self._stream.wait_event(mark)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._stream.synchronize()


def free_memory() -> None:
    """Give back what is not used any more: objects that refer to one another, and a GPU's cached memory."""
    gc.collect()
    torch.cuda.empty_cache()
