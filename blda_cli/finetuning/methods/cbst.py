"""ST, CBST and CBST-SP (Zou et al., ECCV 2018): rounds of labelling the whole target, then training on the labels."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.float64 import float64_device
from blda_cli.core.self_training import ConfidenceHistogram, mining_order, select_labels
from blda_cli.core.spatial_priors import PositionCounts, at_size
from blda_cli.files import replacing, to_json
from blda_cli.finetuning.data.samples import Batch
from blda_cli.finetuning.data.stored_labels import StoredLabels
from blda_cli.finetuning.methods.base import MethodContext, Stage, TrainingMethod
from blda_cli.finetuning.methods.pseudo_labels import PseudoLabels
from blda_cli.finetuning.networks.student import Outputs
from blda_cli.runtime.process_group import all_sum
from blda_cli.runtime.shards import current_shard
from blda_cli.segmenters.options import InferenceOptions


class Cbst(TrainingMethod):
    """Labels are the most confident predictions of the network as it was when the round began.

    ST ranks all pixels together; CBST each class by itself, so that rare and hard classes keep their share, and
    draws half of the source images for the classes that are predicted least; CBST-SP weighs the probabilities with
    how often a class lies at a place in the source labels.
    """

    def __init__(self, context: MethodContext) -> None:
        self.settings = context.settings.rounds
        self.stages = self.settings.rounds
        method = context.settings.training.method
        self.balanced, self.spatial = method != "st", method == "cbst-sp"
        self.num_classes = context.num_classes
        self._device = context.device
        self._priors: Tensor | None = None
        self._stored: StoredLabels | None = None

    def begin_stage(self, stage: Stage) -> None:
        """Label the whole target: one pass for the thresholds, one for the labels."""
        self._stored = StoredLabels(stage.folder / "pseudo_labels" / f"round-{stage.number + 1}", self.num_classes)
        if stage.resumed:
            return
        if self.spatial and self._priors is None:
            self._priors = self._count_priors(stage)
        settings = self.settings
        portion = min(settings.portion + stage.number * settings.portion_step, settings.portion_limit)
        inference = InferenceOptions(workers=stage.workers, scales=settings.label_scales, flip=settings.label_flip)
        segmenter = stage.exported(stage.target)
        stream = partial(stage.stream, segmenter=segmenter, files=stage.target, inference=inference)

        histogram = ConfidenceHistogram(self.num_classes, float64_device(self._device))
        for batch in stream(f"round {stage.number + 1}: ranking"):
            histogram.update(self._scores(batch.logits), batch.valid)
        all_sum(histogram.counts)
        thresholds = histogram.class_thresholds(portion) if self.balanced else histogram.threshold(portion)

        kept = torch.zeros(self.num_classes, dtype=torch.float64, device=histogram.counts.device)
        for batch in stream(f"round {stage.number + 1}: labelling"):
            labels = batch.known(select_labels(self._scores(batch.logits), thresholds))
            kept += torch.bincount(labels[labels != IGNORE_INDEX], minlength=self.num_classes).to(kept.device)
            for file, one in zip(batch.files, labels, strict=True):
                self._stored.write(file, one, segmenter.classes)
        all_sum(kept)
        shares = (histogram.pixels() / histogram.pixels().sum()).cpu()
        if self.balanced:
            self.preferred = mining_order(shares)
        self._tell(stage, segmenter.classes.names, portion, thresholds, shares, kept)

    def label(self, batch: Batch, outputs: Outputs | None) -> PseudoLabels:  # noqa: ARG002
        """Those of the round, cut like the crops; ignored pixels have no weight."""
        assert self._stored is not None
        labels = self._stored.cut(batch.target_crops).to(self._device)
        kept = labels != IGNORE_INDEX
        return PseudoLabels(labels, kept.float(), kept)

    def state_dict(self) -> dict[str, Any]:
        """State from the beginning of a round, besides the labels on disk."""
        return {"preferred": self.preferred, "priors": self._priors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`TrainingMethod`."""
        self.preferred = state["preferred"]
        self._priors = None if state["priors"] is None else state["priors"].to(self._device)

    def _scores(self, logits: Tensor) -> Tensor:
        """Logs of ``p_n(c)``, or of ``q_n(c) p_n(c)``."""
        scores = torch.log_softmax(logits.float(), dim=1)
        if self._priors is not None:
            scores += at_size(self._priors, (logits.shape[2], logits.shape[3])).log()
        return scores

    def _count_priors(self, stage: Stage) -> Tensor:
        positions = PositionCounts(self.num_classes)
        mine = current_shard().of(stage.source)
        stage.monitor.start("reading labels for spatial priors", len(mine))
        for file in mine:
            positions.update(torch.from_numpy(np.ascontiguousarray(stage.source_labels(file))).unsqueeze(0))
            stage.monitor.advance(1)
        positions.counts = all_sum(positions.counts.to(self._device)).cpu()
        return positions.priors().to(self._device)

    def _tell(
        self, stage: Stage, names: tuple[str, ...], portion: float, thresholds: Tensor, shares: Tensor, kept: Tensor
    ) -> None:
        """Write a record of the round beside its labels, and report it to the user."""
        if not current_shard().first:
            return
        assert self._stored is not None
        record = {
            "portion": portion,
            "threshold": dict(zip(names, torch.exp(-thresholds).tolist(), strict=True)),
            "predicted_share": dict(zip(names, shares.tolist(), strict=True)),
            "labelled_pixels": dict(zip(names, map(int, kept.tolist()), strict=True)),
            "preferred_in_the_source": [[names[one] for one in group] for group in self.preferred],
        }
        with replacing(self._stored.folder / "round.json") as temporary:
            temporary.write_text(to_json(record), encoding="utf-8")
        never = [name for name, share in zip(names, shares.tolist(), strict=True) if share == 0]
        if never:
            stage.monitor.say(f"round {stage.number + 1}: never predicted, so never labelled: {', '.join(never)}")
        if self._priors is not None and stage.number == 0:
            unknown = [names[c] for c, prior in enumerate(self._priors) if not bool((prior > 0).any())]
            if unknown:
                stage.monitor.say(
                    f"the source labels never hold {', '.join(unknown)}: their spatial prior is 0 everywhere"
                )
