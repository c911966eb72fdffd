"""DACS (Tranheden et al., WACV 2021): cross-entropy on the source and on mixed images, weighted by confidence."""

from torch import Tensor

from blda_cli.finetuning.methods.base import Losses, Method, MethodContext, MixedTargets
from blda_cli.finetuning.methods.source import cross_entropy
from blda_cli.finetuning.pseudo_labels import PseudoLabels, confidence_weighted
from blda_cli.finetuning.student import Outputs


class Dacs(Method):
    """The self-training that the other methods build on."""

    def __init__(self, context: MethodContext) -> None:
        self.confidence = context.settings.host.confidence

    def source_losses(self, outputs: Outputs, labels: Tensor) -> Losses:
        """Cross-entropy."""
        return {"source": cross_entropy(outputs.logits, labels).mean()}

    def label_target(self, logits: Tensor) -> PseudoLabels:
        """The teacher's argmax, weighted by the image's share of confident pixels."""
        return confidence_weighted(logits, self.confidence)

    def mixed_losses(self, outputs: Outputs, targets: MixedTargets) -> Losses:
        """Weighted cross-entropy."""
        return {"mixed": (targets.weights * cross_entropy(outputs.logits, targets.labels)).mean()}
