"""The network in training: finding its classifier and encoder, recording their features, the added density head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blda_cli.errors import BldaError
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.segmenters.network import NetworkSegmenter

_ENCODER_NAMES = ("encoder", "backbone")


@dataclass
class Outputs:
    """Outputs of a forward pass of the student, or of a network that labels.

    Attributes:
        logits: ``[N, C, h, w]`` at the images' size.
        features: ``[N, D, h', w']``, the classifier's input; None where no such layer is found.
        density: ``[N, h, w]`` in (0, 1), where there is a density head.
        encoder_features: ``[N, D, h', w']``, the encoder's last, where they are recorded.
        encoder_inputs: the encoder's inputs, for its frozen copy.
    """

    logits: Tensor
    features: Tensor | None = None
    density: Tensor | None = None
    encoder_features: Tensor | None = None
    encoder_inputs: tuple[tuple[Any, ...], dict[str, Any]] = field(default_factory=lambda: ((), {}))

    def repeated(self, times: int) -> "Outputs":
        """Logits and density for several labellings of the same images, ``[times · N, ...]``."""
        density = None if self.density is None else self.density.repeat(times, 1, 1)
        return replace(self, logits=self.logits.repeat(times, 1, 1, 1), density=density)


@dataclass
class _Tapped:
    """Tensors that hooks recorded in the last forward pass."""

    classifier_input: Tensor | None = None
    encoder_output: Any = None
    encoder_inputs: tuple[tuple[Any, ...], dict[str, Any]] = field(default_factory=lambda: ((), {}))


class DensityHead(nn.Module):
    """Predicts the cumulative density of a pixel's own logit from the features that feed the classifier."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = min(channels, 64)
        self.layers = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """``[N, *size]`` in (0, 1) from features ``[N, D, h, w]``."""
        logits = F.interpolate(self.layers(features), size, mode="bilinear", align_corners=False)
        return logits.squeeze(1).float().sigmoid()


class Student(nn.Module):
    """A segmenter's network with hooks that record features, and a density head.

    Attributes:
        network: the network itself.
        density_head: None where no method needs it.
        classifier: name of the layer whose input are the features; None where none can be found.
        encoder: name of the encoder; None where the network has no part that can be called so.
    """

    def __init__(
        self,
        segmenter: NetworkSegmenter,
        *,
        density: bool,
        feature_layer: str | None,
        crop: tuple[int, int],
        features: bool = False,
    ) -> None:
        """Find the parts by running a grey image of the crop's size.

        Args:
            segmenter: has the network.
            density: a density head is needed.
            feature_layer: the layer whose input are the features; None: it is searched for.
            crop: (height, width) of the training crops.
            features: they are needed.

        Raises:
            BldaError: the network cannot be trained, has no such feature layer, or none can be found.
        """
        super().__init__()
        self.network = segmenter.module
        self._tapped = _Tapped()
        trace = _trace(segmenter, self.network, crop)
        self.encoder = encoder_of(self.network)
        self.classifier = _feature_layer(self.network, trace, feature_layer)
        self.density_head: DensityHead | None = None
        seen = trace.inputs.get(self.classifier or "")
        if seen is None or seen.dim() != 4:
            if density or features:
                raise BldaError(
                    f"{f'the input of {feature_layer}' if feature_layer else 'what feeds the classifier'} is no map of "
                    "features [N, D, h, w]: name the layer that takes one with --feature-layer, or use --method dacs"
                )
        else:
            if density:
                self.density_head = DensityHead(seen.shape[1]).to(segmenter.device)
            assert self.classifier is not None
            self.network.get_submodule(self.classifier).register_forward_pre_hook(self._see_features)
        if self.encoder is not None:
            self.network.get_submodule(self.encoder).register_forward_hook(self._see_encoder, with_kwargs=True)

    def forward(self, images: Tensor, size: tuple[int, int]) -> tuple[Any, Tensor | None, Tensor | None, Any]:
        """The network's output, the classifier's input, the density ``[N, *size]`` and the encoder's output."""
        output = self.network(images)
        features, density = self._tapped.classifier_input, None
        if self.density_head is not None:
            density = self.density_head(features, size)
        return output, features, density, self._tapped.encoder_output

    def parameter_groups(self, learning_rate: float, head_factor: float, weight_decay: float) -> list[dict[str, Any]]:
        """The encoder's parameters and the others with their learning rates; those of norms without weight decay.

        The encoder is what `encoder_of` finds; where it finds nothing, all but the classifier layer.
        """
        if self.encoder is not None:
            slow = set(self.network.get_submodule(self.encoder).parameters())
        else:
            head = set(self.network.get_submodule(self.classifier).parameters()) if self.classifier else set()
            slow = set(self.network.parameters()) - head
        norms = {one for module in self.modules() if is_norm(module) for one in module.parameters(recurse=False)}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for one in self.parameters():
            if one.requires_grad:
                groups.setdefault((one in slow, one in norms), []).append(one)
        return [
            {
                "params": parameters,
                "lr": learning_rate * (1 if is_slow else head_factor),
                "weight_decay": 0.0 if of_norms else weight_decay,
            }
            for (is_slow, of_norms), parameters in groups.items()
        ]

    def _see_features(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._tapped.classifier_input = inputs[0]

    def _see_encoder(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._tapped.encoder_output = last_features(output)
        self._tapped.encoder_inputs = (args, kwargs)


def run_student(
    segmenter: NetworkSegmenter,
    student: Student,
    forward: Callable[..., Any],
    images: Tensor,
    norms: InstanceNorms | None = None,
) -> Outputs:
    """A forward pass at the images' size.

    Args:
        segmenter: prepares the images and reads the logits.
        student: the student.
        forward: the student itself or what wraps it (DistributedDataParallel).
        images: float ``[N, 3, h, w]``, RGB in 0..255.
        norms: the student's, where they are active.
    """
    size = (images.shape[2], images.shape[3])
    seen: dict[str, Any] = {}

    def network(inputs: Tensor) -> Any:
        output, seen["features"], seen["density"], seen["encoder_features"] = forward(inputs, size)
        return output

    logits = segmenter.forward_logits(images, size, network, norms)
    return Outputs(logits, **seen, encoder_inputs=student._tapped.encoder_inputs)


@torch.no_grad()
def run_labelling(
    segmenter: NetworkSegmenter,
    network: nn.Module,
    classifier: str | None,
    images: Tensor,
    norms: InstanceNorms | None = None,
) -> Outputs:
    """A forward pass of a network that labels, a copy of the student's, without gradients.

    Args:
        segmenter: prepares the images and reads the logits.
        network: the copy.
        classifier: the layer whose input are the features; None: none are wanted.
        images: float ``[N, 3, h, w]``, RGB in 0..255.
        norms: the copy's, where they are mixed with each image's own statistics.
    """
    size = (images.shape[2], images.shape[3])
    if classifier is None:
        return Outputs(segmenter.forward_logits(images, size, network, norms))
    with features_before(network, classifier) as seen:
        logits = segmenter.forward_logits(images, size, network, norms)
    return Outputs(logits, features=seen[-1] if seen[-1].dim() == 4 else None)


@contextmanager
def features_before(network: nn.Module, classifier: str) -> Iterator[list[Tensor]]:
    """Within ``with``, the input of a layer in every forward pass is appended to the list."""
    seen: list[Tensor] = []
    layer = network.get_submodule(classifier)
    handle = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def is_norm(module: nn.Module) -> bool:
    """Whether a layer normalises, torch's own or a library's, by the name of its type."""
    return "norm" in type(module).__name__.lower()


def encoder_of(network: nn.Module) -> str | None:
    """Name of the module that serves as the encoder.

    A child called ``encoder`` or ``backbone``, or else the first child if it holds more than half of the
    parameters; searched within the child where a network has only one.
    """
    prefix = ""
    while True:
        children = {
            name: child for name, child in network.named_children() if next(child.parameters(), None) is not None
        }
        if len(children) != 1:
            break
        name, network = next(iter(children.items()))
        prefix += f"{name}."
    for name in _ENCODER_NAMES:
        if name in children:
            return prefix + name
    total = sum(one.numel() for one in network.parameters())
    for name, child in children.items():
        if not isinstance(network, nn.Sequential) and sum(one.numel() for one in child.parameters()) > total / 2:
            return prefix + name
        break
    return None


def last_features(output: Any) -> Tensor | None:
    """The last map of features ``[N, D, h, w]`` in what an encoder returns."""
    if isinstance(output, Tensor):
        return output if output.dim() == 4 else None
    values = output.values() if hasattr(output, "values") else output if isinstance(output, list | tuple) else ()
    found = [one for one in map(last_features, values) if one is not None]
    return found[-1] if found else None


@dataclass
class _Trace:
    """Layers with a weight matrix in the order they ran: their inputs, and the channels of their outputs."""

    inputs: dict[str, Tensor]
    channels: dict[str, int]
    classes: int


def _trace(segmenter: NetworkSegmenter, network: nn.Module, crop: tuple[int, int]) -> _Trace:
    trace = _Trace({}, {}, 0)

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                trace.inputs.pop(name, None)
                trace.channels.pop(name, None)
                trace.inputs[name] = inputs[0]
                trace.channels[name] = output.shape[1] if output.dim() == 4 else output.shape[-1]

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    was_training = network.training
    network.eval()

    def run(images: Tensor) -> Any:
        output = network(images)
        trace.classes = segmenter.read_scores(output, images).shape[1]
        return output

    try:
        with torch.no_grad():
            grey = torch.full((1, segmenter.preprocessor.section.channels, *crop), 127.0, device=segmenter.device)
            logits = segmenter.forward_logits(grey, crop, run)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    if logits.dim() != 4:
        raise BldaError("finetune trains segmenters; this model gives one answer per image")
    return trace


def _feature_layer(network: nn.Module, trace: _Trace, asked: str | None) -> str | None:
    if asked is not None:
        if asked not in trace.inputs:
            raise BldaError(
                f"--feature-layer {asked}: the network runs no such layer; its last ones are "
                f"{', '.join(list(trace.inputs)[-5:])}"
            )
        return asked
    matrices = [
        name
        for name, channels in trace.channels.items()
        if channels == trace.classes and getattr(network.get_submodule(name), "weight", torch.empty(0)).dim() >= 2
    ]
    return matrices[-1] if matrices else None
