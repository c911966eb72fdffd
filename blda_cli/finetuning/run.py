"""``blda finetune``: train a segmenter and write its run folder."""

import copy
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blda_cli.core.choices import LabelSource, NormSource
from blda_cli.core.norms import MixedNorms
from blda_cli.data.images import find_images, masked, refuse_among
from blda_cli.data.source import refuse_parts
from blda_cli.errors import BldaError
from blda_cli.finetuning.data.labelled import Labelled, find_labelled, own_labelled, without_labels
from blda_cli.finetuning.data.samples import Sampler, count_class_pixels, fitting_crop
from blda_cli.finetuning.data.stored_labels import StoredLabels
from blda_cli.finetuning.loop import Machine, TrainingLoop
from blda_cli.finetuning.networks.norms import mixed_norms, prepare_norms
from blda_cli.finetuning.own_labels import label_target
from blda_cli.finetuning.run_folder import RunFolder
from blda_cli.finetuning.settings import FinetuneRequest, Settings
from blda_cli.finetuning.trainer import Trainer
from blda_cli.pipelines.collect import CountingOptions, collect_statistics
from blda_cli.pipelines.doubts import say_doubts
from blda_cli.pipelines.job import Job
from blda_cli.runtime.device import choose_device, free_memory
from blda_cli.runtime.monitor import Monitor
from blda_cli.runtime.process_group import process_group, wait_for_all
from blda_cli.runtime.shards import Shard, current_shard
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import KeptSpec, SegmenterSpec, parse_model, with_changes
from blda_cli.store.provenance import Provenance

_STATISTICS_IMAGES = 500
"""Target images that the trained model's statistics are counted over; a few would do."""

_LOST = 0.1
"""Classes whose share of the predictions falls below this multiple of the share at the beginning are reported."""

_NEW_ON_RESUME = frozenset(
    {"run.log_every", "run.checkpoint_every", "run.validate_every", "run.pictures_every", "run.check"}
)
"""Settings that may change when a run goes on; no weight depends on them."""


def finetune(request: FinetuneRequest, job: Job) -> dict[str, Any]:
    """Train a segmenter, as ``blda finetune`` does; see :func:`train`.

    Args:
        request: data and settings.
        job: the run folder, the provenance and the receiver of the progress.

    Returns:
        ``output``, ``model`` (the trained model's description) and ``validation``: the last scores, or None.

    Raises:
        BldaError: something has to be fixed, or another process writes the run folder.
        Interrupted: the user asked to stop; a checkpoint is written.
    """
    device = choose_device(request.device)
    machine = Machine(device, request.workers, request.tensorboard)
    with process_group(device), job.lock():
        return train(
            request.settings,
            job.output,
            resume=request.resume,
            machine=machine,
            provenance=job.provenance,
            monitor=job.monitor,
            write_model=request.write_model,
        )


def train(
    settings: Settings,
    output: Path,
    *,
    resume: bool,
    machine: Machine,
    provenance: Provenance,
    monitor: Monitor,
    write_model: Path | None = None,
) -> dict[str, Any]:
    """Train a segmenter on images of a target domain, with or without labelled source images.

    Args:
        settings: resolved.
        output: the run folder.
        resume: go on from the folder's checkpoint, if there is one.
        machine: where to run.
        provenance: for the record.
        monitor: receives the progress.
        write_model: where to write the description of the network that is trained.

    Returns:
        The last validation's scores, if any, and where the model is.

    Raises:
        BldaError: something about the settings, the model, the data or the folder has to be fixed, or a loss is not
            finite.
        Interrupted: the user asked to stop; a checkpoint is written.
    """
    settings.check_data()
    folder = RunFolder(output)
    begun = resume and folder.checkpoint.is_file()
    if not begun:
        folder.check_free()
        if resume:
            monitor.say(f"{output} holds no checkpoint: the run starts afresh")

    data = settings.data
    described = parse_model(data.model, Path(data.weights) if data.weights else None, data.weights_key)
    spec = with_changes(described, data.set, data.classes)
    description = KeptSpec(spec, write_model) if write_model is not None and current_shard().first else None
    segmenter = load_segmenter(spec, machine.device)
    if not isinstance(segmenter, NetworkSegmenter):
        raise BldaError(
            f"a model of kind {spec.segmenter.kind} cannot be trained: give the network as module:factory --weights "
            "FILE, or a Hugging Face model"
        )
    initial = segmenter.identity
    target = find_images(data.target_images, spec.preprocessing.pixels) if data.target_images else []
    target = masked(target, data.valid_mask) if data.valid_mask else target
    refuse_among(output, data.target_images, (file.path for file in target))
    find = partial(find_labelled, spec, segmenter, output)
    validation = find(data.val_images, str(data.val_labels), data.val_encoding) if data.val_images else None
    stored = StoredLabels(output / "pseudo_labels" / "start", len(segmenter.classes))
    given: list[Labelled] = []
    if data.source and settings.method.source != "unused":
        given.append(find(data.source_images, data.source_labels, data.source_encoding))
    if data.labelled_images:
        given.append(find(data.labelled_images, data.labelled_labels, data.labelled_encoding))
    known = {file.location for one in given for file in one.files}
    own: list[Labelled] = []
    if settings.labels_itself and any(file.location not in known for file in target):
        own.append(own_labelled(target, stored.read, fading=data.source))
    # Own labels come first, as given ones of the same images count more.
    source = reduce(Labelled.beside, [*own, *given]) if own or given else without_labels(target)
    lasting = reduce(Labelled.beside, given) if own and data.source else source
    if not settings.method.parts:
        way = "cut it into images of at most 16 million pixels, or train by another method"
        refuse_parts([*source.files, *target], f"--method {settings.training.method}", way)
    cropped = [*source.files, *(target if settings.method.target else [])]
    settings = settings.with_values({"training.crop": fitting_crop(cropped, settings.training.crop, monitor)}, "images")
    state = resumed_state(folder, settings) if begun else None
    _try_crop(segmenter, settings.training.crop)
    if description is not None:
        description.write()
    first = current_shard().first
    look = settings.run.check and first
    doubts = say_doubts(spec, segmenter, target or source.files, monitor, trains=True) if look else {}

    read = {**source.stamps(), **{file.location: file.fingerprint() for file in target}}
    stamps = {os.path.abspath(name): state for name, state in read.items()}  # noqa: PTH100  # the stamp follows links
    changed = folder.changed(stamps)
    if state is not None and changed is not None:
        raise BldaError(
            f"{changed} is not as it was when the run in {output} began: a run goes on with the data it began with"
        )
    counts = {"source": len(source.files), "target": len(target)}
    record = {**replace(provenance, doubts=doubts).as_json(), "model": initial, **counts, "data": stamps}
    mix: MixedNorms | None = None
    if state is None:
        # Beside its own labels, a network may learn in domain, too, from those that are given.
        doubt = settings.run.check and bool(own) and not given
        chosen, mix = mixed_norms(segmenter, settings, spec.segmenter.norm_weight, target, monitor, doubt=doubt)
    else:
        kept = {f"training.{name}": state.get(name) for name in ("norms", "norm_weight")}
        chosen = settings.with_values(kept, str(folder.checkpoint))
    weight = chosen.training.norm_weight if chosen.training.norms == "instance" else None
    labels_now, counted = bool(own) and state is None, dict[str, np.ndarray]()
    count = partial(_class_pixels, segmenter=segmenter, workers=machine.workers, monitor=monitor)
    if labels_now:
        # What cannot be trained, or cannot be read, is refused before anything is labelled.
        _try_training(segmenter, settings)
        if lasting is not source:
            given_pixels = count(lasting, known=None, counted={})
            _check_classes(given_pixels, settings, segmenter.classes.names, monitor)
            counted = {file.location: row for file, row in zip(lasting.files, given_pixels, strict=True)}
        if first:
            folder.start(settings, record)  # the folder is this run's before anything else is written into it
        wait_for_all(current_shard())
        labeller = load_segmenter(spec, machine.device)
        assert isinstance(labeller, NetworkSegmenter)
        label_target(
            labeller,
            target,
            settings.start.label_share,
            stored,
            output / "start.h5",
            machine.workers,
            monitor,
            norms=mix or NormSource.AUTO,
        )
    pixels = count(source, known=None if changed or labels_now else folder, counted=counted)
    if settings.method.source != "unused" and not counted:
        drawn_last = [index for index, file in enumerate(source.files) if file.location not in source.fading]
        _check_classes(pixels[drawn_last], settings, segmenter.classes.names, monitor)

    norms = prepare_norms(segmenter, chosen, lasting, target, monitor)
    trainer = Trainer(segmenter, settings, holds_norms=norms != "batch")
    if state is not None:
        go_on_from(state, folder, trainer, initial)
    if segmenter.notes:
        monitor.say("; ".join(segmenter.notes))
    drawn = target if settings.method.target else source.files
    resized, (height, width) = segmenter.preprocessor.section.size, drawn[0].size()
    if resized is not None and settings.training.crop != (height, width):
        monitor.say(
            f"the model resizes what it is given to {resized[0]}x{resized[1]}, so things in crops look larger than in "
            f"whole images: --crop {height}x{width} trains on whole ones"
        )

    if first:
        folder.start(settings, record)
        folder.keep_class_pixels([file.key for file in source.files], segmenter.classes, source.meaning, pixels)
        folder.cut_metrics(-1 if state is None else trainer.step)
    choice = {"norms": norms, "norm_weight": weight if norms == "instance" else None}
    loop = TrainingLoop(trainer, folder, machine, monitor, initial, choice, target, validation)
    sampler = Sampler(source, drawn, pixels, settings, wholes=trainer.method.sees_wholes)
    if state is None:
        loop.validate()
    loop.train(sampler)
    result: dict[str, Any] = {
        "output": str(output),
        "model": str(folder.model),
        "validation": loop.scores if validation else None,
    }
    if first:
        options = {"--model": str(folder.model), "--images": data.target_images}
        _finish(loop, spec, replace(provenance, source=data.target_images, options=options))
        _compare_with_start(folder, loop, data.model, monitor)
    return result


def _class_pixels(
    source: Labelled,
    *,
    segmenter: NetworkSegmenter,
    known: RunFolder | None,
    counted: Mapping[str, np.ndarray],
    workers: int,
    monitor: Monitor,
) -> np.ndarray:
    """Pixels of each class in every source image, int64 ``[images, C]``.

    Args:
        source: the images.
        segmenter: has the classes.
        known: the run folder, which may have them.
        counted: those of some images, by location.
        workers: threads that read labels.
        monitor: receives the progress.
    """
    keys = [file.key for file in source.files]
    pixels = None if known is None else known.class_pixels(keys, segmenter.classes, source.meaning)
    if pixels is not None:
        return pixels
    left = [file for file in source.files if file.location not in counted]
    rows = count_class_pixels(left, source.labels, len(segmenter.classes), workers, monitor)
    all_rows = {**counted, **{file.location: row for file, row in zip(left, rows, strict=True)}}
    return np.stack([all_rows[file.location] for file in source.files])


def _check_classes(pixels: np.ndarray, settings: Settings, names: Sequence[str], monitor: Monitor) -> None:
    """Refuse labels without any class, and report the classes that never occur in them.

    Raises:
        BldaError: no pixel has a class.
    """
    if pixels.sum() == 0:
        place = settings.data.source_labels or "the network's own labels"
        raise BldaError(f"{place}: no pixel has one of the model's classes; check --source-encoding")
    absent = [name for name, count in zip(names, pixels.sum(axis=0), strict=True) if count == 0]
    if absent:
        monitor.say(f"the source labels never hold {', '.join(absent)}: training will not keep what is known of them")


def _compare_with_start(folder: RunFolder, loop: TrainingLoop, model: str, monitor: Monitor) -> None:
    """Warn where the written network seems worse than the one that the run began with."""
    began = folder.first_validation()
    if began is None or loop.scores is None:
        return
    way_out = (
        f"{model} as it was may be the better one; a smaller --learning-rate, a larger --crop or more --iterations may "
        "do better than this run"
    )
    if "mean_iou" in loop.scores:
        if loop.scores["mean_iou"] < began["mean_iou"]:
            monitor.say(f"mIoU is below the {began['mean_iou']:.1%} that the run began with: {way_out}")
        return
    if loop.scores["agreement"] < began["agreement"]:
        monitor.say(
            f"predictions agree less with those of smaller copies of the images ({loop.scores['agreement']:.1%}) than "
            f"when the run began ({began['agreement']:.1%}), which tells a worse network more often than not: {way_out}"
        )
    lost = [name for name, share in began["share"].items() if loop.scores["share"][name] < _LOST * share]
    if lost:
        monitor.say(f"hardly predicted any more on the target: {', '.join(lost)}; {way_out}")


def _try_crop(segmenter: NetworkSegmenter, crop: tuple[int, int]) -> None:
    """Run a grey crop, before anything that takes long.

    Raises:
        BldaError: the network does not take crops of this size.
    """
    grey = torch.full((1, segmenter.preprocessor.section.channels, *crop), 127.0, device=segmenter.device)
    try:
        with torch.no_grad():
            segmenter.forward_logits(grey, crop)
    except BldaError as error:
        raise BldaError(f"--crop {crop[0]}x{crop[1]} cannot be trained on: {error}") from error


def _try_training(segmenter: NetworkSegmenter, settings: Settings) -> None:
    """Set up the training of a copy.

    Raises:
        BldaError: the network cannot be trained as asked.
    """
    network = copy.deepcopy(segmenter.network)
    Trainer(replace(segmenter, network=network, notes=[]), settings, holds_norms=True)
    free_memory()  # its copies refer to themselves


def resumed_state(folder: RunFolder, settings: Settings) -> dict[str, Any] | None:
    """The checkpoint, if there is one.

    Raises:
        BldaError: it is damaged, or of a run with other settings.
    """
    state = folder.load_checkpoint()
    if state is None:
        return None
    if folder.record() is None:
        raise BldaError(
            f"{folder.path / 'run.json'} is missing or damaged, so it cannot be told whether the run would go on with "
            "the data it began with: start anew in another folder"
        )
    kept = tomllib.loads(state["settings"])
    now = tomllib.loads(settings.to_toml())
    for section, table in now.items():
        for name in {*table, *kept.get(section, {})}:
            one, other = kept.get(section, {}).get(name), table.get(name)
            if one != other and _matters(f"{section}.{name}", settings):
                raise BldaError(
                    f"{folder.checkpoint} is of another run: there {section}.{name} is {one}, here {other}; a run "
                    "goes on with the settings it was started with"
                )
    return state


def _matters(name: str, settings: Settings) -> bool:
    """Whether a run that goes on must have the same ``section.name``."""
    if name == "start.own_labels" and not settings.data.source:
        return False
    return name not in _NEW_ON_RESUME and settings.takes(name)


def go_on_from(state: Mapping[str, Any], folder: RunFolder, trainer: Trainer, initial: Mapping[str, Any]) -> None:
    """Restore a trainer from a checkpoint.

    Args:
        state: from :func:`resumed_state`.
        folder: where it lies.
        trainer: in its initial state.
        initial: identity of the segmenter that the run begins with.

    Raises:
        BldaError: the checkpoint is of another network, or damaged.
    """
    if state["model"] != initial:
        raise BldaError(f"{folder.checkpoint} belongs to a run from other weights: give the same --weights")
    try:
        trainer.load_state_dict(state["trainer"])
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise BldaError(f"{folder.checkpoint} is not of a run like this one: {reason(error)}") from error


def _finish(loop: TrainingLoop, spec: SegmenterSpec, provenance: Provenance) -> None:
    """Write the model and the statistics of its logits on the target."""
    folder = loop.folder
    exported = loop.exported(loop.target)
    weight = exported.norm_weight if exported.norm_weight < 1 else None
    described = replace(spec, segmenter=replace(spec.segmenter, norm_weight=weight))
    trained = folder.export(described, exported.module, adapted_norms="norms" in exported.identity)
    if not loop.target:
        return
    # Loaded as any other model, so that the statistics are those of the written network.
    segmenter = load_segmenter(trained, loop.machine.device)
    stride = -(-len(loop.target) // _STATISTICS_IMAGES)
    collect_statistics(
        segmenter,
        loop.target[::stride],
        Job(folder.path / "statistics.h5", overwrite=True, provenance=provenance, monitor=loop.monitor, shard=Shard()),
        counting=CountingOptions((LabelSource.PSEUDO,)),
        inference=InferenceOptions(workers=loop.machine.workers),
        labels=None,
        norms=NormSource.SOURCE if weight is None else MixedNorms(weight),
    )
