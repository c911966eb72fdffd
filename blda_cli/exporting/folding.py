"""Fold offsets into a network's last layer, at no cost at run time.

A layer can take the offsets if moving its bias moves the network's output by the same amount at every pixel, also
through an upsampling or a sum with another head. Layers are found by running the network and recording which of them
ran; whether one can take the offsets is measured, not deduced.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from blda_cli.segmenters.outputs import find_scores

CANDIDATES = 16
"""Layers that are tried, from the last one back: a network has one or two heads."""

_TOLERANCE = 1e-4
"""How uniform the output's change must be, as a share of the largest logit: single precision leaves 1e-6 or so."""


@dataclass(frozen=True)
class Fold:
    """A layer that can take offsets.

    Attributes:
        layer: its name within the network.
        gain: what each channel of the output moves by when the layer's bias moves by 1, float32 ``[K]`` on the CPU.
        new_bias: the layer has no bias so far.
    """

    layer: str
    gain: Tensor
    new_bias: bool


def find_fold(network: nn.Module, images: Tensor, read: Callable[[Any], Tensor] = find_scores) -> Fold | None:
    """Find a layer that can take offsets of the output's channels.

    Args:
        network: is as before afterwards.
        images: ``[N, 3, h, w]``, made as the network takes them.
        read: finds the scores ``[N, K, *spatial]`` in what the network returns.

    Returns:
        The last such layer to run, one that has a bias already if there is one; None where no layer can take them.
    """
    with torch.no_grad(), evaluating(network):
        before, ran = _run_recording(network, images, read)
        for name in _candidates(network, before.shape[1], ran)[:CANDIDATES]:
            fold = _tried(network, name, images, read, before)
            if fold is not None:
                return fold
    return None


def fold_offsets(network: nn.Module, fold: Fold, offsets: Tensor) -> None:
    """Move a layer's bias so that the network's output moves by offsets.

    Args:
        network: is changed.
        fold: from :func:`find_fold` for this network.
        offsets: ``[K]``, one per channel of the output.
    """
    layer = dict(network.named_modules())[fold.layer]
    if fold.new_bias:
        _add_bias(layer)
    bias: Any = layer.bias
    with torch.no_grad():
        bias.add_((offsets.float().cpu() / fold.gain).to(bias))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode within ``with``."""
    training = [module for module in network.modules() if module.training]
    for module in training:  # not .eval(), which programs of torch.export do not have
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _run_recording(network: nn.Module, images: Tensor, read: Callable[[Any], Tensor]) -> tuple[Tensor, dict[str, int]]:
    """The scores, and when each module ran last; programs of TorchScript and ``torch.export`` record nothing."""
    ran: dict[str, int] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(*_: object) -> None:
            ran.pop(name, None)
            ran[name] = len(ran)

        return record

    modules = [] if isinstance(network, torch.jit.ScriptModule) else network.named_modules()
    hooks = [
        module.register_forward_hook(recorder(name))
        for name, module in modules
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        scores = read(network(images)).detach().clone()
    finally:
        for hook in hooks:
            hook.remove()
    return scores, {name: place for place, name in enumerate(ran)}


def _candidates(network: nn.Module, channels: int, ran: dict[str, int]) -> list[str]:
    """Names of layers with room for one bias per channel: those with a bias before those without, last first."""
    fitting = {name: layer for name, layer in network.named_modules() if _fits(layer, channels)}
    place = {name: (ran.get(name, -1), index) for index, name in enumerate(fitting)}
    return sorted(
        fitting, key=lambda name: (getattr(fitting[name], "bias", None) is not None, *place[name]), reverse=True
    )


def _fits(layer: nn.Module, channels: int) -> bool:
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        return bias.shape == (channels,) and bias.is_floating_point()
    if isinstance(layer, _ConvNd):
        return layer.out_channels == channels
    return isinstance(layer, nn.Linear) and layer.out_features == channels


def _tried(network: nn.Module, name: str, images: Tensor, read: Callable[[Any], Tensor], before: Tensor) -> Fold | None:
    """The layer as one that can take offsets; None if it cannot."""
    layer = dict(network.named_modules())[name]  # programs of TorchScript have no get_submodule
    new_bias = getattr(layer, "bias", None) is None
    if new_bias:
        _add_bias(layer)
    bias: Any = layer.bias
    own = bias.detach().clone()

    def moved_by(step: Tensor) -> Tensor:
        bias.copy_(own + step.to(own))
        return read(network(images))

    try:
        gain = measure_gain(moved_by, before)
    finally:
        bias.copy_(own)
        if new_bias:
            layer.register_parameter("bias", None)
    return None if gain is None else Fold(name, gain, new_bias)


def measure_gain(moved_by: Callable[[Tensor], Tensor], before: Tensor) -> Tensor | None:
    """How far the channels of a network's output move with a bias.

    Args:
        moved_by: the scores once the bias is moved by float32 ``[K]``.
        before: the scores ``[N, K, *spatial]`` as they are.

    Returns:
        What each channel moves by where the bias moves by 1, float32 ``[K]`` on the CPU; None where that is not the
        same at every pixel, depends on how far the bias moves, or is next to nothing.
    """
    # Steps as large as the logits, and of both signs: what bends (a softmax, a ReLU) shows.
    size = float(before.abs().max().clamp_min(1))
    tolerance = max(_TOLERANCE, 4 * torch.finfo(before.dtype).eps)
    generator = torch.Generator().manual_seed(0)
    gains = []
    for _ in range(2):
        signs = 2.0 * torch.randint(2, (before.shape[1],), generator=generator) - 1
        step = size * signs * (0.5 + torch.rand(before.shape[1], generator=generator))
        moved = (moved_by(step) - before).float().cpu().transpose(0, 1).flatten(1)
        if not float((moved.amax(dim=1) - moved.amin(dim=1)).max()) <= tolerance * size:  # NaN is refused too
            return None
        gains.append(moved.mean(dim=1) / step)
    gain, other = gains
    if float((gain - other).abs().max()) > 4 * tolerance or float(gain.abs().min()) < 0.01:
        return None
    whole = gain.round()  # almost always 1: exactly so, once rounding is taken off
    return torch.where((gain - whole).abs() <= 4 * tolerance, whole, gain)


def _add_bias(layer: nn.Module) -> None:
    weight: Any = layer.weight
    outputs = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
    bias = nn.Parameter(weight.new_zeros(int(outputs)), requires_grad=weight.requires_grad)  # type: ignore[arg-type]
    layer.register_parameter("bias", bias)
