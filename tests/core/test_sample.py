import hashlib
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core import sample as sample_module
from blda_cli.core.sample import PixelSample, join

C = 3
KEYS = [f"street/{index}" for index in range(6)]


def images(seed: int = 0, size: int = 20) -> tuple[Tensor, Tensor]:
    """Logits whose last class is predicted rarely, and labels."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, C, size, size, generator=random)
    logits[:, 2] -= 2.5
    return logits, torch.randint(0, C, (6, size, size), generator=random)


def sampled(logits: Tensor, labels: Tensor | None, keys: list[str]) -> PixelSample:
    return PixelSample.empty(C, size=3 * 256).draw(logits, logits.argmax(dim=1), labels, keys)


def assert_same(first: PixelSample, second: PixelSample) -> None:
    for name in ("seen", "logits", "predicted", "labels", "images", "positions", "priorities"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@settings(deadline=None, max_examples=30)
@given(
    order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)), batch=st.integers(1, 3), every=st.integers(1, 3)
)
def test_shards_in_any_order_add_up_bit_for_bit(order: list[int], cuts: set[int], batch: int, every: int) -> None:
    logits, labels = images()
    total = PixelSample.empty(C, size=3 * 256)
    for start, stop in pairwise([0, *sorted(cuts), 6]):
        shard, pending = PixelSample.empty(C, size=3 * 256), []
        for first in range(start, stop, batch):
            chosen = order[first : min(first + batch, stop)]
            keys = [KEYS[i] for i in chosen]
            pending.append(shard.draw(logits[chosen], logits[chosen].argmax(dim=1), labels[chosen], keys))
            if len(pending) == every:
                shard, pending = join([shard, *pending]), []
        total = join([shard, *pending]) + total
    assert_same(total, sampled(logits, labels, KEYS))


def test_some_of_the_pixels_stand_for_as_many_as_before() -> None:
    logits, labels = images(size=200)
    sample = sampled(logits, labels, KEYS)
    wanted = torch.rand(len(sample), generator=torch.Generator().manual_seed(1)) < 0.4
    part = sample.among(wanted)
    assert torch.equal(part.logits, sample.logits[wanted])
    assert torch.equal(part.labels, sample.labels[wanted])
    assert torch.equal(part.images, sample.images[wanted])
    torch.testing.assert_close(part.weights(), sample.weights()[wanted], rtol=1e-2, atol=0)
    assert part.weights().max() > 20
    assert len(sample.among(torch.zeros(len(sample), dtype=torch.bool))) == 0


def test_pixels_know_where_they_lie() -> None:
    logits, labels = images()
    logits = logits[..., :15]  # not square
    sample = sampled(logits, labels[..., :15], KEYS)
    rows, columns = (sample.positions * torch.tensor([20.0, 15.0]) - 0.5).round().long().T
    digests = sample.images.unique()
    assert len(digests) == 6
    candidates = logits[:, :, rows, columns].permute(0, 2, 1)  # of each image, at the sampled places
    assert bool((candidates == sample.logits).all(dim=2).any(dim=0).all())


def test_every_class_is_kept_up_to_the_capacity() -> None:
    logits, labels = images()
    sample = sampled(logits, labels, KEYS)
    predicted = torch.bincount(logits.argmax(dim=1).flatten(), minlength=C)
    assert sample.capacity == 256
    assert predicted[2] < 256 < predicted[:2].min()
    assert torch.equal(sample.seen, predicted)
    assert torch.bincount(sample.predicted).tolist() == [256, 256, int(predicted[2])]
    assert len(sample) == 512 + int(predicted[2])


def test_a_kept_pixel_keeps_its_logits_and_label_together() -> None:
    logits, labels = images()
    sample = sampled(logits, labels, KEYS)
    assert torch.equal(sample.logits.argmax(dim=1), sample.predicted)
    pixels = torch.cat([logits.movedim(1, -1).reshape(-1, C), labels.reshape(-1, 1).float()], dim=1)
    kept = torch.cat([sample.logits, sample.labels[:, None].float()], dim=1)
    assert set(map(tuple, kept.tolist())) <= set(map(tuple, pixels.tolist()))
    assert len(set(map(tuple, kept.tolist()))) == len(sample)


def test_weights_add_up_to_the_pixels_seen() -> None:
    logits, labels = images()
    empty = PixelSample.empty(C, size=3 * 300)  # one in 300 is no float32
    sample = empty.draw(logits, logits.argmax(dim=1), labels, KEYS)
    weights = sample.weights()
    assert weights.dtype == torch.float64
    torch.testing.assert_close(torch.bincount(sample.predicted, weights, C), sample.seen.double(), rtol=1e-13, atol=0)
    assert (weights[sample.predicted == 2] == 1).all()


def test_pixels_are_drawn_evenly_over_images_and_positions() -> None:
    logits = torch.zeros(6, C, 40, 40)
    logits[:, 0] = 1
    logits[:, 1] = torch.linspace(-1, 0, 40 * 40).view(40, 40)  # tells the position
    logits[:, 2] = -torch.arange(6.0)[:, None, None]  # tells the image
    sample = sampled(logits, None, KEYS)
    assert len(sample) == 256
    per_image = torch.bincount(-sample.logits[:, 2].long(), minlength=6)
    assert per_image.min() > 256 / 6 - 5 * 6  # five deviations of a binomial count
    assert per_image.max() < 256 / 6 + 5 * 6
    position = sample.logits[:, 1] + 1
    assert float(position.mean()) == pytest.approx(0.5, abs=5 * 0.29 / 16)
    assert torch.bincount(torch.unique(sample.images, return_inverse=True)[1]).sort()[0].tolist() == sorted(
        per_image.tolist()
    )


def test_images_of_equal_content_are_drawn_from_differently() -> None:
    logits, labels = images()
    twins = logits[:1].expand(2, -1, -1, -1)
    sample = sampled(twins, labels[:1].expand(2, -1, -1), KEYS[:2])
    first = sample.images == sample.images[0]
    assert sample.images.unique().numel() == 2
    assert not torch.equal(sample.logits[first][:50], sample.logits[~first][:50])


def test_without_labels_every_label_is_ignored() -> None:
    sample = sampled(images()[0], None, KEYS)
    assert (sample.labels == IGNORE_INDEX).all()


def test_a_classifiers_logits_are_pixels_of_one_by_one_images() -> None:
    logits, labels = images(size=1)
    flat = sampled(logits[..., 0, 0], labels[..., 0, 0], KEYS)
    assert len(flat) == 6
    assert_same(flat, sampled(logits, labels, KEYS))


def test_labels_that_are_no_class_are_kept_as_none() -> None:
    logits = torch.randn(1, 300, 5)
    given = torch.tensor([[255, 299, 300, 65535, -1]])
    drawn = PixelSample.empty(300).draw(logits, logits.argmax(dim=1), given, ["a"])
    assert sorted(drawn.labels.tolist()) == [IGNORE_INDEX] * 3 + [255, 299]


def test_priorities_are_murmurs_of_the_positions() -> None:
    """As files of earlier versions hold them, which are still added up with new ones."""
    keys, pixels = ["west/a", "b"], 6 * 50
    sample = PixelSample.empty(3).draw(torch.zeros(2, 3, 6, 50), torch.zeros(2, 6, 50).byte(), None, keys)

    def mixed(value: int) -> int:
        value ^= value >> 16
        value = value * 0x85EBCA6B % 2**32
        value ^= value >> 13
        value = value * 0xC2B2AE35 % 2**32
        return (value ^ (value >> 16)) & 0x7FFFFFFF

    expected = {}
    for key in keys:
        digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1
        for place in range(pixels):
            rank = mixed(((digest >> 18) % 2**31 + place) % 2**32)
            expected[rank << 18 | digest % 2**18] = digest, [(place // 50 + 0.5) / 6, (place % 50 + 0.5) / 50]
    assert sample.priorities.tolist() == sorted(expected)[: len(sample)]
    for row, priority in enumerate(sample.priorities.tolist()):
        image, position = expected[priority]
        assert int(sample.images[row]) == image
        assert sample.positions[row].tolist() == pytest.approx(position)


def test_pixels_of_a_mask_keep_their_places() -> None:
    """A mask leaves pixels out, and changes nothing else: neither which of the others are drawn nor where they lie."""
    logits, labels = images(size=60)
    mask = torch.rand(60, 60, generator=torch.Generator().manual_seed(1)) < 0.5
    whole = PixelSample.empty(C, size=3 * 20_000).draw(logits[:1], logits[:1].argmax(dim=1), labels[:1], KEYS[:1])
    part = PixelSample.empty(C, size=3 * 20_000).draw(
        logits[0][:, mask][None], logits[0].argmax(dim=0)[mask][None], labels[0][mask][None], KEYS[:1], mask
    )
    rows, columns = (whole.positions * 60).long().unbind(1)
    kept = whole.among(mask[rows, columns])
    for name in ("logits", "predicted", "labels", "images", "positions", "priorities"):
        assert torch.equal(getattr(part, name), getattr(kept, name)), name
    assert int(part.seen.sum()) == int(mask.sum())


@pytest.mark.parametrize("classes", [2, 40])
def test_of_very_many_pixels_the_same_ones_are_drawn(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where classes have hardly more pixels than are kept, and where an earlier image filled some."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 150, 160, generator=random)
    logits[:, 1] -= 2

    def drawn() -> PixelSample:
        sample = PixelSample.empty(classes, size=classes * 700)
        for image, key in zip(logits, KEYS, strict=False):
            sample += sample.draw(image[None], image.argmax(dim=0)[None], None, [key])
        return sample

    whole = drawn()
    monkeypatch.setattr(sample_module, "_MANY", 0)
    counted, lowest = [], sample_module._lowest

    def counting(*given: Any) -> Any:
        counted.append(len(given[0]))
        return lowest(*given)

    monkeypatch.setattr(sample_module, "_lowest", counting)
    assert_same(drawn(), whole)
    if classes == 2:
        assert counted[0] < 0.7 * 150 * 160
