"""Where tensors live."""

import os

import torch

from blda_cli.errors import BldaError


def choose_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Args:
        name: ``auto`` (a GPU where there is one: under ``torchrun`` each process its own), ``cpu``, ``cuda``,
            ``cuda:N`` or ``mps``.

    Raises:
        BldaError: there is no such device.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BldaError(f"--device {name}: there is no such device here; --device cpu always works") from error
    return device
