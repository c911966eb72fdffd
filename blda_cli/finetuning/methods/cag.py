"""CAG-UDA (Zhang et al., NeurIPS 2019): stages of labels by the distance to centroids."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.centroids import (
    CentroidSums,
    active_labels,
    at_features,
    default_margin,
    discriminative_loss,
    distance_loss,
)
from blda_cli.core.float64 import float64_device
from blda_cli.errors import BldaError
from blda_cli.files import replacing
from blda_cli.finetuning.data.samples import Batch
from blda_cli.finetuning.methods.base import MethodContext, Stage, TrainingMethod
from blda_cli.finetuning.methods.objective import Losses
from blda_cli.finetuning.methods.pseudo_labels import PseudoLabels
from blda_cli.finetuning.networks.student import Outputs, features_before
from blda_cli.runtime.process_group import all_sum
from blda_cli.runtime.shards import current_shard
from blda_cli.segmenters.network import NetworkSegmenter


class Cag(TrainingMethod):
    """Each stage freezes the network as it is then; its centroids and its labels are the stage's."""

    uses_features = True

    def __init__(self, context: MethodContext) -> None:
        self.settings = context.settings.cag
        self.stages = context.settings.rounds.rounds
        self.num_classes = context.num_classes
        self._device = context.device
        self._centroids = torch.zeros(0, 0, device=context.device)
        self._margin = 0.0
        self._frozen: dict[str, Tensor] = {}

    def begin_stage(self, stage: Stage) -> None:
        """Freeze the labeller, compute the centroids on the source, and count the target's active features."""
        segmenter = stage.exported(stage.target)
        self.network = segmenter.module
        if stage.resumed:
            self.network.load_state_dict(self._frozen)
            return
        self._frozen = dict(self.network.state_dict())
        sums = self._sum_features(stage)
        self._centroids = sums.centroids().to(self._device)
        names = segmenter.classes.names
        missing = [name for name, pixels in zip(names, sums.pixels.tolist(), strict=True) if pixels == 0]
        if self.num_classes - len(missing) < 2:
            raise BldaError(
                f"stage {stage.number + 1}: the network classifies pixels of fewer than two classes of the source "
                "rightly, so there are no centroids to tell apart: train it on the source first (--method source)"
            )
        self._margin = self.settings.margin if self.settings.margin is not None else default_margin(self._centroids)
        active, pixels = self._count_active(stage, segmenter)
        if not current_shard().first:
            return
        with replacing(stage.folder / "centroids" / f"stage-{stage.number + 1}.npz") as path, path.open("wb") as stream:
            np.savez(
                stream,
                centroids=self._centroids.cpu().numpy(),
                classes=np.array(names),
                source_pixels=sums.pixels.cpu().numpy(),
                margin=self._margin,
                active_target_pixels=active.cpu().numpy(),
            )
        share = float(active.sum()) / pixels
        line = f"stage {stage.number + 1}: {share:.1%} of the target's features are active (margin {self._margin:.3g})"
        if missing:
            line += f"; no centroid, as no source pixel is right: {', '.join(missing)}"
        idle = [name for name, count in zip(names, active.tolist(), strict=True) if not count and name not in missing]
        if idle:
            line += f"; no active pixel: {', '.join(idle)}"
        if not share:
            line += "; it learns the target from the probabilities alone: a smaller margin makes pixels active"
        stage.monitor.say(line)

    def label(self, batch: Batch, outputs: Outputs | None) -> PseudoLabels:
        """Two labellings of every image, whose cross-entropies are averaged: by the centroids and by
        probability."""
        assert outputs is not None
        assert outputs.features is not None
        size = batch.target_images.shape[2:]
        near = active_labels(outputs.features, self._centroids, self._margin)
        by_centroids = (
            nn.functional.interpolate(near.unsqueeze(1).float(), size, mode="nearest-exact").squeeze(1).long()
        )
        probability, by_probability = outputs.logits.float().softmax(dim=1).max(dim=1)
        by_probability = by_probability.masked_fill(probability < self.settings.confidence, IGNORE_INDEX)
        labels = torch.cat([by_centroids, by_probability])
        kept = labels != IGNORE_INDEX
        return PseudoLabels(labels, kept.float(), kept)

    def feature_losses(self, domain: str, outputs: Outputs, labels: Tensor) -> Losses:
        """Distance and discriminative losses; on the target under the centroids' labels, which come first."""
        assert outputs.features is not None
        near = at_features(labels[: len(outputs.features)], outputs.features)
        discriminative = discriminative_loss(outputs.features, near, self._centroids, self._margin)
        return {
            f"{domain}_distance": self.settings.distance_weight
            * distance_loss(outputs.features, near, self._centroids),
            f"{domain}_discriminative": self.settings.discriminative_weight * discriminative,
        }

    def state_dict(self) -> dict[str, Any]:
        """The stage's labeller and centroids."""
        known = self._centroids.isfinite().all(dim=1)
        centroids = self._centroids.masked_fill(~known[:, None], 0.0)  # checkpoints hold finite numbers
        return {"centroids": centroids, "known": known, "margin": self._margin, "labeller": self._frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`TrainingMethod`."""
        centroids, known = state["centroids"], state["known"]
        if centroids.numel() and (centroids.dim() != 2 or len(centroids) != self.num_classes):
            raise ValueError(f"centroids of shape {list(centroids.shape)} are not those of {self.num_classes} classes")
        self._centroids = centroids.masked_fill(~known[:, None], torch.inf).to(self._device)
        self._margin = state["margin"]
        self._frozen = state["labeller"]

    def _sum_features(self, stage: Stage) -> CentroidSums:
        """Over the source, by the network with the norms of those images."""
        segmenter = stage.exported(stage.source)
        sums: CentroidSums | None = None
        assert stage.classifier is not None
        what = f"stage {stage.number + 1}: centroids"
        with features_before(segmenter.module, stage.classifier) as seen:
            for batch in stage.stream(what, segmenter, stage.source, labels=stage.source_labels):
                assert batch.labels is not None
                features = seen.pop()
                if sums is None:
                    sums = CentroidSums(self.num_classes, features.shape[1], float64_device(self._device))
                predicted = at_features(batch.logits.argmax(dim=1), features)
                sums.update(features, at_features(batch.labels, features), predicted)
        assert sums is not None
        all_sum(sums.sums)
        all_sum(sums.pixels)
        return sums

    def _count_active(self, stage: Stage, segmenter: NetworkSegmenter) -> tuple[Tensor, int]:
        """Active features of each class on the target, ``[C]``, and all of them."""
        active = torch.zeros(self.num_classes + 1, dtype=torch.float64, device=float64_device(self._device))
        assert stage.classifier is not None
        with features_before(segmenter.module, stage.classifier) as seen:
            for batch in stage.stream(f"stage {stage.number + 1}: active pixels", segmenter, stage.target):
                features = seen.pop()
                labels = active_labels(features, self._centroids, self._margin)
                if batch.valid is not None:
                    labels = labels[at_features(batch.valid, features)]
                index = torch.where(labels == IGNORE_INDEX, self.num_classes, labels).flatten()
                active += torch.bincount(index, minlength=self.num_classes + 1).to(active.device)
        all_sum(active)
        return active[:-1], int(active.sum())
