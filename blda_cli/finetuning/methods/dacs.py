"""DACS (Tranheden et al., WACV 2021): labels by the teacher, batch by batch, weighted by confidence."""

from blda_cli.finetuning.data.samples import Batch
from blda_cli.finetuning.methods.base import MethodContext, TrainingMethod
from blda_cli.finetuning.methods.pseudo_labels import PseudoLabels, confidence_weighted
from blda_cli.finetuning.networks.student import Outputs


class Dacs(TrainingMethod):
    """Online self-training; with BLDA's correction of the cross-entropy it is BLDA."""

    def __init__(self, context: MethodContext) -> None:
        self.network = context.teacher
        self.sees_wholes = context.settings.host.whole_images
        self._objective = context.objective
        self._confidence = context.settings.host.confidence

    def label(self, batch: Batch, outputs: Outputs | None) -> PseudoLabels:  # noqa: ARG002
        """The teacher's argmax, or that of its corrected logits, weighted by the confident share."""
        assert outputs is not None
        labels = self._objective.target_labels(outputs.logits)
        return confidence_weighted(outputs.logits, self._confidence, labels)
