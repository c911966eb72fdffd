"""Corrections as modules, and a network followed by one."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blda_cli.core.choices import LogitSpace
from blda_cli.core.corrections import (
    Correction,
    LinearCorrection,
    LocationCorrection,
    OffsetCorrection,
    QuantileCorrection,
    SpatialCorrection,
    exponentiable,
    location_scores,
    quantile_scores,
)
from blda_cli.core.spatial_priors import at_size
from blda_cli.segmenters.grouping import Grouping
from blda_cli.segmenters.outputs import find_scores, log_probabilities


class Offsets(nn.Module):
    """Adds one number per class: ``f_l + o_l``."""

    offsets: Tensor

    def __init__(self, offsets: Tensor) -> None:
        super().__init__()
        self.register_buffer("offsets", offsets.clone())

    def forward(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C, *spatial]`` to logits of the same shape."""
        return logits + over_channels(self.offsets, logits)


class Factors(nn.Module):
    """Multiplies probabilities ``p_l`` by ``exp(o_l)``: as :class:`Offsets` on their logarithms.

    The products are not normalised, so that resizing them is the same before and after.
    """

    factors: Tensor

    def __init__(self, offsets: Tensor) -> None:
        super().__init__()
        # Divided by the largest: probabilities stay within 0..1.
        self.register_buffer("factors", (offsets - offsets.max()).exp())

    def forward(self, probabilities: Tensor) -> Tensor:
        """Probabilities ``[N, C, *spatial]``, normalised or not, to such of the same shape."""
        return probabilities * over_channels(self.factors, probabilities)


class Location(nn.Module):
    """Scores of :class:`LocationCorrection`."""

    shifts: Tensor

    def __init__(self, shifts: Tensor) -> None:
        super().__init__()
        self.register_buffer("shifts", shifts.clone())
        self._exponentiable = exponentiable(shifts)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C, *spatial]`` to scores of the same shape."""
        return location_scores(logits, self.shifts, exponentiable=self._exponentiable)


class Quantile(nn.Module):
    """Scores of :class:`QuantileCorrection`."""

    shifts: Tensor

    def __init__(self, shifts: Tensor, limit: float, space: LogitSpace) -> None:
        super().__init__()
        self.register_buffer("shifts", shifts.clone())
        self._limit = limit
        self._space = space

    def forward(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C, *spatial]`` to scores of the same shape."""
        return quantile_scores(logits, self.shifts, self._limit, self._space)


class Linear(nn.Module):
    """Logits of :class:`LinearCorrection`: ``f_c + Σ_l f_l A[l, c] + b_c``."""

    matrix: Tensor
    bias: Tensor

    def __init__(self, linear: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", linear.clone())
        self.register_buffer("bias", bias.clone())

    def forward(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C, *spatial]`` to logits of the same shape."""
        logits = logits.float()
        fitted = torch.einsum("lc,nl...->nc...", self.matrix, logits)
        return logits + fitted + over_channels(self.bias, logits)


class Spatial(nn.Module):
    """Logits of :class:`SpatialCorrection`: ``f_c + o_c + τ log q_n(c)``."""

    offsets: Tensor
    priors: Tensor

    def __init__(self, offsets: Tensor, priors: Tensor, tau: float) -> None:
        super().__init__()
        self.register_buffer("offsets", offsets.clone())
        self.register_buffer("priors", priors.clone())
        self._tau = tau

    def forward(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C, H, W]`` of whole images to logits of the same shape."""
        # Finite, though as good as ruled out: what reads the logits may refuse infinities.
        priors = at_size(self.priors, (logits.shape[2], logits.shape[3])).log().clamp_min(-1e4)
        return logits.float() + over_channels(self.offsets, logits) + self._tau * priors


class LogProbabilities(nn.Module):
    """Logits of probabilities, see :func:`blda_cli.segmenters.outputs.log_probabilities`."""

    def forward(self, probabilities: Tensor) -> Tensor:
        """Probabilities ``[N, C, *spatial]`` to logits of the same shape."""
        return log_probabilities(probabilities)


class Groups(nn.Module):
    """Logits of groups of classes, see :class:`blda_cli.segmenters.grouping.Grouping`."""

    def __init__(self, members: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self._grouping = Grouping(members)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C, *spatial]`` of classes to ``[N, G, *spatial]`` of groups."""
        return self._grouping(logits)


class ArgMax(nn.Module):
    """The class of every pixel."""

    def forward(self, scores: Tensor) -> Tensor:
        """Scores ``[N, C, *spatial]`` to int64 ``[N, *spatial]``."""
        return scores.argmax(dim=1)


class FirstChannels(nn.Module):
    """Keeps the first channels."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def forward(self, scores: Tensor) -> Tensor:
        """``[N, K, *spatial]`` to ``[N, count, *spatial]``."""
        return scores[:, : self._count]


def correction_module(correction: Correction) -> nn.Module:
    """A correction as a module: logits ``[N, C, *spatial]`` in, values whose argmax is its prediction out.

    Raises:
        TypeError: there is no module for it.
    """
    match correction:
        case OffsetCorrection():
            return Offsets(correction.offsets)
        case LocationCorrection():
            return Location(correction.shifts)
        case QuantileCorrection():
            return Quantile(correction.shifts, correction.limit, correction.space)
        case LinearCorrection():
            return Linear(correction.linear, correction.bias)
        case SpatialCorrection():
            if correction.tau == 0:  # zeros of the priors times 0 are no numbers
                return Offsets(correction.offsets)
            return Spatial(correction.offsets, correction.priors, correction.tau)
    raise TypeError(f"{type(correction).__name__} has no module")


class Tail(nn.Module):
    """The stages behind a network's scores.

    Attributes:
        stages: modules that the scores go through, one after the other.
        at_input_size: the scores are first resized to the size of the images, as ``blda align`` does it, for stages
            that do not give the same before and after resizing.
    """

    def __init__(self, stages: Sequence[nn.Module], *, at_input_size: bool = False) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.at_input_size = at_input_size

    def forward(self, scores: Tensor, images: Tensor) -> Tensor:
        """Scores ``[N, K, *spatial]`` of images ``[N, 3, H, W]`` to the output of the last stage."""
        if self.at_input_size and scores.ndim == 4:
            scores = F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)
        for stage in self.stages:
            scores = stage(scores)
        return scores


class Corrected(nn.Module):
    """A network and the stages behind its scores.

    Attributes:
        network: takes images ``[N, 3, h, w]``.
        tail: the stages behind its scores.
    """

    def __init__(
        self,
        network: nn.Module,
        tail: Tail,
        *,
        read: Callable[[Any], Tensor] = find_scores,
        like_network: bool = False,
        half: bool = False,
    ) -> None:
        """Put a network before a tail.

        Args:
            network: the network.
            tail: the stages behind its scores.
            read: finds the scores in the network's return value.
            like_network: return the network's return value with the new scores in it, not the scores alone.
            half: the network computes in float16: images are converted, and scores are converted back to float32.
        """
        super().__init__()
        self.network = network
        self.tail = tail
        self._read = read
        self._like_network = like_network
        self._half = half

    def forward(self, images: Tensor) -> Any:
        """Run images ``[N, 3, h, w]``, made as the network takes them."""
        output = self.network(images.half() if self._half else images)
        found = self._read(output)
        scores = self.tail(found.float() if self._half else found, images)
        return with_scores(output, found, scores) if self._like_network else scores


def with_scores(output: Any, found: Tensor, scores: Tensor) -> Any:
    """A network's return value with its scores replaced.

    Args:
        output: a tensor, a mapping, an object with ``.logits`` or a sequence; not changed.
        found: the scores in it, as :func:`find_scores` found them.
        scores: take their place.

    Returns:
        An object like ``output``.
    """
    if output is found:
        return scores
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        for key, value in output.items():
            changed[key] = with_scores(value, found, scores)
        return changed
    if isinstance(output, list | tuple):
        entries = [with_scores(value, found, scores) for value in output]
        return type(output)(*entries) if hasattr(output, "_fields") else type(output)(entries)
    if not isinstance(output, Tensor) and hasattr(output, "logits"):
        changed = copy.copy(output)
        changed.logits = with_scores(output.logits, found, scores)
        return changed
    return output


def over_channels(values: Tensor, scores: Tensor) -> Tensor:
    """``[C]`` in a shape that broadcasts over ``[N, C, *spatial]``."""
    return values.view(-1, *[1] * (scores.ndim - 2))
