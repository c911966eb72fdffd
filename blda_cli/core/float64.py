"""Double precision on devices that lack it."""

import torch


def float64_device(device: torch.device) -> torch.device:
    """Where to keep float64 values that go with tensors of a device: there, or on the CPU for Apple's GPUs (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device
