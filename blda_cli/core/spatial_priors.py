"""Spatial priors: how often a class is found at a place in the image (CBST-SP; Zou et al., ECCV 2018, §4.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.core.counting import count_values

GRID = (128, 256)
"""Rows and columns that images of any size are divided into."""

_PUBLISHED_WINDOW, _PUBLISHED_IMAGE = 70, (1052, 1914)
"""The Gaussian's window and GTA5's image size, in pixels: the window is taken as this share of any image's sides."""


class PositionCounts:
    """``counts[class, row, column]`` of labelled pixels at each place of a grid over the image.

    Attributes:
        counts: int64 ``[C, *GRID]`` on the CPU; summable over images, files and processes.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, *GRID, dtype=torch.int64)

    @classmethod
    def from_counts(cls, counts: Tensor) -> "PositionCounts":
        """Wrap counts ``[C, *GRID]``, as a file holds them."""
        positions = cls(counts.shape[0])
        positions.counts = counts.to(torch.int64)
        return positions

    def update(self, labels: Tensor) -> None:
        """Count the labels of images.

        Args:
            labels: integers ``[N, H, W]``, of whole images; pixels outside ``[0, C)`` are not counted. Images with
                fewer rows or columns than the grid are repeated to fill it.
        """
        cells = torch.zeros((), dtype=torch.int64, device=labels.device)
        for axis, places in zip((1, 2), GRID, strict=True):
            size = max(labels.shape[axis], places)
            repeated = torch.arange(size, device=labels.device) * labels.shape[axis] // size
            labels = labels.index_select(axis, repeated)
            place = torch.arange(size, device=labels.device) * places // size
            cells = cells.unsqueeze(-1) * places + place
        index = labels.long() * (GRID[0] * GRID[1]) + cells
        kept = (labels >= 0) & (labels < self.counts.shape[0])
        # One number more takes those without a label: to leave them out waits for the device.
        index = torch.where(kept, index, self.counts.numel())
        self.counts += count_values(index, self.counts.numel() + 1)[:-1].view_as(self.counts).cpu()

    def __add__(self, other: "PositionCounts") -> "PositionCounts":
        """The counts of both data sets."""
        return PositionCounts.from_counts(self.counts + other.counts)

    def priors(self) -> Tensor:
        """``q_n(c)``: the frequency of class ``c`` at place ``n``, smoothed with the 70×70 Gaussian.

        Counts are smoothed, then normalised over the classes, so ``Σ_c q_n(c) = 1``; where no pixel has a label
        within the Gaussian's window, all classes are equal. The window is the share of the image's sides that 70
        pixels are of GTA5's, and spans six standard deviations.

        Returns:
            float32 ``[C, *GRID]``.
        """
        smooth = self.counts.double().unsqueeze(1)
        for axis, places in zip((2, 3), GRID, strict=True):
            taps = _gaussian(_PUBLISHED_WINDOW / _PUBLISHED_IMAGE[axis - 2] * places)
            padding = [0, 0]
            padding[axis - 2] = len(taps) // 2
            smooth = F.conv2d(smooth, taps.view(1, 1, -1, 1) if axis == 2 else taps.view(1, 1, 1, -1), padding=padding)
        total = smooth.sum(dim=0, keepdim=True)
        return torch.where(total > 0, smooth / total, 1 / len(smooth)).squeeze(1).float()


def at_size(priors: Tensor, size: tuple[int, int]) -> Tensor:
    """Priors ``[C, *GRID]`` at the pixels of images of a size, ``[C, *size]``."""
    return F.interpolate(priors.unsqueeze(0), size, mode="bilinear", align_corners=False).squeeze(0)


def at_positions(priors: Tensor, positions: Tensor) -> Tensor:
    """Priors ``[C, *GRID]`` at relative positions ``[S, 2]`` (row and column of pixel centres, in 0..1), ``[S, C]``."""
    grid = (2 * positions.flip(1) - 1).view(1, 1, -1, 2).to(priors)
    values = F.grid_sample(priors.unsqueeze(0), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return values[0, :, 0].T


def _gaussian(window: float) -> Tensor:
    """Taps of a Gaussian that spans six standard deviations in a window, float64, an odd number."""
    offsets = torch.arange(-int(window / 2), int(window / 2) + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offsets / (window / 6)) ** 2)
    return taps / taps.sum()
