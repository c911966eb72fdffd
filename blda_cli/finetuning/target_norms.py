"""Batch norms with the target's statistics (Li et al., "Adaptive Batch Normalization", Pattern Recognition 2018)."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from blda_cli.data.images import ImageFile
from blda_cli.segmenters.base import InferenceOptions
from blda_cli.segmenters.network import NetworkSegmenter

IMAGES = 100
"""Images that statistics are taken over, spread evenly; a batch norm's mean needs no more."""


def take_target_statistics(segmenter: NetworkSegmenter, files: Sequence[ImageFile], workers: int) -> None:
    """Replace the running statistics of a network's batch norms by those of whole target images.

    Training leaves the statistics of source and mixed crops; the teacher labels with those of its target batch. A
    network without batch norms is left as it is.

    Args:
        segmenter: its network is changed, and left in evaluation mode.
        files: target images.
        workers: threads that read images.
    """
    norms = [one for one in segmenter.module.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(_learn_where_there_is_something) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    try:
        # Two at a time, so that a norm behind a global pooling sees more than one value.
        for _ in segmenter.stream(files[:: -(-len(files) // IMAGES)], InferenceOptions(batch_size=2, workers=workers)):
            pass
    finally:
        for hook in hooks:
            hook.remove()
        segmenter.module.eval()


def _learn_where_there_is_something(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    norm.train(inputs[0].numel() > inputs[0].shape[1])
