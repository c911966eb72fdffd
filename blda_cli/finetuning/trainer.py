"""The training step that all methods share, and the state to resume it."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from blda_cli.core import IGNORE_INDEX
from blda_cli.errors import BldaError
from blda_cli.finetuning.checkpoint import check_alike, check_optimizer, check_tensors
from blda_cli.finetuning.data.augmentation import augment
from blda_cli.finetuning.data.mixing import paste
from blda_cli.finetuning.data.samples import Batch
from blda_cli.finetuning.methods.base import MethodContext, TrainingMethod
from blda_cli.finetuning.methods.objective import Losses, MixedTargets, Objective
from blda_cli.finetuning.networks.feature_distance import FeatureDistance
from blda_cli.finetuning.networks.norms import synchronised
from blda_cli.finetuning.networks.student import Outputs, Student, is_norm, run_labelling, run_student
from blda_cli.finetuning.networks.teacher import Teacher
from blda_cli.finetuning.settings import Settings
from blda_cli.runtime.shards import current_shard
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.norms import hold_norms


@dataclass
class StepReport:
    """Results of a step, still on the device.

    Attributes:
        losses: scalars by name, averaged over the batches of the step.
        labelled: pixels of each pseudo-label, ``[C]``.
        kept: of those the confident ones, ``[C]``.
        mixed: the last batch's mixed images ``[N, 3, h, w]`` and labels; None where the target is not used.
    """

    losses: Losses
    labelled: Tensor
    kept: Tensor
    mixed: tuple[Tensor, Tensor] | None = None


class Trainer:
    """Networks, method and optimiser.

    Attributes:
        segmenter: prepares images and reads logits; its network is the student's.
        student: the network in training.
        teacher: its EMA.
        method: how target pixels get labels.
        objective: the training losses under given labels.
        step: optimiser steps made.
        stage: the last that was begun; -1 before the first.
    """

    def __init__(self, segmenter: NetworkSegmenter, settings: Settings, *, holds_norms: bool = False) -> None:
        """Set up from the segmenter's present weights.

        Args:
            segmenter: has the network.
            settings: resolved.
            holds_norms: freeze the batch norms' statistics instead of normalising by each batch.

        Raises:
            BldaError: the network cannot be trained as asked.
        """
        training = settings.training
        self.segmenter = segmenter
        self.settings = settings
        self.step = 0
        self.stage = -1
        self._device = segmenter.device
        if not any(one.requires_grad for one in segmenter.module.parameters()):
            raise BldaError("the network has no parameter that requires gradients, so there is nothing to train")
        self._classes = len(segmenter.classes)
        self.objective: Objective = resolve_name(settings.correction.make).of(settings, self._classes, self._device)
        network = segmenter.module
        self.teacher = Teacher(network, settings.host.teacher_momentum, holds_norms=holds_norms)
        self.method: TrainingMethod = resolve_name(settings.method.make)(
            MethodContext(settings, self._classes, self._device, self.teacher.network, self.objective)
        )
        if current_shard().world > 1 and self._device.type == "cuda" and not holds_norms:
            segmenter.network = synchronised(network)
        torch.manual_seed(training.seed)  # for the density head's first weights
        self.student = Student(
            segmenter,
            density=self.objective.uses_density,
            feature_layer=training.feature_layer,
            crop=training.crop,
            features=self.method.uses_features,
        )
        if self.method.only_norms:
            _train_norms_alone(self.student, training.method)
        self._feature_distance: FeatureDistance | None = None
        if settings.host.feature_distance > 0:
            self._feature_distance = FeatureDistance(
                self.teacher.network,
                self.student.encoder,
                segmenter.classes.names,
                settings.host.thing_classes,
                segmenter.norm_weight,
            )
        if training.activation_checkpointing:
            _checkpoint_activations(self.student.network)
        self.student.train()
        if holds_norms:
            hold_norms(self.student.network)
        self._norms = InstanceNorms(self.student.network, segmenter.norm_weight)
        self._norms.__enter__()  # for good: checkpointed activations are computed again in the backward pass
        self._forward: Any = self.student
        if current_shard().world > 1:
            self._forward = DistributedDataParallel(self.student, find_unused_parameters=True)
        self._optimizer = torch.optim.AdamW(
            self.student.parameter_groups(training.learning_rate, training.head_factor, training.weight_decay),
            fused=self._device.type == "cuda",
        )
        for group in self._optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        # bfloat16 has the range of float32; float16 needs its gradients scaled.
        self._half = torch.bfloat16
        if self._device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            self._half = torch.float16
        scaled = training.amp and self._half is torch.float16
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=scaled)

    @property
    def learning_rate(self) -> float:
        """The encoder's in the next step: linear warm-up, then linear decay to zero."""
        training = self.settings.training
        warm = min((self.step + 1) / max(training.warmup, 1), 1.0)
        return training.learning_rate * warm * (1 - self.step / training.iterations)

    def train_step(self, batches: Sequence[Batch]) -> StepReport:
        """One optimiser step over the batches whose gradients are averaged."""
        training = self.settings.training
        torch.manual_seed(self._seed())
        factor = self.learning_rate / training.learning_rate if training.learning_rate else 0.0
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self._optimizer.zero_grad(set_to_none=True)
        total = StepReport({}, *torch.zeros(2, self._classes, device=self._device))
        for batch in batches:
            report = self._learn(batch, 1 / len(batches))
            for name, value in report.losses.items():
                total.losses[name] = total.losses.get(name, 0) + value
            total.labelled += report.labelled
            total.kept += report.kept
            total.mixed = report.mixed
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.step += 1
        self.teacher.follow(self.student.network, self.step)
        return total

    def exported(self) -> NetworkSegmenter:
        """The segmenter with a copy of the teacher or the student, as the settings say, ready to be run."""
        network = self.teacher.network if self.settings.run.export == "teacher" else self.student.network
        # A new one in evaluation mode, without hooks, whose running does not disturb the training.
        frozen = copy.deepcopy(self.teacher.network)
        frozen.load_state_dict(network.state_dict())
        return replace(self.segmenter, network=frozen.eval())

    def state_dict(self) -> dict[str, Any]:
        """State for resuming bit for bit; randomness is a function of seed and step."""
        return {
            "step": self.step,
            "stage": self.stage,
            "student": self.student.state_dict(),
            "teacher": self.teacher.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "method": self.method.state_dict(),
            "objective": self.objective.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`.

        Raises:
            ValueError: it is not of a run with these settings; the message names the entry.
        """
        own = self.state_dict()
        check_alike(state, {**own, "optimizer": {**own["optimizer"], "state": {}}}, "trainer")
        check_tensors(state, "trainer")
        parameters = [one for group in self._optimizer.param_groups for one in group["params"]]
        moments = state["optimizer"]["state"]
        check_optimizer(moments, parameters, "trainer.optimizer.state")
        if not 0 <= state["step"] <= self.settings.training.iterations:
            raise ValueError(f"trainer.step is {state['step']}, of {self.settings.training.iterations} iterations")
        self.step, self.stage = state["step"], state["stage"]
        self.student.load_state_dict(state["student"])
        self.teacher.network.load_state_dict(state["teacher"])
        # The settings say what the groups are: those of a damaged file could assign one parameter another's moments.
        self._optimizer.load_state_dict({**own["optimizer"], "state": moments})
        self._scaler.load_state_dict(state["scaler"])
        self.method.load_state_dict(state["method"])
        self.objective.load_state_dict(state["objective"])

    def _learn(self, batch: Batch, share: float) -> StepReport:
        """Add the gradients of one batch, weighted by ``share``."""
        host, report = self.settings.host, StepReport({}, *torch.zeros(2, self._classes, device=self._device))
        if self.method.unlabelled:
            losses = self.method.unlabelled_losses(self._run(batch.target_images), batch.target_weighed)
            self._backward(losses, share, report)
            return report

        outputs = self._run(batch.source_images)
        losses = self.objective.source_losses(outputs, batch.source_labels)
        losses |= self.method.feature_losses("source", outputs, batch.source_labels)
        if self._feature_distance is not None:
            with self._autocast():  # the encoder's inputs may be in half precision, as the layers before it left them
                distance = self._feature_distance.loss(outputs, batch.source_labels)
            losses["feature_distance"] = host.feature_distance * distance
        self._backward(losses, share, report)
        if not self.settings.method.target:
            return report

        pseudo = self.method.label(batch, None if self.method.network is None else self._run_labelling(batch))
        views = len(pseudo.labels) // len(batch.target_images)
        pasted = batch.pasted.repeat(views, 1, 1)
        weights = pseudo.weights * batch.target_weighed.repeat(views, 1, 1)
        report.labelled += self._histogram(pseudo.labels)
        report.kept += self._histogram(torch.where(pseudo.kept, pseudo.labels, -1))

        targets = MixedTargets(
            labels=paste(pasted, batch.source_labels.repeat(views, 1, 1), pseudo.labels),
            weights=weights.masked_fill(pasted, 1.0),
            from_source=pasted,
        )
        mixed = paste(batch.pasted, batch.source_images, batch.target_images)
        mixed = augment(mixed, batch.tone, batch.color, batch.blur)
        report.mixed = mixed, targets.labels[: len(mixed)]
        outputs = self._run(mixed)
        losses = self.objective.mixed_losses(outputs.repeated(views), targets)
        weighed = torch.where(targets.weights > 0, targets.labels, IGNORE_INDEX)
        losses |= self.method.feature_losses("target", outputs, weighed)
        self._backward(losses, share, report)

        if host.masked_consistency > 0:
            images = augment(batch.target_images, batch.masked_tone, batch.masked_color, batch.masked_blur)
            blank = images.mean(dim=(2, 3), keepdim=True)  # about what preprocessing turns into zero
            outputs = self._run(torch.where(batch.kept.unsqueeze(1), images, blank))
            loss = self.objective.masked_loss(outputs.repeated(views), pseudo.labels, weights)
            self._backward({"masked": host.masked_consistency * loss}, share, report)
        return report

    def _histogram(self, labels: Tensor) -> Tensor:
        """Pixels of each class, float32 ``[C]``; no class is -1. Unlike bincount it does not wait for a GPU."""
        return torch.histc(labels.float(), self._classes, -0.5, self._classes - 0.5)

    def _run(self, images: Tensor) -> Outputs:
        with self._autocast():
            outputs = run_student(self.segmenter, self.student, self._forward, images, self._norms)
        if not outputs.logits.requires_grad:
            raise BldaError("the network's output has no gradient: it is detached, or made under torch.no_grad")
        return outputs

    def _run_labelling(self, batch: Batch) -> Outputs:
        """Outputs of the network that labels for the target crops: cut from those of whole images, or of the crops.

        Whole images go together, as batch norms normalise over the batch; so they must be of one size.
        """
        network, wholes = self.method.network, batch.target_wholes
        assert network is not None
        weight = self.segmenter.norm_weight
        norms = InstanceNorms(network, weight) if weight < 1 else None
        with self._autocast(), norms or nullcontext():
            if len({whole.shape for whole in wholes}) != 1:
                return run_labelling(self.segmenter, network, self.student.classifier, batch.target_images, norms)
            logits = run_labelling(self.segmenter, network, None, torch.stack(wholes), norms).logits
        return Outputs(torch.stack([crop.cut_map(one) for crop, one in zip(batch.target_crops, logits, strict=True)]))

    def _backward(self, losses: Losses, share: float, report: StepReport) -> None:
        self._scaler.scale(torch.stack(list(losses.values())).sum() * share).backward()
        report.losses.update({name: value.detach() * share for name, value in losses.items()})

    def _autocast(self) -> Any:
        if not self.settings.training.amp:
            return nullcontext()
        return torch.autocast(self._device.type, self._half)

    def _seed(self) -> int:
        entropy = [self.settings.training.seed, self.step, current_shard().rank]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _train_norms_alone(student: Student, method: str) -> None:
    """Freeze all but the weights of norms.

    Raises:
        BldaError: there are none.
    """
    for module in student.modules():
        for one in module.parameters(recurse=False):
            one.requires_grad_(one.requires_grad and is_norm(module))
    if not any(one.requires_grad for one in student.parameters()):
        raise BldaError(f"--method {method} trains the weights of norms, and the network has none: use another method")


def _checkpoint_activations(network: torch.nn.Module) -> None:
    """Ask the network to recompute its activations, in the ways of Hugging Face and of timm.

    Raises:
        BldaError: it offers neither.
    """
    for module in network.modules():
        hugging_face: Any = getattr(module, "activation_checkpointing_enable", None)
        older: Any = getattr(module, "gradient_checkpointing_enable", None)
        timm: Any = getattr(module, "set_grad_checkpointing", None)
        if hugging_face is not None:
            hugging_face()
            return
        if older is not None:
            older(gradient_checkpointing_kwargs={"use_reentrant": False})
            return
        if timm is not None:
            timm(True)
            return
    raise BldaError(
        "--activation-checkpointing: the network offers neither gradient_checkpointing_enable (Hugging Face) nor "
        "set_grad_checkpointing (timm); use --amp, a smaller --crop, or --batch-size 1 --accumulate 2"
    )
