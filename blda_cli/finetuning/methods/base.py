"""What a self-training method is to the trainer: how target pixels get labels, and what the losses are."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blda_cli.finetuning.pseudo_labels import PseudoLabels
from blda_cli.finetuning.settings import Settings
from blda_cli.finetuning.student import Outputs

Losses = dict[str, Tensor]
"""Scalars by name; the trainer adds them up."""


@dataclass(frozen=True)
class MethodContext:
    """What a method is made from."""

    settings: Settings
    num_classes: int
    device: torch.device


@dataclass(frozen=True)
class MixedTargets:
    """What the mixed images are trained towards.

    Attributes:
        labels: int64 ``[N, h, w]``.
        weights: float32 ``[N, h, w]``.
        from_source: bool ``[N, h, w]``, pixels whose image and label are the source's.
    """

    labels: Tensor
    weights: Tensor
    from_source: Tensor


class Method(ABC):
    """A self-training method.

    Attributes:
        uses_target: false where only the source is trained on; nothing but ``source_losses`` is called then.
        uses_density: the student gets a density head.
    """

    uses_target = True
    uses_density = False

    @abstractmethod
    def source_losses(self, outputs: Outputs, labels: Tensor) -> Losses:
        """Losses of the source images, labels int64 ``[N, h, w]``."""

    @abstractmethod
    def label_target(self, logits: Tensor) -> PseudoLabels:
        """Labels and weights of target images from the teacher's logits ``[N, C, h, w]``."""

    @abstractmethod
    def mixed_losses(self, outputs: Outputs, targets: MixedTargets) -> Losses:
        """Losses of the mixed images."""

    def metrics(self) -> dict[str, list[float | None]]:
        """Per class, what there is to log besides the losses; None where it is not known."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the method has learnt besides the networks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # nothing, where nothing is learnt
        """Go on from :meth:`state_dict`."""


def or_none(values: Tensor) -> list[float | None]:
    """A list for JSON, which has no NaN."""
    return [value if value == value else None for value in values.tolist()]
