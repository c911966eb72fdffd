"""Norm statistics in training: frozen ones, or those of each batch."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.losses import cross_entropy
from blda_cli.core.norms import SHIFTED, MixedNorms, Norms
from blda_cli.data.labels import LabelReader
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.finetuning.data.labelled import Labelled
from blda_cli.finetuning.networks.teacher import Teacher
from blda_cli.finetuning.settings import Settings
from blda_cli.pipelines.requests import STRONG
from blda_cli.runtime.monitor import Monitor, advancing
from blda_cli.runtime.process_group import all_maximum
from blda_cli.runtime.shards import current_shard
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.norm_choice import choose_weight, images_for_choice
from blda_cli.segmenters.norms import ObservedNorms, enough_for_norms, has_norms, take_norms, use_norms
from blda_cli.segmenters.options import InferenceOptions

_TOO_DEAR, _NOTHING = 1.25, 0.1
"""Freeze norm statistics when batch statistics raise the source's cross-entropy by more than this factor and by more
than this much per pixel. It was 1.4 and 1.6 times for DABNet (crops of 320 and 192) and 1.3 for ESPNetv2, which are
harmed, 1.0 for ESPNet and 1.1 for the drawn streets' network, which are not."""

_NEAR = 0.08
"""Images are near the domain where norms mixed with the weight found change the class of fewer pixels than this share:
0.05 on other frames of the day that ESPNet was trained on, 0.10 to 0.28 on images out of domain, four networks."""

NormChoice = Literal["batch", "instance", "target", "source"]

_CROPS = 32
"""Source crops that this is measured on."""


def mixed_norms(
    segmenter: NetworkSegmenter,
    settings: Settings,
    described: float | None,
    target: Sequence[ImageSource],
    monitor: Monitor,
    *,
    doubt: bool = False,
) -> tuple[Settings, MixedNorms | None]:
    """Find out whether norms are mixed with each image's own statistics, and with which weight.

    Training with mixed norms fits the network to what it is run with: the same mix makes the labels and is in the
    written network. A weight that is not given is found as for ``--preset strong``: trained with 0.9, which averaged
    views want, ESPNet was one point better at dusk than with the 0.8 of single views. Single views choose where the
    network does not take the preset's.

    Args:
        segmenter: the network before training.
        settings: of the run.
        described: the weight in the model's description, if any.
        target: images of the target domain.
        monitor: receives the progress and the choice.
        doubt: refuse images in domain, where the network has nothing to learn from its own labels.

    Returns:
        The settings with ``--norms instance`` and its weight, unchanged where norms are not mixed; and the mix that was
        given or found, if any.

    Raises:
        BldaError: an image cannot be read, or the images are in domain.
        Interrupted: the user asked to stop.
    """
    norms, weight = settings.training.norms, settings.training.norm_weight
    if norms not in ("auto", "instance") or (norms == "auto" and weight is None and not has_norms(segmenter)):
        return settings, None
    weight = described if weight is None else weight
    mix = None if weight is None else MixedNorms(weight)
    if mix is None and target and not segmenter.adapted_norms:
        try:
            mix, distance = _found_weight(segmenter, target, STRONG, monitor)
        except BldaError:  # not every network takes images at half their size, nor every memory larger ones
            mix, distance = _found_weight(segmenter, target, InferenceOptions(), monitor)
        if doubt:
            _refuse_in_domain(mix, distance)
        if mix.weight < 1:
            monitor.say(f"batch norms: {mix}")
    if norms == "auto" and (mix is None or mix.weight == 1):
        return settings, mix
    found = {"training.norms": "instance", "training.norm_weight": 1.0 if mix is None else mix.weight}
    return settings.with_values(found, "norms"), mix


def _refuse_in_domain(mix: MixedNorms, distance: float) -> None:
    """Refuse images in domain or near it, on which training on the network's own labels alone costs accuracy.

    It took the drawn streets' network by day from 81.8 to 79.8 mIoU, and ESPNet, trained by day, on other frames of
    that day from 60.1 to 56.9.

    Raises:
        BldaError: they are.
    """
    if mix.weight == 1:
        near, effect = distance < SHIFTED, "brings nothing"
    else:
        changed = mix.changed.get(mix.weight, 1.0)
        near, effect = changed < _NEAR, f"changes the class of only {changed:.0%} of the pixels"
    if near:
        raise BldaError(
            f"these images are in domain, or nearly: mixing the norm statistics with each image's {effect}. Training "
            "on the network's own labels alone costs accuracy there: leave the network as it is, give labelled images, "
            "too, or train all the same with --no-check"
        )


def _found_weight(
    segmenter: NetworkSegmenter, target: Sequence[ImageSource], views: InferenceOptions, monitor: Monitor
) -> tuple[MixedNorms, float]:
    """The mix that is found without labels, and the images' norm distance."""
    files, more = images_for_choice(target)
    monitor.start("choosing the norms' weight", len(files))
    advance, observed = advancing(monitor), ObservedNorms(segmenter.module)
    mix = choose_weight(segmenter, files, views, advance=advance, observed=observed, more=more, choose_scales=True)
    return mix, observed.distance


def prepare_norms(
    segmenter: NetworkSegmenter,
    settings: Settings,
    source: Labelled,
    target: Sequence[ImageSource],
    monitor: Monitor,
) -> NormChoice:
    """Choose between frozen and batch norm statistics, and put frozen or mixed ones into the network.

    The statistics of two crops are a poor estimate of a domain's, and networks differ in how much that harms them:
    normalised by crops, before any training, ESPNet and the drawn streets' network lose little and train well; DABNet
    loses 18 points of mIoU and ends below where it began.

    Args:
        segmenter: its network is changed where statistics of the target are frozen.
        settings: of the run, see :func:`mixed_norms`.
        source: labelled images, no smaller than the crop.
        target: images of the target domain; without any, the frozen statistics are the network's own.
        monitor: receives the progress and the choice.

    Returns:
        The choice, the same in all processes; ``"batch"`` where the network has no batch norms.

    Raises:
        BldaError: an image or label cannot be read.
        Interrupted: the user asked to stop.
    """
    choice = settings.training.norms
    if choice == "instance":
        assert settings.training.norm_weight is not None
        segmenter.mix_norms(settings.training.norm_weight)
    if not has_norms(segmenter):
        return "batch"
    if current_shard().world > 1 and segmenter.device.type != "cuda" and choice in ("auto", "batch"):
        monitor.say(
            "batch norms: without CUDA each process normalises by its own crops, so what comes out depends on the "
            "number of processes; with --norms target it does not"
        )
    if choice in ("batch", "instance", "source"):
        return choice
    if choice == "auto" and settings.method.source == "unused":
        return "batch"
    norms = None
    if target:
        files = enough_for_norms(target)
        monitor.start("averaging", len(files))
        norms = take_norms(segmenter, files, InferenceOptions(), advance=advancing(monitor))
    if choice == "auto":
        by_batch, by_kept = _costs(segmenter, norms, settings, source, monitor)
        harmed = by_batch > _TOO_DEAR * by_kept and by_batch > by_kept + _NOTHING
        if not all_maximum(torch.tensor(float(harmed), device=segmenter.device)):
            return "batch"
        harm = "fails" if math.isinf(by_batch) else f"loses {by_batch / by_kept:.1f} times as much on the source"
        monitor.say(f"batch norms: their statistics are kept (--norms target), as by those of crops the network {harm}")
    use_norms(segmenter, norms)
    return "target"


def synchronised(network: nn.Module) -> nn.Module:
    """The network with batch norms that normalise by the crops of all processes.

    Args:
        network: its batch norms are replaced.

    Raises:
        BldaError: a batch norm also does something else, such as an activation (``BatchNormAct2d`` of timm), which
            would be lost.
    """
    for name, layer in network.named_modules():
        fused = isinstance(layer, _BatchNorm) and type(layer).forward is not _BatchNorm.forward
        if fused and not isinstance(layer, nn.SyncBatchNorm):
            raise BldaError(
                f"{name or 'the network'}, a {type(layer).__name__}, does more than normalise, so several processes "
                "cannot train it on common statistics: --norms target keeps them as they are, or train in one process"
            )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


def _costs(
    segmenter: NetworkSegmenter,
    norms: Norms | None,
    settings: Settings,
    source: Labelled,
    monitor: Monitor,
) -> tuple[float, float]:
    """Cross-entropy per pixel of source crops, normalised by their own statistics and by those that would be frozen."""
    by_batch, by_kept = 0.0, 0.0
    own, held = (Teacher(segmenter.module, 0.0, holds_norms=holds).network for holds in (False, True))
    use_norms(replace(segmenter, network=held, notes=[]), norms)
    batches = _batches(source.files, settings)
    monitor.start("comparing norms", len(batches))
    for files in batches:
        images, truth = _crops(files, source.labels, settings.training.crop, segmenter.device)
        by_kept += _cost(segmenter, held, images, truth) / len(batches)
        try:
            by_batch += _cost(segmenter, own, images, truth) / len(batches)
        except BldaError:  # a norm behind global pooling has one value a channel of a single crop
            by_batch = math.inf
        monitor.advance(1)
        monitor.check()
    return by_batch, by_kept


def _batches(source: Sequence[ImageSource], settings: Settings) -> list[Sequence[ImageSource]]:
    """Images from all over the source, as many at a time as all processes train on together; no batch is smaller."""
    files = source[:: -(-len(source) // _CROPS)]
    size = min(settings.training.batch_size * current_shard().world, len(files))
    return [files[start : start + size] for start in range(0, len(files) - size + 1, size)]


def _crops(
    files: Sequence[ImageSource], labels: LabelReader, crop: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Crops from the middle of the images, float32 ``[N, 3, h, w]``, and their labels, int64 ``[N, h, w]``."""
    height, width = crop
    pairs = []
    for file in files:
        image, truth = file.read(), labels(file)
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        pairs.append([values[top : top + height, left : left + width] for values in (image, truth)])
    images, truths = (torch.from_numpy(np.stack(values)).to(device) for values in zip(*pairs, strict=True))
    return images.permute(0, 3, 1, 2).float(), truths.long()


@torch.no_grad()
def _cost(segmenter: NetworkSegmenter, network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of the pixels."""
    logits = segmenter.forward_logits(images, (images.shape[2], images.shape[3]), network)
    return float(cross_entropy(logits, labels.masked_fill(labels < 0, IGNORE_INDEX)).mean())
