"""The training loop: data, metrics, checkpoints, validation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import without_nan
from blda_cli.finetuning.checkpoint import check_tensors
from blda_cli.finetuning.data.labelled import Labelled
from blda_cli.finetuning.data.samples import Batch, Sampler
from blda_cli.finetuning.methods.base import Stage
from blda_cli.finetuning.run_folder import RunFolder
from blda_cli.finetuning.trainer import StepReport, Trainer
from blda_cli.finetuning.training_log import EventLog, LossWatch, StepLog
from blda_cli.finetuning.validation import look, validate
from blda_cli.runtime.monitor import Interrupted, Monitor
from blda_cli.runtime.process_group import all_maximum
from blda_cli.runtime.shards import current_shard
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.norms import enough_for_norms, take_norms, use_norms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.reasons import is_out_of_memory

_INTERRUPT_STEPS = 10
"""Steps between asking the other processes whether one was interrupted."""


@dataclass(frozen=True)
class Machine:
    """Device, threads and logging of a run; its result does not depend on them.

    Attributes:
        device: of this process.
        workers: threads that read images.
        tensorboard: also write TensorBoard events.
    """

    device: torch.device
    workers: int = 4
    tensorboard: bool = False


class TrainingLoop:
    """Trains until the iterations are done, or it is interrupted.

    Attributes:
        trainer: makes the steps.
        folder: where metrics, checkpoints and pictures go.
        machine: where it runs.
        monitor: receives the progress.
        target: images of the target domain.
        scores: of the last validation; without validation images, the measurements that need no labels.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        machine: Machine,
        monitor: Monitor,
        initial: dict[str, Any],
        norms: Mapping[str, Any],
        target: Sequence[ImageSource],
        validation: Labelled | None,
    ) -> None:
        self.trainer = trainer
        self.folder = folder
        self.machine = machine
        self.monitor = monitor
        self.target = target
        self.scores: dict[str, Any] | None = None
        self._settings = trainer.settings
        self._initial = initial
        self._norms = norms
        self._validation = validation
        self._first = current_shard().first
        self._events: EventLog | None = None
        if machine.tensorboard and self._first:
            self._events = EventLog(folder.path / "tensorboard", trainer.segmenter.classes.names, trainer.step)
        self._log = StepLog()
        self._watch = LossWatch()

    def exported(self, images: Sequence[ImageSource]) -> NetworkSegmenter:
        """The network as it would be exported now with ``images`` as the target."""
        segmenter = self.trainer.exported()
        if self._settings.run.target_norms and images and segmenter.norm_weight == 1:
            options = InferenceOptions(workers=self.machine.workers)
            use_norms(segmenter, take_norms(segmenter, enough_for_norms(images), options))
        return segmenter

    def train(self, sampler: Sampler) -> None:
        """All steps that are left."""
        stages, iterations = self.trainer.method.stages, self._settings.training.iterations
        try:
            for number in range(stages):
                end = iterations * (number + 1) // stages
                if self.trainer.step < end:
                    self._begin_stage(number, sampler)
                    self._train_until(end, sampler)
            self._train_until(iterations, sampler)
        finally:
            if self._events is not None:
                self._events.close()

    def _begin_stage(self, number: int, sampler: Sampler) -> None:
        """Let the method run its pass over the data, with a checkpoint before and after, so that it is done once."""
        trainer = self.trainer
        resumed = trainer.stage == number
        if not resumed:
            self._save()
        trainer.method.begin_stage(
            Stage(
                number,
                resumed,
                self.exported,
                trainer.student.classifier,
                sampler.source.files,
                sampler.source.labels,
                self.target,
                self.folder.path,
                self.machine.workers,
                self.monitor,
            )
        )
        trainer.stage = number
        sampler.prefer(trainer.method.preferred)
        if not resumed:
            self._save()

    def _train_until(self, end: int, sampler: Sampler) -> None:
        """The steps of a stage that are left; no batch of a later one is drawn ahead."""
        trainer, training, run = self.trainer, self._settings.training, self._settings.run
        self.monitor.start("training", training.iterations, trainer.step, "steps")
        batches = (batch.to(self.machine.device) for batch in sampler.batches(self._numbers(end), self.machine.workers))
        try:
            while trainer.step < end:
                group = [next(batches) for _ in range(training.accumulate)]
                learning_rate = trainer.learning_rate
                report = self._step(group)
                self._watch.see(trainer.step, [name for batch in group for name in batch.files], report)
                self._log.add(report)
                self.monitor.advance(1)
                step, last = trainer.step, trainer.step == training.iterations
                if step % run.log_every == 0 or last:
                    self._write_metrics(learning_rate, group)
                pictured = run.pictures_every and (step % run.pictures_every == 0 or last)
                if pictured and self._first and report.mixed:
                    self.folder.save_pictures(step, *report.mixed, trainer.segmenter.classes)
                if step % run.validate_every == 0 or last:
                    self.validate()
                if step % run.checkpoint_every == 0 or last:
                    self._save()
                self._check_interrupt()
        finally:
            batches.close()

    def _step(self, group: Sequence[Batch]) -> StepReport:
        try:
            return self.trainer.train_step(group)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise BldaError(
                "the memory does not suffice for a step: a smaller --crop or --batch-size, --amp or "
                "--activation-checkpointing takes less"
            ) from error

    def _numbers(self, end: int) -> Iterator[list[int]]:
        """The samples of this process' batches until a step: those of all processes together are consecutive."""
        training = self._settings.training
        shard, size = current_shard(), training.batch_size
        for batch in range(self.trainer.step * training.accumulate, end * training.accumulate):
            start = (batch * shard.world + shard.rank) * size
            yield list(range(start, start + size))

    def _check_interrupt(self) -> None:
        try:
            self.monitor.check()
            asked = False
        except Interrupted:
            asked = True
        if current_shard().world > 1:
            if self.trainer.step % _INTERRUPT_STEPS:
                return
            asked = bool(all_maximum(torch.tensor(float(asked), device=self.machine.device)))
        if asked:
            self._save()
            raise Interrupted

    def _save(self) -> None:
        """Replace the checkpoint, unless a value in the new one is not finite: then the last one is kept.

        Raises:
            BldaError: it cannot be written, or something in it is not finite.
        """
        self._watch.settle()
        state = self.trainer.state_dict()
        try:
            check_tensors(state, "trainer")
        except ValueError as error:
            raise BldaError(
                f"iteration {self.trainer.step}: {error}, though all losses are finite: a gradient was not. The last "
                "checkpoint is kept: go on from it with a smaller --learning-rate or without --amp"
            ) from error
        if self._first:
            self.folder.save_checkpoint(
                {
                    "settings": self._settings.to_toml(),
                    "model": self._initial,
                    **self._norms,
                    "trainer": state,
                }
            )
            self.folder.plot_metrics(self.trainer.segmenter.classes)

    def _write_metrics(self, learning_rate: float, group: Sequence[Batch]) -> None:
        self._watch.settle()
        crops = 2 * sum(len(batch.source_images) for batch in group) * current_shard().world
        entry = {
            "iteration": self.trainer.step,
            "learning_rate": learning_rate,
            **self._log.take(crops),
            **self.trainer.objective.metrics(),
        }
        if self._first:
            self._put(entry)

    def validate(self) -> None:
        """Score the network as it would be written now, and log it; without labels, measure its agreement instead."""
        if not self._first or not (self._validation or self.target):
            return
        segmenter, workers = self.exported(self.target), self.machine.workers
        if self._validation is None:
            self.scores = look(segmenter, self.target, workers)
            self._put({"iteration": self.trainer.step, "unlabelled": self.scores})
            return
        self.scores = validate(segmenter, self._validation.files, self._validation.labels, workers)
        self._put({"iteration": self.trainer.step, "validation": self.scores})
        self.monitor.say(
            f"iteration {self.trainer.step}: mIoU {self.scores['mean_iou']:.1%}, mean accuracy "
            f"{self.scores['mean_accuracy']:.1%}, std of class IoU {self.scores['iou_spread']:.1%}"
        )

    def _put(self, entry: dict[str, Any]) -> None:
        entry = without_nan(entry)
        self.folder.log(entry)
        if self._events is not None:
            self._events.log(entry)
