"""The teacher: an exponential moving average (EMA) of the student."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from blda_cli.segmenters.norms import hold_norms


class Teacher:
    """A copy of a network that follows it.

    Its dropout and stochastic depth are off. Its batch norms keep their averages, or normalise by the batch, as
    published (Tranheden et al., WACV 2021): labels then come from the target's statistics, and the running ones, which
    count once the teacher is exported, follow the student's like all else.

    Attributes:
        network: the teacher itself.
    """

    def __init__(self, student: nn.Module, momentum: float, *, holds_norms: bool) -> None:
        self.network = copy.deepcopy(student).requires_grad_(False)
        self._momentum = momentum
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, _DropoutNd) or "droppath" in type(module).__name__.lower().replace("_", ""):
                module.eval()
            elif isinstance(module, _BatchNorm):
                module.momentum = 0.0
        if holds_norms:
            hold_norms(self.network)

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
