"""Batch norms that mix their statistics with each image's own, as a part of the network."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from blda_cli.core.norms import image_moments, mix_moments
from blda_cli.segmenters.instance_norms import FEW_POSITIONS, norm_layers


def mix_with_images(network: nn.Module, weight: float) -> None:
    """Let a network's batch norms mix their running statistics with each image's own, wherever it runs.

    Each takes a hook, which tracing and compiling follow; names and weights stay as they are.

    Args:
        network: is changed.
        weight: λ, of the running statistics; 1 changes nothing.
    """
    if weight != 1:
        for layer in norm_layers(network).values():
            layer.register_forward_pre_hook(MixImage(weight))


class MixImage:
    """Hook before a batch norm, so that it normalises partly by each image's own statistics.

    It does what :class:`blda_cli.segmenters.instance_norms.InstanceNorms` does, in a form that programs can hold: the
    values are moved so that the layer, which normalises by its running statistics, takes them to where the mixed ones
    would. What follows in the layer, a fused activation say, stays.

    Attributes:
        weight: λ, of the running statistics.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The layer's inputs, its values ``[N, C, *spatial]`` moved; None in training, where they stay."""
        if layer.training and isinstance(layer, _BatchNorm):
            return None
        values: Tensor = inputs[0]
        running: tuple[Tensor, Tensor] = layer.running_mean, layer.running_var  # type: ignore[assignment]
        # Counted as a tensor: a program for images of any size holds no decision by their size.
        positions = torch.ones_like(values[:1, :1], dtype=torch.float32).sum()
        weight = torch.where(positions >= FEW_POSITIONS, self.weight, 1.0)
        mean, variance = mix_moments(running, image_moments(values), weight)
        eps = getattr(layer, "eps", 1e-5)
        scale = ((running[1].float() + eps) / (variance + eps)).sqrt()
        shift = running[0].float() - mean * scale
        shape = (*scale.shape, *[1] * (values.ndim - 2))
        return (torch.addcmul(shift.view(shape), values.float(), scale.view(shape)).to(values.dtype), *inputs[1:])
