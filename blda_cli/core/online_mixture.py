"""Online mixtures: EM on binned logits with momentum, and a larger step for cells that were absent for a while.

Li et al., ICML 2025, §3.3. Nothing here waits for the device: the range of a batch's logits stays a tensor.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blda_cli.core.mixture import COMPONENTS, MINIMUM_VARIANCE, GaussianMixture
from blda_cli.core.shifts import MINIMUM_PIXELS

DENSITY_FLOOR = 1e-7
"""Added to every component's weighted density before normalising, as published: a value far from all components
belongs to all of them alike, so that no component dies and a poor start is recovered from within one step."""

EM_ITERATIONS = 3

ENOUGH = MINIMUM_PIXELS / (2 * 512**2)
"""Share of a batch's pixels from which on it updates a cell: 500 of two crops of 512², as published."""


@dataclass(frozen=True)
class LogitGrid:
    """Bins of equal width over the range of a batch's logits.

    Attributes:
        low: scalar, the lower edge of the first bin.
        width: scalar, the width of a bin.
        bins: B.
    """

    low: Tensor
    width: Tensor
    bins: int

    @classmethod
    def spanning(cls, reach: Tensor, bins: int) -> "LogitGrid":
        """The grid over ``[-reach[0], reach[1]]``; see :func:`reach`."""
        low = -reach[0]
        return cls(low, ((reach[1] - low) / bins).clamp(min=torch.finfo(torch.float32).eps), bins)

    @property
    def edges(self) -> Tensor:
        """``[B + 1]``."""
        return self.low + self.width * torch.arange(self.bins + 1, device=self.low.device)

    @property
    def centers(self) -> Tensor:
        """``[B]``."""
        return self.low + self.width * (torch.arange(self.bins, device=self.low.device) + 0.5)

    def position(self, logits: Tensor) -> Tensor:
        """Position of logits in units of bins, float32 in ``[0, B]``, of the logits' shape; 0 where they are NaN.

        A NaN is reported by the loss; as an index it would crash a GPU.
        """
        return ((logits.float() - self.low) / self.width).nan_to_num_(0.0).clamp_(0, self.bins)


def reach(logits: Tensor) -> Tensor:
    """``(-min, max)`` of all logits, float32 ``[2]``; that of several batches is the elementwise maximum."""
    low, high = logits.detach().float().aminmax()
    return torch.stack([-low, high])


def count_cells(grid: LogitGrid, logits: Tensor, labels: Tensor) -> Tensor:
    """Histogram every channel under the pixel's label.

    Args:
        grid: the bins; values beyond it count in the outermost.
        logits: ``[N, C, *spatial]`` floating point.
        labels: ``[N, *spatial]`` integers; pixels outside ``[0, C)`` are not counted.

    Returns:
        float32 ``[C, C, B]``: label, channel, bin; exact up to 2²⁴ pixels a bin.
    """
    num_classes, bins = logits.shape[1], grid.bins
    labels = labels.flatten(1)
    row = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes).int() * (num_classes * bins)
    channel = torch.arange(num_classes, dtype=torch.int32, device=logits.device).unsqueeze(1) * bins
    index = grid.position(logits).flatten(2).int().clamp_(max=bins - 1).add_(row.unsqueeze(1)).add_(channel).flatten()
    counts = torch.zeros((num_classes + 1) * num_classes * bins, device=logits.device)
    counts.index_add_(0, index, torch.ones((), device=logits.device).expand_as(index))
    return counts.view(num_classes + 1, num_classes, bins)[:num_classes]


def em_step(
    mixture: GaussianMixture,
    values: Tensor,
    counts: Tensor,
    bin_width: Tensor | float = 0.0,
    density_floor: float = DENSITY_FLOOR,
) -> GaussianMixture:
    """One step of expectation maximisation on weighted values.

    Samples are values of count one; a histogram's bins are values of their counts. Rounding to bins adds
    ``w² / 12`` to a variance (Sheppard's correction takes it out), and no component gets narrower than a bin: it would
    model the rounding.

    Args:
        mixture: ``[..., K]``.
        values: ``[V]`` or ``[..., V]``.
        counts: ``[..., V]``; where all are zero the result is finite but meaningless.
        bin_width: width of the bins that values are rounded to.
        density_floor: see :data:`DENSITY_FLOOR`.

    Returns:
        Mixtures ``[..., K]``, variances at least :data:`~blda_cli.core.mixture.MINIMUM_VARIANCE` and ``w² / 12``.
    """
    tiny = torch.finfo(values.dtype).tiny
    values = values.unsqueeze(-2)
    variances = mixture.variances.unsqueeze(-1)
    distance = (values - mixture.means.unsqueeze(-1)).square_()
    density = distance.mul_(-0.5 / variances).exp_()
    density = density.mul_(mixture.weights.unsqueeze(-1) * (2 * torch.pi * variances).rsqrt()).add_(density_floor)
    mass = density.mul_((counts / density.sum(dim=-2)).unsqueeze(-2))  # [..., K, V]
    share = mass.sum(dim=-1)
    weights = share / counts.sum(dim=-1, keepdim=True).clamp(min=tiny)
    share = share.clamp(min=tiny)
    means = (mass * values).sum(dim=-1) / share
    spread = (mass * (values - means.unsqueeze(-1)).square_()).sum(dim=-1) / share
    rounding = torch.as_tensor(bin_width**2 / 12, dtype=values.dtype, device=values.device)
    return GaussianMixture(weights, means, (spread - rounding).maximum(rounding.clamp(min=MINIMUM_VARIANCE)))


class OnlineMixture:
    """A bank of mixtures, each updated whenever a batch holds enough of it.

    Every update runs :data:`EM_ITERATIONS` steps of EM on the batch from the current parameters and blends:
    ``φ ← τⁿ φ_old + (1 − τⁿ) φ_new``, ``τ = momentum · min(step / warmup, 1)``, ``n`` the steps since the row was
    last updated, so that rows seen rarely catch up. A row's first fit is used unblended: blended, a row first seen
    after 40 updates would keep two thirds of its random start and count as fitted.

    Updates change the tensors in place, so that a CUDA graph can replay them.

    Attributes:
        mixture: ``[*rows, K]`` float32.
        staleness: ``n``, float32 ``[*rows]``.
        fitted: rows updated at least once, bool ``[*rows]``.
        step: updates so far, a float32 scalar on the device.
        momentum: blending at the end of the warm-up.
        warmup: updates until then.
        blend_first_fit: a row's first fit, too, is blended with the row's random start, as published.
    """

    def __init__(
        self,
        rows: tuple[int, ...],
        *,
        components: int = COMPONENTS,
        momentum: float = 0.99,
        warmup: int = 1500,
        blend_first_fit: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """Start with means drawn from a standard normal (the same at every start), variances one, equal weights."""
        shape = (*rows, components)
        means = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        self.mixture = GaussianMixture(torch.full_like(means, 1 / components), means, torch.ones_like(means))
        self.staleness = torch.ones(rows, device=device)
        self.fitted = torch.zeros(rows, dtype=torch.bool, device=device)
        self.step = torch.zeros((), device=device)
        self.momentum = momentum
        self.warmup = warmup
        self.blend_first_fit = blend_first_fit

    def update(
        self, values: Tensor, counts: Tensor, bin_width: Tensor | float = 0.0, enough: float = MINIMUM_PIXELS
    ) -> None:
        """Update with a batch.

        Args:
            values: ``[V]`` or ``[*rows, V]``; see :func:`em_step`.
            counts: ``[*rows, V]``; rows under ``enough`` in all keep their mixture.
            bin_width: width of the bins that values are rounded to.
            enough: see :data:`ENOUGH` for a batch of crops.
        """
        self.blend(fit(self.mixture, values, counts, bin_width), counts.sum(dim=-1) >= enough)

    def blend(self, batch: GaussianMixture, rows: Tensor) -> None:
        """Blend in the mixtures fitted to a batch, in the rows that the mask ``rows`` (bool ``[*rows]``) selects."""
        kept = (self.momentum * (self.step / max(self.warmup, 1)).clamp(max=1.0)) ** self.staleness
        if not self.blend_first_fit:
            kept = torch.where(self.fitted, kept, 0.0)
        kept = torch.where(rows, kept, 1.0).unsqueeze(-1)
        for old, new in zip(self.mixture.parameters, batch.parameters, strict=True):
            old.copy_(torch.lerp(new, old, kept))
        self.staleness.add_(1.0).masked_fill_(rows, 1.0)
        self.fitted.logical_or_(rows)
        self.step.add_(1)

    def means(self) -> Tensor:
        """The mean of every mixture, ``[*rows]``."""
        return (self.mixture.weights * self.mixture.means).sum(dim=-1)

    def state_dict(self) -> dict[str, Any]:
        """State for :meth:`load_state_dict`."""
        return {
            "weights": self.mixture.weights,
            "means": self.mixture.means,
            "variances": self.mixture.variances,
            "staleness": self.staleness,
            "fitted": self.fitted,
            "step": int(self.step),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state on this bank's device."""
        for name, values in zip(("weights", "means", "variances"), self.mixture.parameters, strict=True):
            values.copy_(state[name])
        self.staleness.copy_(state["staleness"])
        self.fitted.copy_(state["fitted"])
        self.step.fill_(state["step"])


def fit(mixture: GaussianMixture, values: Tensor, counts: Tensor, bin_width: Tensor | float = 0.0) -> GaussianMixture:
    """:data:`EM_ITERATIONS` times :func:`em_step`."""
    for _ in range(EM_ITERATIONS):
        mixture = em_step(mixture, values, counts, bin_width)
    return mixture
