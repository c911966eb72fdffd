"""Put a correction into a network: into its last layer where possible, else behind it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blda_cli.core.corrections import Correction, LinearCorrection, OffsetCorrection
from blda_cli.core.norms import MixedNorms, Norms
from blda_cli.errors import BldaError
from blda_cli.exporting.folding import evaluating, find_fold, fold_offsets
from blda_cli.exporting.modules import Corrected, Factors, Groups, LogProbabilities, Offsets, Tail, correction_module
from blda_cli.exporting.norms import mix_with_images
from blda_cli.segmenters.grouping import Grouping
from blda_cli.segmenters.norms import put_norms
from blda_cli.segmenters.outputs import find_scores
from blda_cli.segmenters.reasons import reason


@dataclass(frozen=True)
class Parts:
    """A network that holds a correction, or a part of it, and the stages for the rest.

    Attributes:
        network: the network, changed.
        stages: modules that the scores of the classes go through, one after the other.
        at_input_size: the stages are for scores at the size of the network's input.
        logits: the results are logits (or scores equivalent to them), not probabilities.
        layer: the layer that took the offsets; None where none did.
        new_bias: that layer had no bias before.
    """

    network: nn.Module
    stages: tuple[nn.Module, ...] = ()
    at_input_size: bool = False
    logits: bool = True
    layer: str | None = None
    new_bias: bool = False


@dataclass(frozen=True)
class Scores:
    """Kind and channels of a network's scores.

    Attributes:
        channels: how many channels the network gives.
        outputs: how many of them, the first ones, are of classes.
        probabilities: they are probabilities, not logits.
        grouping: makes the logits that a correction is for; None: the classes' own.
    """

    channels: int
    outputs: int
    probabilities: bool = False
    grouping: Grouping | None = None


Fold = Callable[[Tensor], tuple[str, bool] | None]
"""Moves the bias of a layer so that a network's output moves by offsets ``[K]``; the layer's name and whether it had no
bias before, or None where no layer can take them."""


def correct(network: nn.Module, correction: Correction, scores: Scores, fold: Fold) -> Parts:
    """Put a correction into a network.

    Offsets go into the bias of the last layer where it can take them, else they are added behind the network;
    probabilities are multiplied by their exponentials. Resizing corrected scores gives the same as correcting resized
    ones, as the weights of neighbouring pixels sum to one; the same holds for a linear map of logits. Any other
    correction works on resized scores.

    Each member of a group takes the group's offset: the group's logit, the logsumexp of theirs, moves by as much.
    Classes in no group keep their logits.

    Args:
        network: is changed.
        correction: for logits of the classes, or of the groups of them.
        scores: kind and channels of the network's scores.
        fold: moves the bias of one of its layers.

    Returns:
        The network and the stages behind it.

    Raises:
        BldaError: ``correction`` works on groups and is not one offset per class.
    """
    if not isinstance(correction, OffsetCorrection):
        stages: list[nn.Module] = [LogProbabilities()] if scores.probabilities else []
        stages += [Groups(scores.grouping.members)] if scores.grouping else []
        linear = isinstance(correction, LinearCorrection) and not stages
        return Parts(network, (*stages, correction_module(correction)), at_input_size=not linear)
    offsets = correction.offsets.cpu()
    if not bool(offsets.any()):
        return Parts(network, logits=not scores.probabilities)
    offsets = of_channels(offsets, scores.grouping, scores.channels)
    if scores.probabilities:
        return Parts(network, (Factors(offsets[: scores.outputs]),), logits=False)
    folded = fold(offsets)
    if folded is None:
        return Parts(network, (Offsets(offsets[: scores.outputs]),))
    layer, new_bias = folded
    return Parts(network, layer=layer, new_bias=new_bias)


def into_layers(network: nn.Module, images: Tensor, read: Callable[[Any], Tensor] = find_scores) -> Fold:
    """How offsets are folded into a PyTorch network, see :mod:`blda_cli.exporting.folding`.

    Args:
        network: the network.
        images: ``[N, 3, h, w]``, made as it takes them, to try it on.
        read: finds the scores in its return value.
    """

    def fold(offsets: Tensor) -> tuple[str, bool] | None:
        found = find_fold(network, images, read)
        if found is None:
            return None
        fold_offsets(network, found, offsets)
        return found.layer, found.new_bias

    return fold


def corrected_module(
    network: nn.Module,
    correction: Correction,
    *,
    classes: int,
    norms: Norms | MixedNorms | None = None,
    images: Tensor | None = None,
    probabilities: bool = False,
) -> nn.Module:
    """A copy of a network with a correction in it, which takes the network's place.

    Args:
        network: gives scores of the classes, see :func:`blda_cli.segmenters.outputs.find_scores`.
        correction: for its logits.
        classes: how many channels the network has to have.
        norms: norm statistics to be put into the copy, or the weight for mixing them with each image's own.
        images: ``[N, 3, h, w]``, made as the network takes them, to try it on; None: random ones.
        probabilities: the network returns probabilities.

    Returns:
        The copy where that suffices, else a module that holds it as ``network`` and returns its output with the
        corrected scores in it.

    Raises:
        BldaError: the network cannot be run, has other channels, or other batch norms.
    """
    network = copy.deepcopy(network)
    if isinstance(norms, MixedNorms):
        mix_with_images(network, norms.weight)
    elif norms is not None:
        put_norms(network, norms)
    tried_on = _random_images(network) if images is None else images
    channels = _channels(network, tried_on)
    if channels != classes:
        raise BldaError(f"the network gives {channels} channels, the correction is for {classes} classes")
    scores = Scores(channels, channels, probabilities)
    parts = correct(network, correction, scores, into_layers(network, tried_on))
    if not parts.stages:
        return parts.network
    tail = Tail(parts.stages, at_input_size=parts.at_input_size)
    corrected = Corrected(parts.network, tail, like_network=True)
    return corrected.to(tried_on.device).train(network.training)


def _random_images(network: nn.Module) -> Tensor:
    weights = next((one for one in network.parameters() if one.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, 256, 320, generator=generator).to(weights)


def _channels(network: nn.Module, images: Tensor) -> int:
    with torch.no_grad(), evaluating(network):
        try:
            return find_scores(network(images)).shape[1]
        except BldaError:
            raise
        except Exception as error:  # a network may raise anything
            raise BldaError(
                f"the network fails on an input of shape {list(images.shape)}, give images it takes: {reason(error)}"
            ) from error


def of_channels(offsets: Tensor, grouping: Grouping | None, channels: int) -> Tensor:
    """Offsets of classes, or of groups of them, as offsets of a network's channels.

    Args:
        offsets: float32 ``[C]`` of the first channels, or ``[G]`` of groups of channels.
        grouping: the groups.
        channels: K, how many there are; those of no class or group get 0.

    Returns:
        float32 ``[K]``.
    """
    result = offsets.new_zeros(channels)
    if grouping is None:
        result[: len(offsets)] = offsets
    else:
        for offset, members in zip(offsets, grouping.members, strict=True):
            result[list(members)] = offset
    return result
