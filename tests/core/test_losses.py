from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import Tails
from blda_cli.core.losses import AnchorQuantiles, ShiftTable, corrected_cross_entropy, cumulative_density_loss
from blda_cli.core.mixture import GaussianMixture
from blda_cli.core.online_mixture import LogitGrid, reach
from blda_cli.core.shifts import Anchors, quantile_shifts


def mixture(*shape: int, seed: int, spread: float = 3.0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(*shape, 5, generator=generator).add(0.1)
    return GaussianMixture(
        weights / weights.sum(-1, keepdim=True),
        spread * torch.randn(*shape, 5, generator=generator),
        0.3 + 2 * torch.rand(*shape, 5, generator=generator),
    )


@pytest.fixture
def published() -> dict[str, Any]:
    recorded = np.load(Path(__file__).parent / "published" / "corrected_cross_entropy.npz")
    values: dict[str, Any] = {name: torch.from_numpy(recorded[name]) for name in recorded.files}
    cells = GaussianMixture(values["gmm_weights"], values["gmm_means"], values["gmm_variances"])
    anchors = GaussianMixture(values["anchor_weights"], values["anchor_means"], values["anchor_variances"])
    grid = LogitGrid.spanning(reach(values["logits"]), 2048)
    values["table"] = ShiftTable.build(cells, torch.ones(6, 6, dtype=torch.bool), AnchorQuantiles.of(anchors), grid)
    return values


def test_shift_loss_and_density_equal_the_published_code(published: dict[str, Any]) -> None:
    logits, labels, table = published["logits"], published["labels"], published["table"]
    labelled = labels != int(published["ignore_index"])
    labels = torch.where(labelled, labels, IGNORE_INDEX)
    shift = table.shift(logits, labels)
    torch.testing.assert_close(shift, published["shift"], atol=1e-3, rtol=0)
    loss = corrected_cross_entropy(logits, labels, shift, float(published["tau"]))
    torch.testing.assert_close(loss, published["cross_entropy"], atol=1e-3, rtol=0)
    density = table.density(logits, labels)
    torch.testing.assert_close(density[labelled], published["positive_cdf"][labelled], atol=1e-4, rtol=0)


def test_the_table_equals_the_formula_of_the_post_hoc_shift() -> None:
    cells, anchor = mixture(4, 4, seed=0), mixture(2, seed=1)
    grid = LogitGrid.spanning(torch.tensor([9.0, 9.0]), 512)
    table = ShiftTable.build(cells, torch.ones(4, 4, dtype=torch.bool), AnchorQuantiles.of(anchor), grid)
    expected = quantile_shifts(
        cells, Anchors(anchor[0], anchor[1]), torch.ones(4, dtype=torch.bool), grid.edges, Tails.CLAMP
    )
    torch.testing.assert_close(table.shifts[:4].double(), expected, atol=1e-3, rtol=0)


def test_pixels_without_a_label_and_cells_never_fitted_are_not_shifted() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 4 * torch.randn(2, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (2, 8, 8), generator=generator)
    labels[0, 0] = IGNORE_INDEX
    labels[1, 0, 0], logits[1, 0, 0, 0] = 0, 4 * logits.max()  # at the end of a row; the next was never fitted
    fitted = torch.ones(3, 3, dtype=torch.bool)
    fitted[1] = False
    table = ShiftTable.build(
        mixture(3, 3, seed=2), fitted, AnchorQuantiles.of(mixture(2, seed=3)), LogitGrid.spanning(reach(logits), 256)
    )
    shift = table.shift(logits, labels).permute(0, 2, 3, 1)
    assert torch.count_nonzero(shift[labels == IGNORE_INDEX]) == 0
    assert torch.count_nonzero(shift[labels == 1]) == 0
    assert torch.count_nonzero(shift[labels == 0]) > 0
    assert torch.equal(table.density(logits, labels).isnan(), (labels == IGNORE_INDEX) | (labels == 1))


def test_without_shift_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(2, 5, 4, 4, requires_grad=True), torch.randint(0, 5, (2, 4, 4))
    labels[1, 2] = IGNORE_INDEX
    loss = corrected_cross_entropy(logits, labels, torch.zeros(2, 5, 4, 4), 0.7)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none"))
    assert torch.count_nonzero(loss[1, 2]) == 0


def test_of_more_than_255_classes_255_is_one() -> None:
    logits, labels = torch.randn(1, 300, 2), torch.tensor([[255, IGNORE_INDEX]])
    loss = corrected_cross_entropy(logits, labels, torch.zeros(1, 300, 2), 0.7)
    torch.testing.assert_close(loss[0, 0], -logits[0, :, 0].log_softmax(dim=0)[255])
    assert loss[0, 1] == 0


def test_cells_equal_to_the_anchors_shift_nothing_within_the_quantile_range() -> None:
    anchor = mixture(2, seed=5)
    own = torch.eye(3, dtype=torch.long)
    cells = GaussianMixture(*(getattr(anchor, name)[1 - own] for name in ("weights", "means", "variances")))
    grid = LogitGrid.spanning(torch.tensor([12.0, 12.0]), 1024)
    table = ShiftTable.build(cells, torch.ones(3, 3, dtype=torch.bool), AnchorQuantiles.of(anchor), grid)
    levels = cells.cdf(grid.edges)
    inside = (levels > 0.011) & (levels < 0.989)
    assert float(table.shifts[:3][inside].abs().max()) < 2e-3


def test_rows_of_two_domains_look_in_their_own_cells() -> None:
    cells, anchor = mixture(6, 3, seed=7), mixture(2, seed=8)
    logits, labels = 3 * torch.randn(2, 3, 6, 6), torch.randint(0, 3, (2, 6, 6))
    second = torch.rand(2, 6, 6) < 0.5
    grid = LogitGrid.spanning(reach(logits), 512)
    both = ShiftTable.build(cells, torch.ones(6, 3, dtype=torch.bool), AnchorQuantiles.of(anchor), grid)

    def alone(rows: slice) -> Tensor:
        own = GaussianMixture(cells.weights[rows], cells.means[rows], cells.variances[rows])
        return ShiftTable.build(own, torch.ones(3, 3, dtype=torch.bool), AnchorQuantiles.of(anchor), grid).shift(
            logits, labels
        )

    expected = torch.where(second.unsqueeze(1), alone(slice(3, 6)), alone(slice(0, 3)))
    torch.testing.assert_close(both.shift(logits, labels + 3 * second), expected)


def test_no_gradient_goes_through_the_shift() -> None:
    logits, labels = torch.randn(1, 3, 5, 5, requires_grad=True), torch.randint(0, 3, (1, 5, 5))
    table = ShiftTable.build(
        mixture(3, 3, seed=0),
        torch.ones(3, 3, dtype=torch.bool),
        AnchorQuantiles.of(mixture(2, seed=1)),
        LogitGrid.spanning(reach(logits), 64),
    )
    shift, density = table.shift(logits, labels), table.density(logits, labels)
    assert not shift.requires_grad
    assert not density.requires_grad
    corrected_cross_entropy(logits, labels, shift, 0.1).sum().backward()
    expected = torch.softmax(logits.detach() - 0.1 * shift, dim=1) - F.one_hot(labels, 3).permute(0, 3, 1, 2)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected)


def test_density_regression_leaves_out_what_has_no_density() -> None:
    predicted = torch.tensor([[0.25, 0.9]], requires_grad=True)
    loss = cumulative_density_loss(predicted, torch.tensor([[0.75, torch.nan]]))
    assert loss.tolist() == [[0.5, 0.0]]
    loss.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[-1.0, 0.0]]
