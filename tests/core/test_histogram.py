from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.histogram import LogitHistogram

C, B = 3, 16


def images(seed: int, count: int = 5, size: int = 23) -> tuple[Tensor, Tensor]:
    """Logits whose range differs by powers of two between images, and labels, some outside the classes."""
    random = torch.Generator().manual_seed(seed)
    scales = 2.0 ** torch.randint(-3, 6, (count, 1, 1), generator=random)
    logits = torch.randn(count, C, size, generator=random) * scales
    labels = torch.randint(0, C, (count, size), generator=random)
    for outside in (-1, C, IGNORE_INDEX):
        labels[torch.rand(count, size, generator=random) < 0.1] = outside
    return logits, labels


def counted(logits: Tensor, labels: Tensor, bins: int = B) -> LogitHistogram:
    histogram = LogitHistogram(logits.shape[1], bins)
    histogram.update(logits, labels)
    return histogram


def counted_soft(logits: Tensor) -> LogitHistogram:
    histogram = LogitHistogram(C, B)
    histogram.update_soft(logits)
    return histogram


def assert_same(first: LogitHistogram, second: LogitHistogram) -> None:
    assert first.limit == second.limit
    assert torch.equal(first.counts, second.counts)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_counts_are_those_of_every_cell_counted_alone(reference: ModuleType, seed: int) -> None:
    logits, labels = images(seed)
    histogram = counted(logits, labels)
    for label in range(C):
        for channel in range(C):
            values = reference.cell(logits.double().numpy(), labels.numpy(), label, channel)
            expected = reference.histogram(values, B, histogram.limit)
            assert histogram.counts[label, channel].tolist() == expected.tolist()


@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=20),
    bins=st.sampled_from([4, 8, 1024]),
)
@example(values=[1.0], bins=4)
@example(values=[-1.0], bins=4)
@example(values=[-0.0], bins=4)
@settings(deadline=None)
def test_limit_is_a_power_of_two_above_all_values_and_no_larger_than_needed(values: list[float], bins: int) -> None:
    histogram = counted(torch.tensor(values)[:, None], torch.zeros(len(values), dtype=torch.int64), bins)
    largest = max(abs(value) for value in values)
    assert largest < histogram.limit
    assert np.log2(histogram.limit).is_integer()
    assert histogram.limit == 1 or largest >= histogram.limit / 2
    assert histogram.counts.sum() == len(values)


@given(
    order=st.permutations(range(5)),
    cuts=st.sets(st.integers(1, 4)),
    seed=st.integers(0, 2**31),
    soft=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_shards_in_any_order_add_up_bit_for_bit(order: list[int], cuts: set[int], seed: int, soft: bool) -> None:
    logits, labels = images(seed)
    whole = counted_soft(logits) if soft else counted(logits, labels)
    total = LogitHistogram(C, B)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 5], strict=True):
        shard = LogitHistogram(C, B)
        for index in order[start:stop]:  # one update an image, so that the range grows on the way
            if soft:
                shard.update_soft(logits[index : index + 1])
            else:
                shard.update(logits[index : index + 1], labels[index : index + 1])
        total = shard + total
    assert_same(total, whole)


def test_adding_leaves_its_operands_alone() -> None:
    logits, labels = images(0)
    narrow, wide = counted(logits[:1] / logits[:1].abs().max() / 2, labels[:1]), counted(logits * 100, labels)
    before = narrow.counts.clone()
    added = narrow + wide
    added.update(logits, labels)
    assert narrow.limit == 1
    assert torch.equal(narrow.counts, before)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), doublings=st.integers(1, 12))
def test_doubling_the_range_merges_neighbouring_bins(reference: ModuleType, seed: int, doublings: int) -> None:
    logits, labels = images(seed)
    histogram = counted(logits, labels)
    far = 1.5 * histogram.limit * 2.0 ** (doublings - 1)
    histogram.update(torch.full((1, C, 1), far), torch.full((1, 1), IGNORE_INDEX))
    assert histogram.limit == pytest.approx(far * 4 / 3)
    values = reference.cell(logits.double().numpy(), labels.numpy(), 1, 2)
    assert histogram.counts[1, 2].tolist() == reference.histogram(values, B, histogram.limit).tolist()


def test_soft_counts_are_the_rounded_probabilities_of_every_class() -> None:
    logits, _ = images(3, count=2)
    histogram = counted_soft(logits)
    expected = np.zeros((C, C, B))
    rounded = np.round(torch.softmax(logits.double(), dim=1).numpy() * 2**16) / 2**16
    width = 2 * histogram.limit / B
    for image, label, channel, pixel in np.ndindex(2, C, C, logits.shape[2]):
        index = int((float(logits[image, channel, pixel]) + histogram.limit) // width)
        expected[label, channel, index] += rounded[image, label, pixel]
    off = (histogram.counts.numpy() - expected) * 2**16
    assert np.array_equal(off, np.round(off))
    assert np.abs(off).max() <= 1  # a probability may round the other way in float32


def test_soft_counts_of_certain_labels_are_the_hard_counts() -> None:
    logits, labels = images(4)
    labels = labels.clamp(0, C - 1)
    certain = logits + 1000 * torch.nn.functional.one_hot(labels, C).movedim(-1, 1)
    assert_same(counted_soft(certain), counted(certain, labels))


def test_a_classifiers_logits_are_pixels_of_one_by_one_images() -> None:
    logits, labels = (tensor[..., 0] for tensor in images(5, count=40))
    pixels = logits[..., None, None]
    assert_same(counted(logits, labels), counted(pixels, labels[:, None, None]))
    assert_same(counted_soft(logits), counted_soft(pixels))
    assert counted(logits, labels).counts.sum() > 0


def test_the_shape_of_an_image_does_not_matter() -> None:
    logits, labels = images(6, size=24)
    assert_same(counted(logits, labels), counted(logits.reshape(5, C, 4, 3, 2), labels.reshape(5, 4, 3, 2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_counts_as_its_float32_values(dtype: torch.dtype) -> None:
    logits, labels = images(7)
    assert_same(counted(logits.to(dtype), labels), counted(logits.to(dtype).float(), labels))


def test_a_double_just_below_the_limit_stays_in_its_own_cell() -> None:
    below = 1 - 1e-12  # rounds to 1 in float32
    histogram = counted(torch.tensor([[below, 0.2]], dtype=torch.float64), torch.tensor([0]))
    assert histogram.counts.sum(dim=-1).tolist() == [[1, 1], [0, 0]]


def test_permuting_the_classes_permutes_the_cells() -> None:
    logits, labels = images(8)
    labels = labels.clamp(0, C - 1)
    order = torch.tensor([2, 0, 1])  # new channel i is old channel order[i]
    hard = counted(logits[:, order], order.argsort()[labels])
    assert torch.equal(hard.counts, counted(logits, labels).counts[order][:, order])
    soft = counted_soft(logits[:, order]).counts - counted_soft(logits).counts[order][:, order]
    assert soft.abs().max() <= 2 * 2**-16  # the softmax sums in another order


def test_edges_and_centers() -> None:
    histogram = LogitHistogram.from_counts(torch.zeros(1, 1, 4), 8.0)
    assert histogram.edges.tolist() == [-8, -4, 0, 4, 8]
    assert histogram.centers.tolist() == [-6, -2, 2, 6]


def test_means_are_the_samples_within_half_a_bin(reference: ModuleType) -> None:
    logits, labels = images(9)
    labels[labels == 1] = IGNORE_INDEX
    histogram = counted(logits, labels, 256)
    means = histogram.means()
    for label in (0, 2):
        for channel in range(C):
            exact = reference.cell(logits.double().numpy(), labels.numpy(), label, channel).mean()
            assert abs(float(means[label, channel]) - exact) <= histogram.limit / 256
    assert means[1].isnan().all()


def test_label_pixels_and_pools(reference: ModuleType) -> None:
    logits, labels = images(10)
    histogram = counted(logits, labels)
    assert histogram.label_pixels().tolist() == [int((labels == label).sum()) for label in range(C)]
    for pool, positive in ((histogram.positive(), True), (histogram.negative(), False)):
        values = reference.pooled(logits.double().numpy(), labels.numpy(), positive=positive)
        assert pool.tolist() == reference.histogram(values, B, histogram.limit).tolist()
    mass = counted_soft(logits).label_pixels()
    probabilities = torch.softmax(logits.double(), dim=1)
    torch.testing.assert_close(mass, probabilities.sum(dim=(0, 2)), rtol=0, atol=5 * 23 * 2**-17)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_refused_and_nothing_is_counted(bad: float) -> None:
    logits, labels = images(11)
    histogram = counted(logits, labels)
    before = histogram.counts.clone()
    broken = logits * 1000
    broken[2, 1, 5] = bad
    with pytest.raises(ValueError, match="finite"):
        histogram.update(broken, labels)
    with pytest.raises(ValueError, match="finite"):
        histogram.update_soft(broken)
    assert torch.equal(histogram.counts, before)


@pytest.mark.parametrize("bins", [0, 2, 12, 1000])
def test_bins_must_be_a_power_of_two(bins: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        LogitHistogram(C, bins)


@pytest.mark.parametrize("other", [LogitHistogram(C + 1, B), LogitHistogram(C, 2 * B)])
def test_histograms_of_other_shapes_do_not_add_up(other: LogitHistogram) -> None:
    with pytest.raises(ValueError, match="differ"):
        LogitHistogram(C, B) + other
