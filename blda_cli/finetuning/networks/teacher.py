"""The teacher: an exponential moving average (EMA) of the student."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Teacher:
    """A copy of a network that follows it.

    It is in evaluation mode, so that dropout of any kind is off. Its batch norms alone may be in training mode: they
    normalise by the batch, as published (Tranheden et al., WACV 2021), so that labels come from the target's
    statistics; the running ones, used once the teacher is exported, follow the student's like the weights.

    Attributes:
        network: the teacher itself.
    """

    def __init__(self, student: nn.Module, momentum: float, *, holds_norms: bool) -> None:
        self.network = copy.deepcopy(student).requires_grad_(False)
        self._momentum = momentum
        trained = [norm for norm in self.network.train().modules() if isinstance(norm, _BatchNorm) and norm.training]
        self.network.eval()
        for norm in [] if holds_norms else trained:
            norm.training = True  # the layer alone: a norm of timm's has activations and dropout as children
            norm.momentum = 0.0

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int) -> None:
        """``θ' ← α θ' + (1 − α) θ``, ``α = min(1 − 1 / (step + 1), momentum)``.

        Args:
            student: the network it is a copy of.
            step: steps the student has made.
        """
        new = max(1 / (step + 1), 1 - self._momentum)
        torch._foreach_lerp_(_tensors(self.network), _tensors(student), new)


def _tensors(network: nn.Module) -> list[Tensor]:
    """Parameters and running statistics."""
    return [*network.parameters(), *(one for one in network.buffers() if one.is_floating_point())]
