import numpy as np
import pytest
import torch

from blda_cli.core.spatial_priors import GRID, PositionCounts, at_positions, at_size


def counted(*labels: torch.Tensor, classes: int = 3) -> PositionCounts:
    positions = PositionCounts(classes)
    for one in labels:
        positions.update(one)
    return positions


@pytest.mark.parametrize("size", [(128, 256), (200, 300), (37, 50), (256, 100)])
def test_every_pixel_is_counted_at_its_place(size: tuple[int, int]) -> None:
    labels = torch.randint(0, 4, (2, *size), generator=torch.Generator().manual_seed(0))
    labels[labels == 3] = 255
    full = max(size[0], GRID[0]), max(size[1], GRID[1])
    expected = np.zeros((3, *GRID))
    for row in range(full[0]):
        for column in range(full[1]):
            for label in labels[:, row * size[0] // full[0], column * size[1] // full[1]].tolist():
                if label != 255:
                    expected[label, row * GRID[0] // full[0], column * GRID[1] // full[1]] += 1
    np.testing.assert_array_equal(counted(labels).counts.numpy(), expected)


def test_counts_add_up() -> None:
    first, second = (torch.randint(0, 3, (1, 140, 260), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal((counted(first) + counted(second)).counts, counted(first, second).counts)


def test_priors_are_smoothed_frequencies() -> None:
    """Every place by the formula: Gaussian sums of the counts, then shares of the classes."""
    positions = counted(torch.randint(0, 4, (1, *GRID), generator=torch.Generator().manual_seed(2)) ** 2)
    rows, columns = (70 / side * places for side, places in zip((1052, 1914), GRID, strict=True))
    priors = positions.priors().double()
    torch.testing.assert_close(priors.sum(dim=0), torch.ones(GRID, dtype=torch.float64))
    counts = positions.counts.double()
    for row, column in ((0, 0), (3, 250), (64, 128), (127, 255)):
        sums = torch.zeros(3, dtype=torch.float64)
        for other_row in range(GRID[0]):
            for other_column in range(GRID[1]):
                down, right = other_row - row, other_column - column
                if abs(down) <= rows / 2 and abs(right) <= columns / 2:
                    weight = np.exp(-0.5 * ((down / (rows / 6)) ** 2 + (right / (columns / 6)) ** 2))
                    sums += weight * counts[:, other_row, other_column]
        torch.testing.assert_close(priors[:, row, column], sums / sums.sum(), atol=1e-6, rtol=0)


def test_where_nothing_is_labelled_all_classes_are_equal() -> None:
    labels = torch.full((1, *GRID), 255)
    labels[:, 64:] = 1
    priors = counted(labels).priors()
    torch.testing.assert_close(priors[:, 0, 0], torch.full((3,), 1 / 3))
    assert priors[:, 127, 0].tolist() == [0, 1, 0]


def test_priors_at_positions_are_those_at_the_pixels_of_an_image() -> None:
    priors = counted(torch.randint(0, 3, (1, *GRID), generator=torch.Generator().manual_seed(3))).priors()
    for size in ((200, 311), (40, 56)):
        rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
        positions = (torch.stack([rows, columns], dim=-1).flatten(0, 1) + 0.5) / torch.tensor(size)
        torch.testing.assert_close(at_positions(priors, positions), at_size(priors, size).flatten(1).T)
