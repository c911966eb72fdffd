"""Choice of the torch device."""

import os
import re

import torch

from blda_cli.core import kernels
from blda_cli.errors import BldaError


def choose_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Args:
        name: ``auto`` (a GPU where there is one: under ``torchrun`` each process its own), ``cpu``, ``cuda``,
            ``cuda:N`` or ``mps``.

    Raises:
        BldaError: there is no such device, or ``BLDA_KERNELS`` in the environment names no kernels.
    """
    try:
        kernels.wanted()
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
