"""Source only: supervised training, the baseline of every adaptation."""

import torch.nn.functional as F
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.finetuning.methods.base import Losses, Method, MethodContext, MixedTargets
from blda_cli.finetuning.pseudo_labels import PseudoLabels
from blda_cli.finetuning.student import Outputs


class SourceOnly(Method):
    """Cross-entropy on the source; the target is not looked at."""

    uses_target = False

    def __init__(self, context: MethodContext) -> None:
        pass

    def source_losses(self, outputs: Outputs, labels: Tensor) -> Losses:
        """Mean over all pixels, those without a label counted as 0, so that processes' losses average exactly."""
        return {"source": cross_entropy(outputs.logits, labels).mean()}

    def label_target(self, logits: Tensor) -> PseudoLabels:
        """Never asked for."""
        raise NotImplementedError

    def mixed_losses(self, outputs: Outputs, targets: MixedTargets) -> Losses:
        """Never asked for."""
        raise NotImplementedError


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of every pixel, float32 ``[N, h, w]``; 0 where there is no label."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
