"""The teacher: a moving average of the student."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


class Teacher:
    """A copy of a network that follows it.

    Its dropout and stochastic depth are off. Where it labels target images its batch norms stay in training mode, as
    published (Tranheden et al., WACV 2021): they normalise by the batch, and their running statistics become those
    of the target, averaged over as many steps as the weights.

    Attributes:
        network: the teacher itself.
        labels: whether it is run on the target; if not, its running statistics follow the student's.
    """

    def __init__(self, student: nn.Module, momentum: float, *, labels: bool = True) -> None:
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.labels = labels
        self._momentum = momentum
        self.network.train()
        self._norms = []
        for module in self.network.modules():
            if isinstance(module, _DropoutNd) or "droppath" in type(module).__name__.lower().replace("_", ""):
                module.eval()
            elif isinstance(module, _BatchNorm):
                self._norms.append(module)

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int) -> None:
        """``θ' ← α θ' + (1 − α) θ``, ``α = min(1 − 1 / (step + 1), momentum)``.

        Args:
            student: the network it is a copy of.
            step: steps the student has made.
        """
        new = max(1 / (step + 1), 1 - self._momentum)
        pairs: list[tuple[Tensor, Tensor]] = list(zip(self.network.parameters(), student.parameters(), strict=True))
        if self.labels:
            for norm in self._norms:
                norm.momentum = new
        else:
            buffers = zip(self.network.buffers(), student.buffers(), strict=True)
            pairs += [pair for pair in buffers if pair[0].is_floating_point()]
        if pairs:
            own, other = zip(*pairs, strict=True)
            torch._foreach_lerp_(own, other, new)
