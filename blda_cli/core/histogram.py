"""The logit sets of BLDA as histograms: one per cell (label, channel), on one shared axis that widens by itself."""

import math

import torch
from torch import Tensor

from blda_cli.core.kernels import count_cells, count_cells_soft

DEFAULT_BINS = 1024


class LogitHistogram:
    """``counts[label, channel, bin]`` of logits, over bins of equal width on ``[-limit, limit)``.

    The logit sets ``M[c, l]`` of BLDA (Li et al., ICML 2025, §3.1): the values of channel ``l`` at the pixels whose
    label is ``c``. ``limit`` is the smallest power of two above every value seen, so it depends on the data alone
    and not on their order: when a value falls outside, the range doubles and neighbouring bins merge. Counts are
    therefore exact, and two histograms add up to that of all their data bit for bit. Soft counts are multiples of
    2⁻¹⁶, which float64 sums exactly.

    Attributes:
        counts: float64 ``[C, C, B]``; first index the label, second the channel.
        limit: half the width of the axis, a power of two.
    """

    def __init__(self, num_classes: int, bins: int = DEFAULT_BINS, device: torch.device | str | None = None) -> None:
        """Start an empty histogram.

        Args:
            num_classes: C.
            bins: B, a power of two.
            device: where the counts live; the CPU by default.

        Raises:
            ValueError: ``bins`` is not a power of two of at least 4.
        """
        if bins < 4 or bins & (bins - 1):
            raise ValueError(f"bins must be a power of two of at least 4, not {bins}")
        self.counts = torch.zeros(num_classes, num_classes, bins, dtype=torch.float64, device=device)
        self.limit = 1.0

    @classmethod
    def from_counts(cls, counts: Tensor, limit: float) -> "LogitHistogram":
        """Wrap counts ``[C, C, B]`` over ``[-limit, limit)``, as a file holds them."""
        histogram = cls(counts.shape[0], counts.shape[2])
        histogram.counts = counts.to(torch.float64)
        histogram.limit = float(limit)
        return histogram

    @property
    def num_classes(self) -> int:
        """C."""
        return self.counts.shape[0]

    @property
    def bins(self) -> int:
        """B."""
        return self.counts.shape[2]

    @property
    def edges(self) -> Tensor:
        """Bin edges, float64 ``[B + 1]``."""
        return torch.linspace(-self.limit, self.limit, self.bins + 1, dtype=torch.float64, device=self.counts.device)

    @property
    def centers(self) -> Tensor:
        """Bin centres, float64 ``[B]``."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    def update(self, logits: Tensor, labels: Tensor, largest: float | None = None) -> None:
        """Count every channel of every pixel under the pixel's label.

        Args:
            logits: ``[N, C, *spatial]`` floating point, finite.
            labels: ``[N, *spatial]`` integers; pixels outside ``[0, C)`` are not counted.
            largest: :func:`largest_of` the logits, where it is known.

        Raises:
            ValueError: a logit is not finite.
        """
        self._cover(largest_of(logits) if largest is None else largest)
        flat = logits.flatten(2) if logits.dim() > 2 else logits.unsqueeze(2)
        count_cells(self.counts, flat, labels.reshape(flat.shape[0], -1), self.limit)

    def update_soft(self, logits: Tensor, largest: float | None = None) -> None:
        """Count every channel of every pixel under every class, weighted by the class's softmax probability there.

        Args:
            logits: ``[N, C, *spatial]`` floating point, finite. Probabilities are rounded to multiples of 2⁻¹⁶.
            largest: :func:`largest_of` the logits, where it is known.

        Raises:
            ValueError: a logit is not finite.
        """
        self._cover(largest_of(logits) if largest is None else largest)
        flat = logits.flatten(2) if logits.dim() > 2 else logits.unsqueeze(2)
        count_cells_soft(self.counts, flat, self.limit)

    def __add__(self, other: "LogitHistogram") -> "LogitHistogram":
        """The histogram of both data sets.

        Raises:
            ValueError: the numbers of classes or bins differ.
        """
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"histograms of shapes {list(self.counts.shape)} and {list(other.counts.shape)} differ")
        limit = max(self.limit, other.limit)
        return LogitHistogram.from_counts(
            _widened(self.counts, self.limit, limit) + _widened(other.counts, other.limit, limit), limit
        )

    def cpu(self) -> "LogitHistogram":
        """The same histogram on the CPU."""
        return self if self.counts.device.type == "cpu" else LogitHistogram.from_counts(self.counts.cpu(), self.limit)

    def label_pixels(self) -> Tensor:
        """Pixels counted under each label, float64 ``[C]`` (soft counts: probability mass)."""
        return self.counts[:, 0].sum(dim=-1)

    def means(self) -> Tensor:
        """``μ[c, l]``, the mean of channel ``l`` at label ``c``, float64 ``[C, C]``; NaN where there is no pixel."""
        return (self.counts @ self.centers) / self.counts.sum(dim=-1)

    def positive(self) -> Tensor:
        """All diagonal cells pooled, ``P_p``: float64 ``[B]``."""
        return self.counts.diagonal().sum(dim=-1)

    def negative(self) -> Tensor:
        """All off-diagonal cells pooled, ``P_n``: float64 ``[B]``."""
        return self.counts.sum(dim=(0, 1)) - self.positive()

    def _cover(self, largest: float) -> None:
        """Double the range until it holds logits of this size."""
        if not math.isfinite(largest):
            raise ValueError("logits are not finite")
        limit = max(self.limit, 2.0 ** math.frexp(largest)[1])
        self.counts = _widened(self.counts, self.limit, limit)
        self.limit = limit


def largest_of(logits: Tensor) -> float:
    """The largest absolute logit, NaN where one is; waits for the device once.

    Args:
        logits: of any shape, floating point.
    """
    # As float32, like the kernels bin them: a double just below a power of two rounds onto it.
    low, high = torch.stack(torch.aminmax(logits)).float().tolist()
    return float(max(-low, high))


def _widened(counts: Tensor, limit: float, new_limit: float) -> Tensor:
    """Counts over ``[-limit, limit)`` on the same number of bins over ``[-new_limit, new_limit)``."""
    bins = counts.shape[-1]
    while limit < new_limit:
        half = counts.view(*counts.shape[:-1], bins // 2, 2).sum(dim=-1)
        counts = torch.nn.functional.pad(half, (bins // 4, bins // 4))
        limit *= 2
    return counts
