"""Corrections of logits: given a pixel's logits, debiased scores and the debiased class."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from blda_cli.core import kernels
from blda_cli.core.choices import LogitSpace
from blda_cli.core.logit_space import to_space
from blda_cli.core.spatial_priors import at_size

_LARGEST_SPAN = 64.0


class Correction(Protocol):
    """A rule that turns logits into scores; the class with the highest score is the prediction."""

    def scores(self, logits: Tensor) -> Tensor:
        """Scores of every class.

        Args:
            logits: ``[N, C, *spatial]`` floating point.

        Returns:
            float32 of the same shape, log-probabilities of each class under its own hypothesis; they need not sum
            to one over the classes.
        """

    def predict(self, logits: Tensor) -> Tensor:
        """Class ids.

        Args:
            logits: ``[N, C, *spatial]`` floating point.

        Returns:
            int64 ``[N, *spatial]``, the argmax of :meth:`scores`.
        """

    def to(self, device: torch.device) -> "Correction":
        """The same rule for logits on another device."""


@dataclass(frozen=True)
class OffsetCorrection:
    """One offset per class: ``f_l + o_l``.

    Attributes:
        offsets: float32 ``[C]``; zeros leave the network's own argmax.
    """

    offsets: Tensor

    def scores(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`; here they do sum to one."""
        return torch.log_softmax(logits.float() + _over_channels(self.offsets, logits), dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`."""
        return _shaped(kernels.align_offset(_flat(logits), self.offsets), logits)

    def to(self, device: torch.device) -> "OffsetCorrection":
        """See :class:`Correction`."""
        return replace(self, offsets=self.offsets.to(device))


@dataclass(frozen=True)
class LocationCorrection:
    """Constant shifts per hypothesis: ``score_c = f_c + L[c, c] − log Σ_l exp(f_l + L[c, l])``.

    Attributes:
        shifts: ``τ L``, float32 ``[C, C]``, hypothesis and channel.
    """

    shifts: Tensor

    def scores(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`."""
        return location_scores(logits, self.shifts, exponentiable=self._exponentiable)

    def predict(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`."""
        if not self._exponentiable:
            return kernels.argmax(self.scores(logits)).long()
        return _shaped(kernels.align_location(_flat(logits), self.shifts), logits)

    def to(self, device: torch.device) -> "LocationCorrection":
        """See :class:`Correction`."""
        return replace(self, shifts=self.shifts.to(device))

    @cached_property
    def _exponentiable(self) -> bool:
        return exponentiable(self.shifts)


@dataclass(frozen=True)
class QuantileCorrection:
    """Shifts that depend on the logit: ``score_c = log softmax_l(f_l + Δ[c, l](f_l))`` at ``l = c``.

    Li et al., ICML 2025, eq. 7. The shift is tabulated at the centres of the statistics' bins, so its error is at most
    its change over half a bin.

    Attributes:
        shifts: ``τ Δ``, float32 ``[C, C, B]``: hypothesis, channel, bin.
        limit: half the axis of the bins.
        space: the logits that the shifts are a function of.
    """

    shifts: Tensor
    limit: float
    space: LogitSpace

    def scores(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`."""
        return quantile_scores(logits, self.shifts, self.limit, self.space)

    def predict(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`."""
        if not self._exponentiable:
            return kernels.argmax(self.scores(logits)).long()
        flat = _flat(logits)
        # Raw logits go as they are: the kernels convert them block by block.
        blocks = (
            [flat]
            if self.space is LogitSpace.RAW
            else (to_space(block.float(), self.space) for block in flat.split(_PIXELS_AT_ONCE, dim=2))
        )
        ids = [kernels.align_quantile(block, self._factors, self.limit) for block in blocks]
        return _shaped(torch.cat(ids, dim=1), logits)

    def to(self, device: torch.device) -> "QuantileCorrection":
        """See :class:`Correction`."""
        return replace(self, shifts=self.shifts.to(device))

    @cached_property
    def _exponentiable(self) -> bool:
        return exponentiable(self.shifts)

    @cached_property
    def _factors(self) -> Tensor:
        return kernels.quantile_factors(self.shifts)


def location_scores(logits: Tensor, shifts: Tensor, *, exponentiable: bool) -> Tensor:
    """Scores of :class:`LocationCorrection`.

    Args:
        logits: ``[N, C, *spatial]`` floating point.
        shifts: float32 ``[C, C]``, hypothesis and channel.
        exponentiable: what :func:`exponentiable` says of ``shifts``.

    Returns:
        float32, shaped like ``logits``.
    """
    values = torch.log_softmax(logits.float(), dim=1)
    if not exponentiable:
        return _scores_one_by_one(values, (_over_channels(row, logits) for row in shifts))
    largest = shifts.amax(dim=1, keepdim=True)
    sums = torch.einsum("cl,nl...->nc...", (shifts - largest).exp(), values.exp())
    own = shifts.diagonal() - largest.squeeze(1)
    return values + _over_channels(own, logits) - sums.log()


def quantile_scores(logits: Tensor, shifts: Tensor, limit: float, space: LogitSpace) -> Tensor:
    """Scores of :class:`QuantileCorrection`.

    Args:
        logits: ``[N, C, *spatial]`` floating point.
        shifts: float32 ``[C, C, B]``: hypothesis, channel, bin.
        limit: half the axis of the bins.
        space: the logits that the shifts are a function of.

    Returns:
        float32, shaped like ``logits``.
    """
    values = to_space(logits.float(), space)
    bins = shifts.shape[2]
    index = (values * (bins / (2 * limit))).floor().long().add(bins // 2).clamp(0, bins - 1)
    channels = torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.dim() - 2))
    return _scores_one_by_one(values, (table[channels, index] for table in shifts))


def _scores_one_by_one(values: Tensor, shifts: Iterable[Tensor]) -> Tensor:
    """``log softmax_l(f_l + Δ[c, l])`` at ``l = c``, the shifts given hypothesis by hypothesis."""
    scores = []
    for hypothesis, shift in enumerate(shifts):
        shifted = values + shift
        scores.append(shifted[:, hypothesis] - shifted.logsumexp(dim=1))
    return torch.stack(scores, dim=1)


def exponentiable(shifts: Tensor) -> bool:
    """Whether ``Σ_l exp(f_l) · exp(Δ[c, l])`` loses nothing in float32 for shifts ``[C, ...]``.

    ``exp(f_l)`` vanishes 87 below the largest logit; the shifts of one hypothesis must not differ by so much that
    such a term would have counted.
    """
    of_hypothesis = shifts.flatten(1)
    return bool((of_hypothesis.amax(dim=1) - of_hypothesis.amin(dim=1) <= _LARGEST_SPAN).all())


_PIXELS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class LinearCorrection:
    """A linear map added to the logits: ``f_c + Σ_l f_l A[l, c] + b_c``.

    Attributes:
        linear: ``A``, float32 ``[C, C]``, channel and class; zeros leave the network's own argmax.
        bias: ``b``, float32 ``[C]``.
    """

    linear: Tensor
    bias: Tensor

    def scores(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`; here they do sum to one."""
        values = logits.float()
        fitted = torch.einsum("lc,nl...->nc...", self.linear, values) + _over_channels(self.bias, logits)
        return torch.log_softmax(values + fitted, dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`."""
        blocks = _flat(logits).split(_PIXELS_AT_ONCE, dim=2)
        return _shaped(torch.cat([kernels.argmax(self.scores(block)) for block in blocks], dim=1), logits)

    def to(self, device: torch.device) -> "LinearCorrection":
        """See :class:`Correction`."""
        return LinearCorrection(self.linear.to(device), self.bias.to(device))


@dataclass(frozen=True)
class SpatialCorrection:
    """Offsets and a prior that depends on the place in the image: ``f_c + o_c + τ log q_n(c)``.

    Attributes:
        offsets: float32 ``[C]``.
        priors: ``q``, float32 ``[C, rows, columns]``, stretched over images of any size; 0 rules a class out.
        tau: strength of the priors.
    """

    offsets: Tensor
    priors: Tensor
    tau: float

    def scores(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`; logits ``[N, C, H, W]`` of whole images. Here scores do sum to one."""
        priors = at_size(self.priors, (logits.shape[2], logits.shape[3])).log()
        shifted = logits.float() + _over_channels(self.offsets, logits)
        return torch.log_softmax(shifted + self.tau * priors if self.tau else shifted, dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """See :class:`Correction`."""
        return self.scores(logits).argmax(dim=1)

    def to(self, device: torch.device) -> "SpatialCorrection":
        """See :class:`Correction`."""
        return replace(self, offsets=self.offsets.to(device), priors=self.priors.to(device))


def _flat(logits: Tensor) -> Tensor:
    """``[N, C, P]``."""
    return logits.flatten(2) if logits.dim() > 2 else logits.unsqueeze(2)


def _shaped(ids: Tensor, logits: Tensor) -> Tensor:
    """Class ids ``[N, P]`` of ``logits`` in the shape of their pixels, as integers that can be an index."""
    return ids.long().view(logits.shape[0], *logits.shape[2:])


def _over_channels(values: Tensor, logits: Tensor) -> Tensor:
    """``[C]`` in a shape that broadcasts over ``[N, C, *spatial]``."""
    return values.view(-1, *[1] * (logits.dim() - 2))
