"""The teacher: a moving average of the student."""

import copy

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd


class Teacher:
    """A copy of a network that follows it.

    Its dropout and stochastic depth are off. Its batch norms stay in training mode, as published (Tranheden et al.,
    WACV 2021): they normalise by, and their running statistics become, the target's.

    Attributes:
        network: the teacher itself.
    """

    def __init__(self, student: nn.Module, momentum: float) -> None:
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.momentum = momentum
        self.label_mode()

    def label_mode(self) -> None:
        """Make it ready to label batches."""
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, _DropoutNd) or "droppath" in type(module).__name__.lower().replace("_", ""):
                module.eval()

    @torch.no_grad()
    def follow(self, student: nn.Module, step: int) -> None:
        """``θ' ← α θ' + (1 − α) θ``, ``α = min(1 − 1 / (step + 1), momentum)``.

        Args:
            student: the network it is a copy of.
            step: steps the student has made.
        """
        keep = min(1 - 1 / (step + 1), self.momentum)
        torch._foreach_lerp_(list(self.network.parameters()), list(student.parameters()), 1 - keep)
