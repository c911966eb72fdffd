"""Inspect a network while it runs: its outputs, the one that is used, its classifier layer, the range of its input."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blda_cli.segmenters.instance_norms import norm_layers
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.outputs import named_outputs
from blda_cli.segmenters.preprocessing import pad_to_multiple


@dataclass(frozen=True)
class Output:
    """A tensor that the network returns.

    Attributes:
        name: what ``[segmenter] head`` calls it.
        shape: its shape.
        used: whether it is used as the scores.
    """

    name: str
    shape: tuple[int, ...]
    used: bool


@dataclass(frozen=True)
class Inspection:
    """Facts about a network, recorded while it ran on one image.

    Attributes:
        network: name of the network's class.
        parameters: how many it has; 0 where it is no PyTorch module.
        outputs: the tensors that it returns.
        channels: of the output that is used.
        batch_norms: how many layers normalise by running statistics.
        feature_layer: the layer whose input are the features that feed the classifier; None where it is not found.
        features: their channels.
        fed: lowest and highest value, mean and standard deviation of every channel of the network's input.
        size_in: (height, width) of the network's input, padding included.
        size_out: of the output that is used; None for a classifier.
    """

    network: str
    parameters: int
    outputs: tuple[Output, ...]
    channels: int
    batch_norms: int
    feature_layer: str | None
    features: int | None
    fed: tuple[tuple[float, float, float, float], ...]
    size_in: tuple[int, int]
    size_out: tuple[int, int] | None


def inspect(segmenter: NetworkSegmenter, image: Tensor) -> Inspection:
    """Run one image through a network and record its outputs and layers.

    Args:
        segmenter: its network is left as it was.
        image: float ``[1, C, H, W]``, pixels in 0..255.

    Raises:
        BldaError: the network returns no scores.
    """
    network = segmenter.network
    module = network if isinstance(network, nn.Module) else None
    with torch.no_grad():
        fed = segmenter.preprocessor(image)
        padded = pad_to_multiple(fed, segmenter.preprocessor.section.multiple_of or 1)
        ran: list[tuple[str, int, int]] = []
        hooks = []
        for name, layer in () if module is None else module.named_modules():
            if getattr(layer, "weight", None) is not None and layer.weight.dim() >= 2:
                hooks.append(layer.register_forward_hook(_noting(name, ran)))
        try:
            result = network(padded.expand(segmenter.port.batch or 1, -1, -1, -1))
        finally:
            for hook in hooks:
                hook.remove()
        used, scores = segmenter.port.read(result), segmenter.read_scores(result, padded)
    layer = next((entry for entry in reversed(ran) if entry[2] == scores.shape[1]), None)
    flat = fed[0].flatten(1).double()
    statistics = torch.stack([flat.amin(1), flat.amax(1), flat.mean(1), flat.std(1, correction=0)], dim=1)
    return Inspection(
        network=type(network).__name__,
        parameters=0 if module is None else sum(one.numel() for one in module.parameters()),
        outputs=tuple(Output(name, tuple(value.shape), value is used) for name, value in named_outputs(result).items()),
        channels=scores.shape[1],
        batch_norms=0 if module is None else len(norm_layers(module)),
        feature_layer=None if layer is None else layer[0],
        features=None if layer is None else layer[1],
        fed=tuple((low, high, mean, spread) for low, high, mean, spread in statistics.tolist()),
        size_in=(padded.shape[2], padded.shape[3]),
        size_out=(scores.shape[2], scores.shape[3]) if scores.ndim == 4 else None,
    )


def _noting(name: str, ran: list[tuple[str, int, int]]) -> Any:
    """A hook that notes name, input channels and output channels of a layer that runs."""

    def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor) and output.ndim >= 2:
            ran.append((name, inputs[0].shape[1], output.shape[1]))

    return note
