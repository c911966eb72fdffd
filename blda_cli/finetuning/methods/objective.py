"""Training losses on source and target images; subclasses may correct the logits."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from blda_cli.core.losses import cross_entropy
from blda_cli.finetuning.networks.student import Outputs
from blda_cli.finetuning.settings import Settings

Losses = dict[str, Tensor]
"""Scalars by name; the trainer adds them up."""


@dataclass(frozen=True)
class MixedTargets:
    """Labels and weights of the mixed images.

    Attributes:
        labels: int64 ``[N, h, w]``.
        weights: float32 ``[N, h, w]``.
        from_source: bool ``[N, h, w]``, pixels whose image and label are the source's.
    """

    labels: Tensor
    weights: Tensor
    from_source: Tensor


class Objective:
    """Plain cross-entropy; subclasses correct it.

    Losses are means over all pixels, those without a label counted as 0, so that processes' losses average exactly.

    Attributes:
        uses_density: the student gets a density head.
    """

    uses_density = False

    @classmethod
    def of(cls, settings: Settings, num_classes: int, device: torch.device) -> Self:  # noqa: ARG003  # for corrections
        """The objective of a run."""
        return cls()

    def source_losses(self, outputs: Outputs, labels: Tensor) -> Losses:
        """Losses of the source images, labels int64 ``[N, h, w]``."""
        return {"source": cross_entropy(outputs.logits, labels).mean()}

    def mixed_losses(self, outputs: Outputs, targets: MixedTargets) -> Losses:
        """Losses of the mixed images."""
        return {"mixed": self.masked_loss(outputs, targets.labels, targets.weights)}

    def masked_loss(self, outputs: Outputs, labels: Tensor, weights: Tensor) -> Tensor:
        """Loss of masked target images, a scalar.

        Args:
            outputs: of the masked images.
            labels: of the whole images, int64 ``[N, h, w]``.
            weights: float32 ``[N, h, w]``.
        """
        loss: Tensor = (weights * cross_entropy(outputs.logits, labels)).mean()
        return loss

    def target_labels(self, logits: Tensor) -> Tensor | None:  # noqa: ARG002
        """Labels int64 ``[N, h, w]`` from the teacher's logits ``[N, C, h, w]``, where they are not the argmax."""
        return None

    def metrics(self) -> dict[str, list[float]]:
        """Metrics per class to log besides the losses; NaN where unknown."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State of the correction."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`."""
