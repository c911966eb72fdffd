"""``blda finetune``: from settings to a run folder."""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blda_cli.core.choices import LabelSource
from blda_cli.data.encodings import LabelEncoding, custom_encoding
from blda_cli.data.images import find_images, refuse_among
from blda_cli.data.labels import LabelReader, label_reader
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import stamp
from blda_cli.finetuning.data.samples import Sampler, check_crop, count_class_pixels
from blda_cli.finetuning.loop import Machine, TrainingLoop
from blda_cli.finetuning.networks.norms import prepare_norms
from blda_cli.finetuning.run_folder import RunFolder
from blda_cli.finetuning.settings import Settings
from blda_cli.finetuning.trainer import Trainer
from blda_cli.pipelines.collect import CountingOptions, collect_statistics
from blda_cli.pipelines.job import Job
from blda_cli.runtime.monitor import Monitor
from blda_cli.runtime.shards import Shard, current_shard
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import SegmenterSpec, parse_model
from blda_cli.store.provenance import Provenance

_STATISTICS_IMAGES = 500
"""Target images that the trained model's statistics are counted over; a few would do."""

_NEW_ON_RESUME = frozenset({"run.log_every", "run.checkpoint_every", "run.validate_every", "run.pictures_every"})
"""Settings that may change when a run goes on; no weight depends on them."""


def finetune(
    settings: Settings, output: Path, *, resume: bool, machine: Machine, provenance: Provenance, monitor: Monitor
) -> dict[str, Any]:
    """Train a segmenter on labelled source and unlabelled target images.

    Args:
        settings: resolved.
        output: the run folder.
        resume: go on from the folder's checkpoint, if there is one.
        machine: where to run.
        provenance: for the record.
        monitor: is told the progress.

    Returns:
        The last validation's scores, if any, and where the model is.

    Raises:
        BldaError: something about the model, the data or the folder has to be fixed, or a loss is not finite.
        Interrupted: the user asked to stop; a checkpoint is written.
    """
    folder = RunFolder(output)
    first = current_shard().first
    state = resumed_state(folder, settings) if resume else None
    if state is None:
        folder.check_free()
        if resume:
            monitor.say(f"{output} holds no checkpoint: the run starts afresh")

    data = settings.data
    spec = parse_model(data.model, Path(data.weights) if data.weights else None)
    segmenter = load_segmenter(spec, machine.device)
    if not isinstance(segmenter, NetworkSegmenter):
        raise BldaError(
            f"a model of kind {spec.segmenter.kind} cannot be trained: give the network as module:factory --weights "
            "FILE, or a Hugging Face model"
        )
    initial = segmenter.identity
    target = find_images(data.target_images, spec.preprocessing.pixels) if data.target_images else []
    source, source_labels, meaning = _labelled(
        spec, segmenter, data.source_images, data.source_labels, data.source_encoding
    )
    if (data.val_images is None) != (data.val_labels is None):
        raise BldaError("--val-images needs --val-labels, and the reverse: give both or neither")
    validation = None
    if data.val_images is not None:
        assert data.val_labels is not None
        validation = _labelled(spec, segmenter, data.val_images, data.val_labels, data.val_encoding)[:2]
    for place, found in ((data.source_images, source), (data.target_images, target)):
        refuse_among(output, place, (file.path for file in found))
    refuse_among(output, data.source_labels, source_labels.paths.values())
    check_crop(source, settings.training.crop)
    if settings.method.target:
        check_crop(target, settings.training.crop)
    _try_crop(segmenter, settings.training.crop)
    kept = None if state is None else state.get("norms")
    chosen = settings if kept is None else settings.with_values({"training.norms": kept}, str(folder.checkpoint))
    norms = prepare_norms(segmenter, chosen, source, source_labels, target, monitor)
    trainer = Trainer(segmenter, settings, holds_norms=norms != "batch")

    if state is not None:
        go_on_from(state, folder, trainer, initial)
    keys = [file.key for file in source]
    read = {file.location: file.fingerprint() for file in (*source, *target)}
    read |= {os.fspath(source_labels.paths[key]): stamp([source_labels.paths[key]]) for key in keys}
    stamps = {os.path.abspath(name): state for name, state in read.items()}  # noqa: PTH100  # the stamp follows links
    changed = folder.changed(stamps)
    if state is not None and changed is not None:
        raise BldaError(
            f"{changed} is not as it was when the run in {output} began: a run goes on with the data it began with"
        )
    pixels = None if changed else folder.class_pixels(keys, segmenter.classes, meaning)
    if pixels is None:
        pixels = count_class_pixels(source, source_labels, len(segmenter.classes), machine.workers, monitor)
    if pixels.sum() == 0:
        raise BldaError(f"{data.source_labels}: no pixel has one of the model's classes; check --source-encoding")
    absent = [name for name, count in zip(segmenter.classes.names, pixels.sum(axis=0), strict=True) if count == 0]
    if absent:
        monitor.say(f"the source labels never hold {', '.join(absent)}: training will not keep what is known of them")
    drawn = target if settings.method.target else source
    if segmenter.notes:
        monitor.say("; ".join(segmenter.notes))
    resized, (height, width) = segmenter.preprocessor.section.size, drawn[0].size()
    if resized is not None and settings.training.crop != (height, width):
        monitor.say(
            f"the model resizes what it is given to {resized[0]}x{resized[1]}, so things in crops look larger than in "
            f"whole images: --crop {height}x{width} trains on whole ones"
        )

    if first:
        counts = {"source": len(source), "target": len(target)}
        folder.start(settings, {**provenance.as_json(), "model": initial, **counts, "data": stamps})
        folder.keep_class_pixels(keys, segmenter.classes, meaning, pixels)
        folder.cut_metrics(trainer.step)
    loop = TrainingLoop(trainer, folder, machine, monitor, initial, norms, target, validation)
    sampler = Sampler(source, source_labels, drawn, pixels, settings, wholes=trainer.method.sees_wholes)
    if state is None:
        loop.validate()
    loop.train(sampler)
    result: dict[str, Any] = {"output": str(output), "model": str(folder.model), "validation": loop.scores}
    if first:
        options = {"--model": str(folder.model), "--images": data.target_images}
        _finish(loop, spec, replace(provenance, source=data.target_images, options=options))
        began = folder.first_score()
        if loop.scores and began is not None and loop.scores["mean_iou"] < began:
            monitor.say(
                f"mIoU is below the {began:.1%} that the run began with: a smaller --learning-rate, a larger --crop or "
                "more --iterations may do better"
            )
    return result


def _labelled(
    spec: SegmenterSpec, segmenter: NetworkSegmenter, images: str, labels: str, encoding: str
) -> tuple[list[ImageSource], LabelReader, str]:
    """Images, the reader of their labels, and text that changes when the label files' values mean other classes."""
    files = find_images(images, spec.preprocessing.pixels)
    mapping = spec.labels.mapping if encoding == "auto" else {}
    named = spec.labels.encoding or encoding if encoding == "auto" else encoding
    chosen: str | LabelEncoding = custom_encoding(mapping) if mapping else named
    reader = label_reader(files, labels, segmenter.classes, encoding=chosen, groups=spec.classes.groups or None)
    return files, reader, json.dumps([mapping or named, spec.classes.groups], sort_keys=True, default=dict)


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
            if one != other and f"{section}.{name}" not in _NEW_ON_RESUME:
                raise BldaError(
                    f"{folder.checkpoint} is of another run: there {section}.{name} is {one}, here {other}; a run "
                    "goes on with the settings it was started with"
                )
    return state


def go_on_from(state: Mapping[str, Any], folder: RunFolder, trainer: Trainer, initial: Mapping[str, Any]) -> None:
    """Bring a trainer to where a checkpoint is.

    Args:
        state: of :func:`resumed_state`.
        folder: where it lies.
        trainer: as a run begins.
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
    trained = folder.export(spec, exported.module, adapted_norms="norms" in exported.identity)
    if not loop.target:
        return
    # Loaded as any other model, so that the statistics are those of what was written.
    segmenter = load_segmenter(trained, loop.machine.device)
    stride = -(-len(loop.target) // _STATISTICS_IMAGES)
    collect_statistics(
        segmenter,
        loop.target[::stride],
        Job(folder.path / "statistics.h5", overwrite=True, provenance=provenance, monitor=loop.monitor, shard=Shard()),
        counting=CountingOptions((LabelSource.PSEUDO,)),
        inference=InferenceOptions(workers=loop.machine.workers),
        labels=None,
    )
