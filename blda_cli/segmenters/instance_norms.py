"""Batch norms that normalise each image partly by its own statistics.

The running statistics and the image's own are mixed, ``λ · running + (1 − λ) · own``, as in DIGA's distribution
adaptation module (Wang et al., "Dynamically Instance-Guided Adaptation", CVPR 2023, eq. 3). Nothing is trained, no pass
over the target is needed, and what else is in the batch does not matter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from blda_cli.core.norms import image_moments, mix_moments

FEW_POSITIONS = 64
"""A layer that sees fewer positions of an image (pooling branches, at most 6 × 6 of them) keeps its running
statistics."""

Moments = tuple[Tensor, Tensor]
"""Means and variances, float32 ``[N, C]``."""

Recorded = list[tuple[Tensor, Tensor, Tensor] | None]
"""The moments of each call of a layer in a forward pass, in order, and of how many positions they are, ``[N, 1]``; None
where there were too few."""


BUFFERS = ("running_mean", "running_var")


def norm_layers(network: nn.Module) -> dict[str, Any]:
    """The layers with running statistics, by name: batch norms, frozen ones, and other layers with such buffers."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if all(isinstance(getattr(layer, kind, None), Tensor) for kind in BUFFERS)
    }


@dataclass(frozen=True)
class Content:
    """The part of the network's input that is image.

    Attributes:
        size: (height, width) at the upper left; what lies beyond is padding. None: all of it.
        mask: bool ``[N, h, w]``, false where a pixel is no data; None: all are data.
    """

    size: tuple[int, int] | None = None
    mask: Tensor | None = None
    _counted: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def within(self, values: Tensor, fed: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What lies over the image in the maps of a layer, and which positions of it count.

        Args:
            values: ``[N, C, height, width]``; of other shapes all is taken.
            fed: shape of the network's input.

        Returns:
            The maps without padding, and bool ``[N, height, width]`` of them; None: all count.
        """
        if len(fed) != 4 or values.ndim != 4 or len(values) != fed[0]:
            return values, None
        if self.size is not None and (fed[2], fed[3]) != self.size:
            height, width = (
                max(1, side * part // full)
                for side, part, full in zip(values.shape[2:], self.size, fed[2:], strict=True)
            )
            values = values[:, :, :height, :width]
        return values, self._counted_of(values.shape[2:])

    def _counted_of(self, shape: Sequence[int]) -> Tensor | None:
        """Which positions of maps of a (height, width) see data alone, bool ``[N, height, width]``; None: all."""
        if self.mask is None:
            return None
        key = tuple(shape)
        if key not in self._counted:  # many layers have maps of one size
            self._counted[key] = F.adaptive_max_pool2d((~self.mask).float(), key) == 0
        return self._counted[key]


class NormHooks:
    """Hooks on the norms of a network, which are told what of the network's input is image.

    Args:
        network: the hooks are on it from the entry of a subclass to its exit.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._hooks: list[RemovableHandle] = []
        self._content = Content()
        self._input: tuple[int, ...] = ()

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def content(self, size: tuple[int, int] | None = None, mask: Tensor | None = None) -> Iterator[None]:
        """Mark which part of the inputs within ``with`` is image; the rest does not count.

        Args:
            size: (height, width) of the image at the upper left of the input, the rest being padding.
            mask: bool ``[N, h, w]`` of that image at any size, false at pixels that are no data. A position of a layer
                counts where all pixels under it do.
        """
        before, self._content = self._content, Content(size, mask)
        try:
            yield
        finally:
            self._content = before

    def _begin(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note the shape of the network's input."""
        self._input = tuple(inputs[0].shape) if inputs and isinstance(inputs[0], Tensor) else ()


class InstanceNorms(NormHooks):
    """Within ``with``, every batch norm normalises by ``weight · running + (1 − weight) · the image's own`` statistics.

    Mean and variance are mixed alike, for each image by itself, in float32. A layer in training mode, or that sees
    fewer than 64 positions of an image, is left unchanged. Where no position of an image is data (see `content`), all
    count. Weights, fused activations and running statistics stay as they are. With a weight of 1 the network is
    untouched.

    Example:
        >>> import torch
        >>> from blda_cli import InstanceNorms
        >>> network = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).eval()
        >>> images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) + 2
        >>> with InstanceNorms(network, weight=0.5):
        ...     normalised = network(images)
        >>> 0.9 < normalised.mean() < 1.1  # half of the shift by 2 is taken out
        tensor(True)

    Args:
        network: its batch norms, frozen ones among them, must be modules that are called.
        weight: λ, 0 to 1: of the running statistics.

    Attributes:
        weight: as given; may be changed between forward passes.

    Raises:
        ValueError: the weight is not in 0..1.
    """

    def __init__(self, network: nn.Module, weight: float = 0.9) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"the weight of the running statistics is {weight:g}, not between 0 and 1")
        super().__init__(network)
        self.weight = weight
        self._put_aside: dict[nn.Module, Moments] = {}
        self._passes: list[Recorded] | None = None
        self._held: list[Moments | None] | None = None
        self._call = 0

    @cached_property
    def _layers(self) -> list[Any]:
        return list(norm_layers(self._network).values())

    def __enter__(self) -> Self:
        _ENTERED.add(self)
        self._hooks = [self._network.register_forward_pre_hook(self._begin)]
        for layer in self._layers:
            self._hooks.append(layer.register_forward_pre_hook(self._before))
            self._hooks.append(layer.register_forward_hook(self._after, always_call=True))
        return self

    def __exit__(self, *_: object) -> None:
        _ENTERED.discard(self)
        super().__exit__()

    @property
    def plain(self) -> bool:
        """Whether each forward pass normalises by its own images alone, and nothing is recorded."""
        return self._passes is None and self._held is None

    @contextmanager
    def recorded(self) -> Iterator[list[Recorded]]:
        """Record the images' own statistics in forward passes within ``with``, for `held`: one list per pass."""
        self._passes = []
        try:
            yield self._passes
        finally:
            self._passes = None

    @contextmanager
    def held(self, passes: Sequence[Recorded]) -> Iterator[None]:
        """Use recorded statistics within ``with``: windows are normalised by those of their whole image.

        Args:
            passes: of one pass over whole images; of several passes, over their parts, the pooled statistics are used.
        """
        self._held = [None if own is None else own[:2] for own in pooled(passes)]
        try:
            yield
        finally:
            self._held = None

    def _begin(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        super()._begin(network, inputs)
        self._call = 0
        if self._passes is not None:
            self._passes.append([])

    def _before(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.weight == 1 or not inputs or (layer.training and isinstance(layer, _BatchNorm)):
            return None
        values: Tensor = inputs[0]
        own = self._own(values) if self._held is None else self._held[self._call]
        self._call += 1
        if self._passes is not None:
            self._passes[-1].append(None if own is None else (*own, self._positions(values)))
        if own is None:
            return None
        running: Moments = layer.running_mean, layer.running_var  # type: ignore[assignment]
        swappable = all(name in layer._buffers for name in BUFFERS)
        learning = own[0].requires_grad or running[0].requires_grad
        if len(values) == 1 and swappable and not learning:  # the layer's own kernel does it, at no cost
            self._put_aside[layer] = running
            # Both at once, as mix_moments does: a GPU is waiting for launches, not for sums.
            mixed = torch._foreach_lerp([one.squeeze(0) for one in own], [one.float() for one in running], self.weight)
            for name, kept, one in zip(BUFFERS, running, mixed, strict=True):
                layer._buffers[name] = one.to(kept.dtype)
            return None
        mean, variance = mix_moments(running, own, self.weight)
        # Values that the layer, normalising by its running statistics, takes to where these would take the given ones.
        eps = getattr(layer, "eps", 1e-5)
        scale = ((running[1].float() + eps) / (variance + eps)).sqrt()
        shift = torch.addcmul(running[0].float(), mean, scale, value=-1)
        shape = (*scale.shape, *[1] * (values.ndim - 2))
        moved = torch.addcmul(shift.view(shape), values, scale.view(shape))
        return (moved.to(values.dtype), *inputs[1:])

    def _after(self, layer: nn.Module, *_: object) -> None:
        if layer in self._put_aside:
            layer._buffers["running_mean"], layer._buffers["running_var"] = self._put_aside.pop(layer)

    def _own(self, values: Tensor) -> Moments | None:
        """Statistics of each image; None where there are too few positions."""
        values, counted = self._content.within(values, self._input)
        return None if values.shape[2:].numel() < FEW_POSITIONS else image_moments(values, counted)

    def _positions(self, values: Tensor) -> Tensor:
        """How many positions of each image count, ``[N, 1]``."""
        values, counted = self._content.within(values, self._input)
        if counted is None:
            return values.new_full((len(values), 1), values.shape[2:].numel(), dtype=torch.float32)
        return counted.flatten(1).sum(dim=1, keepdim=True).float()


_ENTERED: WeakSet[InstanceNorms] = WeakSet()


def mixing(weight: float) -> bool:
    """Whether this runs within :class:`InstanceNorms` of that weight, of any network."""
    return any(norms.weight == weight for norms in _ENTERED)


def pooled(passes: Sequence[Recorded]) -> Recorded:
    """Pool what was recorded of parts of images to what is of the images."""
    return [_pooled(calls) for calls in zip(*passes, strict=True)]


def _pooled(parts: Sequence[tuple[Tensor, Tensor, Tensor] | None]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pool the statistics of parts of images, by the law of total variance."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    means, variances, positions = (torch.stack(kind) for kind in zip(*known, strict=True))
    positions = torch.where(positions.sum(dim=0) > 0, positions, 1.0)  # of an image without data all positions count
    total = positions.sum(dim=0)
    shares = positions / total
    mean = (shares * means).sum(dim=0)
    return mean, (shares * (variances + (means - mean).square())).sum(dim=0), total
