from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.core.choices import Tails
from blda_cli.core.distributions import Empirical
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.mixture import GaussianMixture
from blda_cli.core.shifts import (
    MINIMUM_PIXELS,
    TYPICAL_DISAGREEMENT,
    Anchors,
    additive_fit,
    balanced_centre,
    location_shifts,
    occupied,
    pooled_means,
    quantile_shifts,
)

C = 3
ALL = torch.ones(C, dtype=torch.bool)


def counted(seed: int, pixels: int = 3000) -> tuple[LogitHistogram, Tensor, Tensor]:
    """Cells of every class, together with what was counted."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (1, pixels), generator=random)
    logits = torch.randn(1, C, pixels, generator=random) * (1 + torch.rand(C, 1, generator=random))
    logits += torch.nn.functional.one_hot(labels, C).movedim(-1, 1) * torch.rand(C, 1, generator=random) * 4
    histogram = LogitHistogram(C, 64)
    histogram.update(logits, labels)
    return histogram, logits, labels


def empirical(histogram: LogitHistogram) -> Empirical:
    return Empirical(histogram.counts, histogram.edges)


def own_anchors(histogram: LogitHistogram) -> Anchors:
    return Anchors(Empirical(histogram.positive(), histogram.edges), Empirical(histogram.negative(), histogram.edges))


def equal_cells() -> tuple[Empirical, Anchors]:
    """All cells and both anchors one distribution."""
    edges = torch.linspace(-8, 8, 33, dtype=torch.float64)
    counts = torch.zeros(32, dtype=torch.float64)
    counts[6:28] = torch.rand(22, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    one = Empirical(counts, edges)
    return Empirical(counts.expand(C, C, 32), edges), Anchors(one, one)


def expected_shift(tails: Tails, cdf: Any, inverse: Any, anchor_inverse: Any, z: float) -> float:
    """The shift of one value, as the method's text has it."""
    if tails is Tails.CONSTANT:
        z_inside = min(max(z, inverse(0.01)), inverse(0.99))
        return float(anchor_inverse(min(max(cdf(z_inside), 0.01), 0.99)) - z_inside)
    return float(anchor_inverse(min(max(cdf(z), 0.01), 0.99)) - z)


@pytest.mark.parametrize("tails", Tails)
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**31))
def test_shifts_of_histograms_are_those_of_the_reference(reference: ModuleType, tails: Tails, seed: int) -> None:
    target, source = counted(seed)[0], counted(seed + 1)[0]
    values = torch.linspace(-12, 12, 23, dtype=torch.float64)
    shifts = quantile_shifts(empirical(target), own_anchors(source), ALL, values, tails)
    edges, source_edges = target.edges.numpy(), source.edges.numpy()
    pools = (source.negative().numpy(), source.positive().numpy())
    for label in range(C):
        for channel in range(C):
            counts, pool = target.counts[label, channel].numpy(), pools[label == channel]
            expected = [
                expected_shift(
                    tails,
                    lambda z, counts=counts: reference.histogram_cdf(counts, edges, z),
                    lambda q, counts=counts: reference.histogram_quantile(counts, edges, q),
                    lambda q, pool=pool: reference.histogram_quantile(pool, source_edges, q),
                    float(z),
                )
                for z in values
            ]
            np.testing.assert_allclose(shifts[label, channel].numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("tails", Tails)
def test_shifts_of_the_published_mixtures_are_those_of_the_reference(
    reference: ModuleType, published: dict[str, Tensor], tails: Tails
) -> None:
    names = ("weights", "means", "variances")
    cells = GaussianMixture(*(published[f"gmm_{name}"] for name in names))
    anchors = GaussianMixture(*(published[f"anchor_{name}"] for name in names))
    values = published["logits"][0, :, :3].flatten(1)  # a row of values for each channel
    shifts = quantile_shifts(cells, Anchors(anchors[0], anchors[1]), torch.ones(6, dtype=torch.bool), values, tails)
    z = values.double().numpy()
    for label in range(6):
        for channel in range(6):
            cell = [published[f"gmm_{name}"][label, channel].double().numpy() for name in names]
            anchor = [published[f"anchor_{name}"][int(label != channel)].double().numpy() for name in names]
            start = z[channel]
            if tails is Tails.CONSTANT:
                start = start.clip(*reference.mixture_quantile(*cell, np.array([0.01, 0.99])))
            levels = reference.mixture_cdf(*cell, start).clip(0.01, 0.99)
            expected = reference.mixture_quantile(*anchor, levels) - start
            np.testing.assert_allclose(shifts[label, channel].numpy(), expected, atol=1e-4)


def test_cells_equal_to_the_anchors_are_not_shifted() -> None:
    cells, anchors = equal_cells()
    values = torch.linspace(-20, 20, 401, dtype=torch.float64)
    assert quantile_shifts(cells, anchors, ALL, values, Tails.CONSTANT).abs().max() < 1e-9
    within = values[(values > anchors.positive.quantile(torch.tensor([0.01]))) & (values < 4)]
    within = within[within < anchors.positive.quantile(torch.tensor([0.99]))]
    assert len(within) > 50
    assert quantile_shifts(cells, anchors, ALL, within, Tails.CLAMP).abs().max() < 1e-9
    means = torch.full((C, C), 0.7, dtype=torch.float64)
    assert location_shifts(means, torch.full((C,), 900.0, dtype=torch.float64)).abs().max() < 1e-12


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), tails=st.sampled_from(Tails))
def test_shifted_values_keep_their_order(seed: int, tails: Tails) -> None:
    values = torch.linspace(-16, 16, 500, dtype=torch.float64)
    shifts = quantile_shifts(empirical(counted(seed)[0]), own_anchors(counted(seed + 1)[0]), ALL, values, tails)
    steps = (values + shifts).diff(dim=-1)
    assert (steps > -1e-9).all()
    assert bool((steps[..., 0] > 0).all()) == (tails is Tails.CONSTANT)  # clamped tails fall together


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(C)))
def test_permuting_the_classes_permutes_the_shifts(seed: int, order: list[int]) -> None:
    histogram = counted(seed)[0]
    permuted = LogitHistogram.from_counts(histogram.counts[order][:, order], histogram.limit)
    values = histogram.centers
    shifts = quantile_shifts(empirical(histogram), own_anchors(histogram), ALL, values)
    torch.testing.assert_close(
        quantile_shifts(empirical(permuted), own_anchors(permuted), ALL, values), shifts[order][:, order]
    )
    means, pixels = histogram.means(), histogram.label_pixels()
    torch.testing.assert_close(
        location_shifts(means[order][:, order], pixels[order]), location_shifts(means, pixels)[order][:, order]
    )
    torch.testing.assert_close(
        balanced_centre(means[order][:, order], pixels[order]), balanced_centre(means, pixels)[order]
    )


def test_labels_with_too_few_pixels_are_not_shifted() -> None:
    _, logits, labels = counted(0, 6000)
    enough = LogitHistogram(C, 64)
    kept = torch.cat(
        [(labels[0] == 0).nonzero()[:MINIMUM_PIXELS], (labels[0] == 1).nonzero()[: MINIMUM_PIXELS - 1]]
    ).squeeze(1)
    enough.update(logits[..., kept], labels[..., kept])
    assert occupied(enough).tolist() == [True, False, False]
    shifts = quantile_shifts(empirical(enough), own_anchors(enough), occupied(enough), enough.centers)
    assert shifts.isfinite().all()
    assert (shifts[0] != 0).any()
    assert (shifts[1:] == 0).all()
    location = location_shifts(enough.means(), enough.label_pixels())
    assert (location[0] != 0).all()
    assert (location[1:] == 0).all()
    own, others = enough.means()[0, 0], enough.means()[0, 1:]
    centre = balanced_centre(enough.means(), enough.label_pixels())
    torch.testing.assert_close(centre, torch.cat([own[None], (others + own) / 2]))  # as if at the positive anchor
    nothing = LogitHistogram(C)
    assert balanced_centre(nothing.means(), nothing.label_pixels()).tolist() == [0, 0, 0]


def test_location_shifts_lead_from_the_cells_means_to_the_pooled_means(reference: ModuleType) -> None:
    histogram, logits, labels = counted(3)
    z, y = logits.double().numpy(), labels.numpy()
    means = np.array([[reference.cell(z, y, c, k).mean() for k in range(C)] for c in range(C)])
    positive, negative = (reference.pooled(z, y, positive=flag).mean() for flag in (True, False))
    pixels = histogram.label_pixels()
    pooled = pooled_means(torch.from_numpy(means), pixels)
    assert [float(mean) for mean in pooled] == pytest.approx([positive, negative])
    expected = np.where(np.eye(C) > 0, positive, negative) - means
    np.testing.assert_allclose(location_shifts(torch.from_numpy(means), pixels), expected, atol=1e-12)
    half_bin = histogram.limit / histogram.bins
    np.testing.assert_allclose(location_shifts(histogram.means(), pixels), expected, atol=2 * half_bin)
    others = location_shifts(torch.from_numpy(means), pixels, (pooled[0] + 2, pooled[1] - 1))
    np.testing.assert_allclose(others, expected + np.where(np.eye(C) > 0, 2, -1), atol=1e-12)


def test_balanced_centring_is_the_location_form_averaged_over_the_hypotheses() -> None:
    histogram = counted(4)[0]
    means, pixels = histogram.means(), histogram.label_pixels()
    total = location_shifts(means, pixels).mean(dim=0) + balanced_centre(means, pixels)
    torch.testing.assert_close(total, total[:1].expand(C))  # up to one constant
    torch.testing.assert_close(balanced_centre(means, pixels), means.mean(dim=0))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), count=st.integers(3, 9))
def test_exactly_additive_cells_do_not_disagree(seed: int, count: int) -> None:
    """Any levels come back, whatever stands on the diagonal and in labels with too few pixels."""
    random = torch.Generator().manual_seed(seed)
    labels, levels = torch.randn(count, 1, generator=random).double(), torch.randn(count, generator=random).double()
    means = labels + levels
    means[torch.eye(count) > 0] += 5 * torch.rand(count, generator=random).double()
    pixels = torch.full((count,), 900.0).double()
    if count > 5:
        pixels[2] = MINIMUM_PIXELS - 1
        means[2] = torch.nan
    fit = additive_fit(means, pixels)
    expected = levels - levels[pixels >= MINIMUM_PIXELS].mean()
    torch.testing.assert_close(fit.levels, expected)
    assert fit.disagreement < 1e-20 if count > 3 else fit.disagreement == TYPICAL_DISAGREEMENT


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), count=st.integers(4, 9))
def test_the_additive_fit_leaves_nothing_that_label_or_channel_explains(seed: int, count: int) -> None:
    """What least squares leaves sums to nothing over every label and channel."""
    random = torch.Generator().manual_seed(seed)
    means = torch.randn(count, count, generator=random).double()
    fit = additive_fit(means, torch.full((count,), 900.0).double())
    left = (means - fit.levels).masked_fill(torch.eye(count) > 0, torch.nan)
    left -= left.nanmean(dim=1, keepdim=True)
    torch.testing.assert_close(left.nansum(dim=0), torch.zeros(count).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(left.nansum(dim=1), torch.zeros(count).double(), atol=1e-9, rtol=0)
    freedom = count * (count - 1) - (2 * count - 1)
    assert fit.disagreement == pytest.approx(float(left.square().nansum() / freedom / fit.levels.var()))


def test_two_labels_tell_no_levels() -> None:
    fit = additive_fit(torch.randn(4, 4).double(), torch.tensor([900.0, 900, 3, 3]).double())
    assert fit.levels.tolist() == [0] * 4
    assert fit.disagreement == TYPICAL_DISAGREEMENT
