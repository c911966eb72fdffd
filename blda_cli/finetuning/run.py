"""``blda finetune``: from settings to a run folder."""

import math
import time
import tomllib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blda_cli.core.choices import LabelSource
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.mixture import GaussianMixture, MixtureFits, fit_quality
from blda_cli.data.encodings import LabelEncoding, custom_encoding
from blda_cli.data.images import ImageFile, find_images
from blda_cli.data.labels import LabelReader, label_reader
from blda_cli.errors import BldaError
from blda_cli.finetuning.methods.base import Losses, OnlineMixtures, or_none
from blda_cli.finetuning.run_folder import EventLog, RunFolder
from blda_cli.finetuning.samples import Batch, Sampler, check_crop, count_class_pixels
from blda_cli.finetuning.settings import Settings
from blda_cli.finetuning.target_norms import take_target_statistics
from blda_cli.finetuning.trainer import StepReport, Trainer
from blda_cli.finetuning.validation import validate
from blda_cli.pipelines.collect import CountingOptions, collect_statistics
from blda_cli.runtime.monitor import Interrupted, Monitor
from blda_cli.runtime.process_group import all_maximum, all_sum
from blda_cli.runtime.shards import Shard, current_shard
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.base import InferenceOptions
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import SegmenterSpec, parse_model
from blda_cli.store.statistics import StatisticsFile, write_statistics

_STATISTICS_IMAGES = 500
"""Target images that the trained model's statistics are counted over; a few would do."""

_INTERRUPT_STEPS = 10
"""Steps between asking the other processes whether one was interrupted."""

_NEW_ON_RESUME = frozenset({"run.log_every", "run.checkpoint_every", "run.validate_every", "run.pictures_every"})
"""Settings that may change when a run goes on; no weight depends on them."""


@dataclass(frozen=True)
class Machine:
    """Where and how a run is carried out; nothing that its result depends on.

    Attributes:
        device: of this process.
        workers: threads that read images.
        tensorboard: also write TensorBoard events.
    """

    device: torch.device
    workers: int = 4
    tensorboard: bool = False


def finetune(
    settings: Settings, output: Path, *, resume: bool, machine: Machine, provenance: dict[str, Any], monitor: Monitor
) -> dict[str, Any]:
    """Train a segmenter on labelled source and unlabelled target images.

    Args:
        settings: resolved.
        output: the run folder.
        resume: go on from the folder's checkpoint.
        machine: where to run.
        provenance: command and versions, for the record.
        monitor: is told the progress.

    Returns:
        The last validation's scores, if any, and where the model is.

    Raises:
        BldaError: something about the model, the data or the folder has to be mended, or a loss is not finite.
        Interrupted: the user asked to stop; a checkpoint is written.
    """
    folder = RunFolder(output)
    first = current_shard().first
    state = _resumed_state(folder, settings) if resume else None
    if state is None:
        folder.check_free()

    data = settings.data
    spec = parse_model(data.model, Path(data.weights) if data.weights else None)
    segmenter = load_segmenter(spec, machine.device)
    if not isinstance(segmenter, NetworkSegmenter):
        raise BldaError(
            f"a model of kind {spec.segmenter.kind} cannot be trained: give the network as module:factory --weights "
            "FILE, or a Hugging Face model"
        )
    initial = segmenter.identity
    trainer = Trainer(segmenter, settings)
    source, source_labels = _labelled(spec, segmenter, data.source_images, data.source_labels, data.source_encoding)
    validation = None
    if data.val_images is not None:
        if data.val_labels is None:
            raise BldaError("--val-images needs --val-labels")
        validation = _labelled(spec, segmenter, data.val_images, data.val_labels, data.val_encoding)
    target = find_images(data.target_images) if data.target_images else []
    check_crop(source, settings.training.crop)
    if trainer.method.uses_target:
        check_crop(target, settings.training.crop)

    if state is not None:
        if state["model"] != initial:
            raise BldaError(f"{folder.checkpoint} belongs to a run from other weights: give the same --weights")
        trainer.load_state_dict(state["trainer"])
    keys = [file.key for file in source]
    pixels = folder.class_pixels(keys, segmenter.classes)
    if pixels is None:
        pixels = count_class_pixels(source, source_labels, len(segmenter.classes), machine.workers, monitor)
    if pixels.sum() == 0:
        raise BldaError(f"{data.source_labels}: no pixel has one of the model's classes; check --source-encoding")
    absent = [name for name, count in zip(segmenter.classes.names, pixels.sum(axis=0), strict=True) if count == 0]
    if absent:
        monitor.say(f"the source labels never hold {', '.join(absent)}: training will not keep what is known of them")
    if segmenter.notes:
        monitor.say("; ".join(segmenter.notes))

    if first:
        folder.start(settings, {**provenance, "model": initial, "source": len(source), "target": len(target)})
        folder.keep_class_pixels(keys, segmenter.classes, pixels)
        folder.cut_metrics(trainer.step)
    run = _Run(trainer, folder, machine, monitor, initial, target, validation)
    drawn = target if trainer.method.uses_target else source
    sampler = Sampler(source, source_labels, drawn, pixels, settings)
    run.train(sampler)
    result: dict[str, Any] = {"output": str(output), "model": str(folder.model), "validation": run.scores}
    if first:
        _finish(run, spec, provenance)
    return result


class _Run:
    """The loop around the trainer's steps: data, metrics, checkpoints, validation."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        machine: Machine,
        monitor: Monitor,
        initial: dict[str, Any],
        target: Sequence[ImageFile],
        validation: tuple[list[ImageFile], LabelReader] | None,
    ) -> None:
        self.trainer = trainer
        self.folder = folder
        self.machine = machine
        self.monitor = monitor
        self.target = target
        self.scores: dict[str, Any] | None = None
        self._settings = trainer.settings
        self._initial = initial
        self._validation = validation
        self._first = current_shard().first
        self._events: EventLog | None = None
        if machine.tensorboard and self._first:
            self._events = EventLog(folder.path / "tensorboard", trainer.segmenter.classes.names, trainer.step)
        self._log = _Log()
        self._watch = _LossWatch()

    def exported(self) -> NetworkSegmenter:
        """The network as it would be written now."""
        segmenter = self.trainer.exported()
        if self._settings.run.target_norms and self.target:
            take_target_statistics(segmenter, self.target, self.machine.workers)
        return segmenter

    def train(self, sampler: Sampler) -> None:
        """All steps that are left."""
        trainer, training, run = self.trainer, self._settings.training, self._settings.run
        self.monitor.start("training", training.iterations, trainer.step, "steps")
        batches = (batch.to(self.machine.device) for batch in sampler.batches(self._numbers(), self.machine.workers))
        try:
            while trainer.step < training.iterations:
                group = [next(batches) for _ in range(training.accumulate)]
                learning_rate = trainer.learning_rate
                report = trainer.train_step(group)
                self._watch.see(trainer.step, [name for batch in group for name in batch.files], report)
                self._log.add(report)
                self.monitor.advance(1)
                step, last = trainer.step, trainer.step == training.iterations
                if step % run.log_every == 0 or last:
                    self._write_metrics(learning_rate, group)
                if run.pictures_every and step % run.pictures_every == 0 and self._first and report.mixed:
                    self.folder.save_pictures(step, *report.mixed, trainer.segmenter.classes)
                if self._validation is not None and (step % run.validate_every == 0 or last):
                    self._validate()
                if step % run.checkpoint_every == 0 or last:
                    self._save()
                self._check_interrupt()
        finally:
            batches.close()
            if self._events is not None:
                self._events.close()

    def _numbers(self) -> Iterator[list[int]]:
        """The samples of this process' batches: those of all processes together are consecutive."""
        training = self._settings.training
        shard, size = current_shard(), training.batch_size
        for batch in range(self.trainer.step * training.accumulate, training.iterations * training.accumulate):
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
        self._watch.settle()
        if self._first:
            self.folder.save_checkpoint(
                {
                    "settings": self._settings.to_toml(),
                    "model": self._initial,
                    "trainer": self.trainer.state_dict(),
                }
            )

    def _write_metrics(self, learning_rate: float, group: Sequence[Batch]) -> None:
        self._watch.settle()
        crops = 2 * sum(len(batch.source_images) for batch in group) * current_shard().world
        entry = {
            "iteration": self.trainer.step,
            "learning_rate": learning_rate,
            **self._log.take(crops),
            **self.trainer.method.metrics(),
        }
        if self._first:
            self._put(entry)

    def _validate(self) -> None:
        assert self._validation is not None
        if not self._first:
            return
        self.scores = validate(self.exported(), *self._validation, self.machine.workers)
        self._put({"iteration": self.trainer.step, "validation": self.scores})
        self.monitor.say(
            f"iteration {self.trainer.step}: mIoU {self.scores['mean_iou']:.1%}, mean accuracy "
            f"{self.scores['mean_accuracy']:.1%}, std of class IoU {self.scores['iou_spread']:.1%}"
        )

    def _put(self, entry: dict[str, Any]) -> None:
        self.folder.log(entry)
        if self._events is not None:
            self._events.log(entry)


class _Log:
    """Sums of what is logged, on the device until they are asked for."""

    def __init__(self) -> None:
        self._losses: list[Losses] = []
        self._labelled: Tensor | float = 0.0
        self._kept: Tensor | float = 0.0
        self._since = time.perf_counter()

    def add(self, report: StepReport) -> None:
        """Take in a step."""
        self._losses.append(report.losses)
        self._labelled = self._labelled + report.labelled
        self._kept = self._kept + report.kept

    def take(self, crops: int) -> dict[str, Any]:
        """Means since the last time; ``crops`` is how many a step has."""
        steps = self._losses
        means = [torch.stack([step[name] for step in steps]).mean() for name in steps[0]]
        averaged = all_sum(torch.stack(means)) / current_shard().world
        losses = dict(zip(steps[0], averaged.tolist(), strict=True))
        labelled, kept = (all_sum(torch.as_tensor(counts)) for counts in (self._labelled, self._kept))
        now = time.perf_counter()
        entry: dict[str, Any] = {
            "loss": sum(losses.values()),
            "losses": losses,
            "crops_per_second": crops * len(steps) / (now - self._since),
        }
        if bool(labelled.any()):
            entry["pseudo_share"] = (labelled / labelled.sum()).tolist()
            entry["kept_share"] = or_none(kept / labelled)
        self._losses, self._labelled, self._kept, self._since = [], 0.0, 0.0, now
        return entry


class _LossWatch:
    """Looks at every step's losses one step late, so that the device need not be waited for."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, list[str], list[str], Tensor, torch.cuda.Event | None]] = deque()

    def see(self, step: int, files: list[str], report: StepReport) -> None:
        """Take in a step; look at the one before.

        Raises:
            BldaError: a loss of it is not finite.
        """
        losses = torch.stack(list(report.losses.values()))
        event = None
        if losses.device.type == "cuda":
            losses = losses.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((step, files, list(report.losses), losses, event))
        while len(self._waiting) > 1:
            self._look()

    def settle(self) -> None:
        """Look at all steps so far."""
        while self._waiting:
            self._look()

    def _look(self) -> None:
        step, files, names, losses, event = self._waiting.popleft()
        if event is not None:
            event.synchronize()
        for name, value in zip(names, losses.tolist(), strict=True):
            if not math.isfinite(value):
                raise BldaError(
                    f"iteration {step}: the {name} loss is {value}; the batch was {', '.join(dict.fromkeys(files))}. "
                    "The last checkpoint is kept: look at these files, or go on with a smaller --learning-rate or "
                    "without --amp"
                )


def _labelled(
    spec: SegmenterSpec, segmenter: NetworkSegmenter, images: str, labels: str, encoding: str
) -> tuple[list[ImageFile], LabelReader]:
    files = find_images(images)
    chosen: str | LabelEncoding = encoding
    if encoding == "auto":
        mapping = spec.labels.mapping
        chosen = custom_encoding(mapping) if mapping else spec.labels.encoding or encoding
    reader = label_reader(files, labels, segmenter.classes, encoding=chosen, groups=spec.classes.groups or None)
    return files, reader


def _resumed_state(folder: RunFolder, settings: Settings) -> dict[str, Any]:
    """The checkpoint, if it is of a run with these settings."""
    state = folder.load_checkpoint()
    kept = tomllib.loads(state["settings"])
    now = tomllib.loads(settings.to_toml())
    for section, table in now.items():
        for name in {*table, *kept.get(section, {})}:
            one, other = kept.get(section, {}).get(name), table.get(name)
            if one != other and f"{section}.{name}" not in _NEW_ON_RESUME:
                raise BldaError(
                    f"{folder.checkpoint} is of another run: there {section}.{name} is {one}, here {other}; a run "
                    "goes on with the settings it was started with"
                )
    return state


def _finish(run: _Run, spec: SegmenterSpec, provenance: dict[str, Any]) -> None:
    """Write the model and the statistics of its logits on the target."""
    folder = run.folder
    trained = folder.export(spec, run.exported().module)
    if not run.target:
        return
    # Loaded as any other model, so that the statistics are those of what was written.
    segmenter = load_segmenter(trained, run.machine.device)
    stride = -(-len(run.target) // _STATISTICS_IMAGES)
    content: StatisticsFile = collect_statistics(
        segmenter,
        run.target[::stride],
        folder.path / "statistics.h5",
        counting=CountingOptions((LabelSource.PSEUDO, LabelSource.SOFT)),
        inference=InferenceOptions(workers=run.machine.workers),
        labels=None,
        provenance=provenance,
        overwrite=True,
        monitor=run.monitor,
        shard=Shard(),
    )
    online = run.trainer.method.mixtures()
    if online is not None:
        counted = content.mixtures[LabelSource.PSEUDO]
        content.mixtures[LabelSource.PSEUDO] = _with_online(
            counted, content.statistics.cells[LabelSource.PSEUDO], online
        )
        content.provenance["mixtures/pseudo"] = "fitted online while training; the anchors are the source's"
        write_statistics(folder.path / "statistics.h5", content)


def _with_online(counted: MixtureFits, cells: LogitHistogram, online: OnlineMixtures) -> MixtureFits:
    """The mixtures fitted in training where there are some, those of the counted cells elsewhere."""

    def chosen(name: str) -> Tensor:
        fitted = online.fitted.unsqueeze(-1)
        return torch.where(fitted, getattr(online.cells, name).double(), getattr(counted.cells, name))

    mixtures = GaussianMixture(chosen("weights"), chosen("means"), chosen("variances"))
    counts, edges = cells.counts.cpu(), cells.edges.cpu()
    pooled = torch.stack([cells.positive(), cells.negative()]).cpu()
    return MixtureFits(
        mixtures, fit_quality(counts, edges, mixtures), online.anchors, fit_quality(pooled, edges, online.anchors)
    )
