"""Tent (Wang et al., ICLR 2021): the entropy of the predictions is minimised over the weights of the norms alone."""

from torch import Tensor

from blda_cli.finetuning.data.samples import Batch
from blda_cli.finetuning.methods.base import MethodContext, TrainingMethod
from blda_cli.finetuning.methods.objective import Losses
from blda_cli.finetuning.methods.pseudo_labels import PseudoLabels
from blda_cli.finetuning.networks.student import Outputs


class Tent(TrainingMethod):
    """No labels, no source, no teacher: a baseline for training without source images."""

    unlabelled = True
    only_norms = True

    def __init__(self, context: MethodContext) -> None:
        pass

    def label(self, batch: Batch, outputs: Outputs | None) -> PseudoLabels:
        """Never called."""
        raise NotImplementedError

    def unlabelled_losses(self, outputs: Outputs, weights: Tensor) -> Losses:
        """Mean entropy of the pixels' predictions, in nats."""
        scores: Tensor = outputs.logits.float().log_softmax(dim=1)
        return {"entropy": -((scores.exp() * scores).sum(dim=1) * weights).sum() / weights.sum().clamp(min=1)}
