"""Source only: supervised training, the baseline of every adaptation."""

from blda_cli.finetuning.data.samples import Batch
from blda_cli.finetuning.methods.base import MethodContext, TrainingMethod
from blda_cli.finetuning.methods.pseudo_labels import PseudoLabels
from blda_cli.finetuning.networks.student import Outputs


class SourceOnly(TrainingMethod):
    """The target is not used."""

    def __init__(self, context: MethodContext) -> None:
        pass

    def label(self, batch: Batch, outputs: Outputs | None) -> PseudoLabels:
        """Never called."""
        raise NotImplementedError
