from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import LabelSource, LogitSpace
from blda_cli.core.logit_space import to_space
from blda_cli.core.statistics import LogitStatistics

C, IMAGES = 4, 5
KEYS = [f"day/{index}" for index in range(IMAGES)]


def images(seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(IMAGES, C, 13, 11, generator=random) * 2.0 ** torch.arange(IMAGES).view(-1, 1, 1, 1)
    labels = torch.randint(0, C, (IMAGES, 13, 11), generator=random)
    labels[torch.rand(labels.shape, generator=random) < 0.2] = IGNORE_INDEX
    return logits, labels


def empty(space: LogitSpace = LogitSpace.RAW, sources: tuple[LabelSource, ...] = tuple(LabelSource)) -> LogitStatistics:
    return LogitStatistics(C, sources, space=space, bins=64)


def collected(logits: Tensor, labels: Tensor | None, space: LogitSpace = LogitSpace.RAW) -> LogitStatistics:
    statistics = empty(space) if labels is not None else empty(space, (LabelSource.PSEUDO, LabelSource.SOFT))
    statistics.update(logits, labels, KEYS)
    return statistics


def assert_same(first: LogitStatistics, second: LogitStatistics) -> None:
    assert (first.space, first.images, first.pixels) == (second.space, second.images, second.pixels)
    assert first.cells.keys() == second.cells.keys()
    for source, cells in first.cells.items():
        assert cells.limit == second.cells[source].limit
        assert torch.equal(cells.counts, second.cells[source].counts), source
    assert first.confusion is not None
    assert second.confusion is not None
    assert torch.equal(first.confusion.counts, second.confusion.counts)
    for name in ("seen", "logits", "predicted", "labels", "images", "priorities"):
        assert torch.equal(getattr(first.sample, name), getattr(second.sample, name)), name


@settings(deadline=None, max_examples=20)
@given(
    order=st.permutations(range(IMAGES)),
    cuts=st.sets(st.integers(1, IMAGES - 1)),
    seed=st.integers(0, 2**31),
    space=st.sampled_from(LogitSpace),
)
def test_shards_in_any_order_add_up_bit_for_bit(order: list[int], cuts: set[int], seed: int, space: LogitSpace) -> None:
    logits, labels = images(seed)
    total = empty(space)
    for start, stop in pairwise([0, *sorted(cuts), IMAGES]):
        shard = empty(space)
        for index in order[start:stop]:
            shard.update(logits[index : index + 1], labels[index : index + 1], [KEYS[index]])
        total = shard + total
    assert_same(total, collected(logits, labels, space))


def test_what_waits_to_be_joined_does_not_grow_with_the_images() -> None:
    statistics = empty(sources=(LabelSource.PSEUDO,))
    for index in range(200):
        statistics.update(torch.randn(1, C, 1, 1, generator=torch.Generator().manual_seed(index)), None, [str(index)])
        assert len(statistics._pending) < 16
    assert len(statistics.sample) == 200


def test_each_source_counts_under_its_own_labels() -> None:
    logits, labels = images(0)
    statistics = collected(logits, labels)
    predicted = logits.argmax(dim=1)
    pixels = {source: cells.label_pixels() for source, cells in statistics.cells.items()}
    assert pixels[LabelSource.GROUND_TRUTH].tolist() == torch.bincount(labels[labels >= 0], minlength=C).tolist()
    assert pixels[LabelSource.PSEUDO].tolist() == torch.bincount(predicted.flatten(), minlength=C).tolist()
    torch.testing.assert_close(
        pixels[LabelSource.SOFT], logits.double().softmax(dim=1).sum(dim=(0, 2, 3)), rtol=0, atol=0.02
    )
    assert statistics.confusion is not None
    for label in range(C):
        expected = torch.bincount(predicted[labels == label], minlength=C)
        assert statistics.confusion.counts[label].tolist() == expected.tolist()
    assert (statistics.images, statistics.pixels, statistics.num_classes) == (IMAGES, IMAGES * 143, C)
    torch.testing.assert_close(
        statistics.predicted_share(), pixels[LabelSource.PSEUDO] / (IMAGES * 143), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("space", LogitSpace)
def test_cells_hold_logits_of_the_chosen_space_and_the_sample_raw_ones(space: LogitSpace) -> None:
    logits, labels = images(1)
    statistics = collected(logits, labels, space)
    cells = statistics.cells[LabelSource.PSEUDO]
    values, predicted = to_space(logits, space), logits.argmax(dim=1)
    for label in range(C):
        mean = values.movedim(1, -1)[predicted == label].double().mean(dim=0)
        torch.testing.assert_close(cells.means()[label], mean, rtol=0, atol=cells.limit / cells.bins)
    raw = logits.movedim(1, -1).reshape(-1, C)
    assert set(map(tuple, statistics.sample.logits.tolist())) <= set(map(tuple, raw.tolist()))


@pytest.mark.parametrize("space", [LogitSpace.CENTRED, LogitSpace.LOG_SOFTMAX])
def test_a_constant_per_pixel_does_not_move_cells_whose_space_has_none(space: LogitSpace) -> None:
    logits, labels = images(2)
    moved = collected(logits + torch.randn(IMAGES, 1, 13, 11) * 5, labels, space)
    plain = collected(logits, labels, space)
    for source in LabelSource:
        torch.testing.assert_close(moved.cells[source].means(), plain.cells[source].means(), rtol=0, atol=0.1)
        assert torch.equal(moved.cells[source].label_pixels().round(), plain.cells[source].label_pixels().round())


@pytest.mark.parametrize("space", LogitSpace)
def test_half_precision_counts_as_its_float32_values(space: LogitSpace) -> None:
    logits, labels = images(3)
    half = logits.half()
    assert_same(collected(half, labels, space), collected(half.float(), labels, space))


def test_without_labels_there_is_no_confusion() -> None:
    logits, _ = images(4)
    statistics = collected(logits, None)
    assert statistics.confusion is None
    assert (statistics + empty(sources=tuple(statistics.cells))).confusion is None


def test_a_classifiers_logits_are_pixels_of_one_by_one_images() -> None:
    logits, labels = images(5)
    assert_same(collected(logits[..., 0, 0], labels[..., 0, 0]), collected(logits[..., :1, :1], labels[..., :1, :1]))


def test_statistics_of_other_sources_or_spaces_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="label sources or logit spaces"):
        empty() + empty(LogitSpace.CENTRED)
    with pytest.raises(ValueError, match="label sources or logit spaces"):
        empty() + empty(sources=(LabelSource.PSEUDO,))


@pytest.mark.parametrize("space", LogitSpace)
def test_the_largest_logit_may_be_told_in_advance(space: LogitSpace) -> None:
    logits, labels = images(3)
    told, looked_for = empty(space), empty(space)
    for image in range(IMAGES):
        batch, label, key = logits[image : image + 1], labels[image : image + 1], KEYS[image : image + 1]
        told.update(batch, label, key, largest=float(batch.abs().max()))
        looked_for.update(batch, label, key)
    assert_same(told, looked_for)


def test_what_is_told_not_to_be_finite_is_refused() -> None:
    logits, labels = images(3)
    with pytest.raises(ValueError, match="finite"):
        empty().update(logits, labels, KEYS, largest=float("nan"))


def test_only_pixels_that_are_valid_count() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 16, 20, generator=random)
    labels = torch.randint(0, 4, (3, 16, 20), generator=random)
    valid = torch.rand(3, 16, 20, generator=random) < 0.6
    valid[2] = False
    sources = (LabelSource.PSEUDO, LabelSource.SOFT, LabelSource.GROUND_TRUTH)
    masked, void = LogitStatistics(4, sources), LogitStatistics(4, sources)
    masked.update(logits, labels, ["a", "b", "c"], valid=valid)
    # What is counted of pixels without a label is the ground truth of those alone.
    void.update(logits, torch.where(valid, labels, IGNORE_INDEX), ["a", "b", "c"])
    assert (masked.images, masked.pixels) == (3, int(valid.sum()))
    assert masked.confusion is not None
    assert void.confusion is not None
    assert masked.positions is not None
    assert void.positions is not None
    assert torch.equal(masked.confusion.counts, void.confusion.counts)
    assert torch.equal(masked.positions.counts, void.positions.counts)
    assert int(masked.positions.counts.sum()) > 0
    cells = [one.cells[LabelSource.GROUND_TRUTH].counts.sum(dim=2) for one in (masked, void)]
    assert torch.equal(*cells)
    predicted = logits.argmax(dim=1)
    assert masked.predicted_share().tolist() == pytest.approx(
        (torch.bincount(predicted[valid], minlength=4) / valid.sum()).tolist()
    )
    place = (masked.sample.positions * torch.tensor([16, 20])).long()
    image = (masked.sample.images != masked.sample.images[0]).long()
    first = int(bool((logits[0, :, place[0, 0], place[0, 1]] != masked.sample.logits[0]).any()))
    assert bool(valid[(image + first) % 2, place[:, 0], place[:, 1]].all())
    with pytest.raises(ValueError, match=r"valid should be of shape \[3, 16, 20\], not \[16, 20\]"):
        masked.update(logits, labels, ["d", "e", "f"], valid=valid[0])
