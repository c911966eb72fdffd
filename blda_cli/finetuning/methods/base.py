"""The interface between a training method and the trainer: how target pixels get labels, and losses on their features.

The loss under those labels is apart from it: :mod:`blda_cli.finetuning.methods.objective`, whose logits BLDA corrects.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blda_cli.data.labels import LabelReader
from blda_cli.data.source import ImageSource
from blda_cli.finetuning.data.samples import Batch
from blda_cli.finetuning.methods.objective import Losses, Objective
from blda_cli.finetuning.methods.pseudo_labels import PseudoLabels
from blda_cli.finetuning.networks.student import Outputs
from blda_cli.finetuning.settings import Settings
from blda_cli.finetuning.streaming import stream_share
from blda_cli.runtime.monitor import Monitor
from blda_cli.segmenters.base import LogitBatch
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.options import InferenceOptions


@dataclass(frozen=True)
class MethodContext:
    """The arguments that a method is constructed from.

    Attributes:
        settings: of the run.
        num_classes: C.
        device: of the networks.
        teacher: the EMA of the student.
        objective: the training losses under given labels.
    """

    settings: Settings
    num_classes: int
    device: torch.device
    teacher: nn.Module
    objective: Objective


@dataclass(frozen=True)
class Stage:
    """A part of the training that begins with a pass of the present network over all data.

    Attributes:
        number: from 0.
        resumed: True when resuming after `begin_stage()` completed.
        exported: returns the network, frozen, as it would be exported now for some images.
        classifier: the layer of it whose input are the features; None where there is none.
        source: labelled images.
        source_labels: reads their labels.
        target: images of the target domain.
        folder: the run folder.
        workers: threads that read images.
        monitor: receives the progress.
    """

    number: int
    resumed: bool
    exported: Callable[[Sequence[ImageSource]], NetworkSegmenter]
    classifier: str | None
    source: Sequence[ImageSource]
    source_labels: LabelReader
    target: Sequence[ImageSource]
    folder: Path
    workers: int
    monitor: Monitor

    def stream(
        self,
        what: str,
        segmenter: NetworkSegmenter,
        files: Sequence[ImageSource],
        inference: InferenceOptions | None = None,
        labels: LabelReader | None = None,
    ) -> Iterator[LogitBatch]:
        """See :func:`blda_cli.finetuning.streaming.stream_share`; by default whole images one by one."""
        return stream_share(
            what, segmenter, files, inference or InferenceOptions(workers=self.workers), self.monitor, labels
        )


class TrainingMethod(ABC):
    """How target pixels get their labels.

    Attributes:
        uses_features: labels or losses need the features in front of the classifier.
        unlabelled: it learns from target images as they are, by :meth:`unlabelled_losses`, and labels none.
        only_norms: the weights of norms alone are trained.
        stages: number of parts that the iterations are divided into, each begun by :meth:`begin_stage`; 0: one part,
            without that call.
        preferred: classes that source images are drawn for, in groups, the first first; set when a stage begins.
        network: the network whose outputs on the target crops :meth:`label` needs; None: it needs none.
        sees_wholes: it is run on whole target images, and the crops' logits are cut from theirs; where a batch's images
            differ in size it is run on the crops.
    """

    uses_features = False
    unlabelled = False
    only_norms = False
    stages = 0
    preferred: Sequence[Sequence[int]] = ()
    network: nn.Module | None = None
    sees_wholes = False

    def begin_stage(self, stage: Stage) -> None:  # noqa: B027  # never called where batches are labelled one by one
        """Prepare to label; called in all processes before the first step of a stage and after resuming.

        Raises:
            BldaError: an image cannot be read, or the stage cannot be trained.
            Interrupted: the user asked to stop.
        """

    @abstractmethod
    def label(self, batch: Batch, outputs: Outputs | None) -> PseudoLabels:
        """Labels and weights of a batch's target images.

        Args:
            batch: the crops and where they lie.
            outputs: of :attr:`network` on its target images.
        """

    def unlabelled_losses(self, outputs: Outputs, weights: Tensor) -> Losses:
        """Losses of target images, where the method is :attr:`unlabelled`.

        Args:
            outputs: of the student.
            weights: of the pixels, float32 ``[N, h, w]``.
        """
        raise NotImplementedError

    def feature_losses(self, domain: str, outputs: Outputs, labels: Tensor) -> Losses:  # noqa: ARG002
        """Losses of the student's features, beside those of its logits.

        Args:
            domain: ``"source"`` or ``"target"``.
            outputs: of the student.
            labels: int64 ``[N, h, w]``, at the images' size.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State of the method besides the networks."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # nothing, where nothing is learnt
        """Restore a :meth:`state_dict`."""
