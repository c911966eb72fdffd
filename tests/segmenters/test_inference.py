import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blda_cli.data.windows import spread_windows, window_starts
from blda_cli.errors import BldaError
from blda_cli.segmenters.inference import average_views, slide, view_of
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.preprocessing import Preprocessor, pad_to_multiple, resize_images
from blda_cli.segmenters.spec import PreprocessingSection
from tests.segmenters.test_placement import segmenter


@settings(deadline=None, max_examples=50)
@given(data=st.data(), window=st.integers(1, 40))
def test_windows_cover_every_pixel_and_stay_inside(data: st.DataObject, window: int) -> None:
    stride = data.draw(st.integers(1, window))
    length = data.draw(st.integers(window, 120))
    starts = window_starts(length, window, stride)
    covered = np.zeros(length, dtype=int)
    for start in starts:
        assert 0 <= start <= length - window
        covered[start : start + window] += 1
    assert covered.min() >= 1
    assert len(starts) == len(set(starts))


@settings(deadline=None, max_examples=50)
@given(size=st.tuples(*[st.integers(1, 300)] * 2), window=st.tuples(*[st.integers(1, 40)] * 2), most=st.integers(1, 64))
def test_windows_are_spread_over_an_image(size: tuple[int, int], window: tuple[int, int], most: int) -> None:
    """They cover it where that takes no more than are wanted; else they lie evenly apart."""
    windows = spread_windows(size, window, most)
    height, width = (min(one, whole) for one, whole in zip(window, size, strict=True))
    covered = np.zeros(size, dtype=int)
    for (top, bottom), (left, right) in windows:
        assert (bottom - top, right - left) == (height, width)
        covered[top:bottom, left:right] += 1
    enough = -(-size[0] // height) * -(-size[1] // width)
    if enough <= most:
        assert len(windows) == enough
        assert covered.min() >= 1
    else:
        assert most / 4 < len(windows) <= most
    assert len(set(windows)) == len(windows)
    for axis, last in enumerate((size[0] - height, size[1] - width)):
        starts = sorted({place[axis][0] for place in windows})
        assert (starts[0], starts[-1]) == (0, last) if len(starts) > 1 else starts == [last // 2]
        assert np.ptp(np.diff(starts)) <= 1 if len(starts) > 1 else True


def position_score(part: Tensor) -> Tensor:
    """Two classes: the first channel, and where in its window a pixel lies."""
    rows = torch.arange(part.shape[2], dtype=torch.float32)[None, None, :, None].expand(
        part.shape[0], 1, *part.shape[2:]
    )
    return torch.cat([part[:, :1], rows], dim=1)


@pytest.mark.parametrize("window", [(4, 5), (7, 11), (30, 30)])
def test_overlaps_are_weighed_by_the_distance_from_the_windows_edge(window: tuple[int, int]) -> None:
    images = torch.randn(2, 3, 11, 13)
    stride = (3, 2)
    got = slide(position_score, images, window, stride)

    height, width = min(window[0], 11), min(window[1], 13)
    total, weights = torch.zeros(2, 2, 11, 13), torch.zeros(11, 13)
    tops = sorted({min(top, 11 - height) for top in range(0, 11, stride[0])})
    lefts = sorted({min(left, 13 - width) for left in range(0, 13, stride[1])})
    for top in tops:
        for left in lefts:
            scores = position_score(images[..., top : top + height, left : left + width])
            for row in range(height):
                for column in range(width):
                    weight = min(row + 1, height - row) / (height + 1) * min(column + 1, width - column) / (width + 1)
                    total[..., top + row, left + column] += weight * scores[..., row, column]
                    weights[top + row, left + column] += weight
    torch.testing.assert_close(got, total / weights)
    torch.testing.assert_close(got[:, 0], images[:, 0])


def test_a_stride_that_leaves_gaps_is_refused() -> None:
    with pytest.raises(BldaError, match="leaves gaps"):
        slide(position_score, torch.zeros(1, 3, 20, 20), (8, 8), (9, 8))


def test_windows_of_a_classifier_are_refused() -> None:
    with pytest.raises(BldaError, match="one answer per image"):
        slide(lambda part: part.mean(dim=(2, 3)), torch.zeros(1, 3, 20, 20), (8, 8), (8, 8))


def test_one_view_gives_the_logits_themselves() -> None:
    images = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(average_views(lambda *_: 3 * images, InferenceOptions()), 3 * images)


def test_views_average_probabilities() -> None:
    given = {key: torch.randn(1, 3, 12, 16) for key in itertools.product((0.5, 1.0), (False, True))}
    got = average_views(lambda *view: given[view], InferenceOptions(scales=(0.5, 1.0), flip=True))
    expected = torch.stack([view.softmax(1) for view in given.values()]).mean(0)
    torch.testing.assert_close(got.exp(), expected)


def test_a_view_is_scaled_and_mirrored() -> None:
    images = torch.randn(1, 3, 12, 16)
    torch.testing.assert_close(view_of(images, 0.5, True), resize_images(images, (6, 8)).flip(-1))
    assert view_of(images, 1.0, False) is images


@pytest.mark.parametrize("slide", [None, (6, 8)])
def test_mirrored_logits_are_turned_back(slide: tuple[int, int] | None) -> None:
    """Of a network that sees single pixels, views give the probabilities of the image itself; windows too."""
    made = segmenter(lambda images: 3 * images)
    images = torch.randint(0, 256, (1, 12, 16, 3), dtype=torch.uint8)
    plain = made.logits(images)
    got = made.logits(images, InferenceOptions(slide=slide, flip=True))
    torch.testing.assert_close(got.exp(), plain.softmax(1))
    mirrored = made.logits(images, InferenceOptions(slide=slide, mirrored=True))
    torch.testing.assert_close(mirrored, plain)


def test_views_of_a_classifier_are_averaged_too() -> None:
    made = segmenter(lambda images: images[..., 0].mean(-1))
    images = torch.randint(0, 256, (2, 12, 16, 3), dtype=torch.uint8)
    got = made.logits(images, InferenceOptions(flip=True))
    other = made.logits(images.flip(2))
    torch.testing.assert_close(got.exp(), (made.logits(images).softmax(1) + other.softmax(1)) / 2)


CPU = torch.device("cpu")


def test_a_scale_is_of_the_size_that_the_network_is_fed_at() -> None:
    images = torch.randint(0, 256, (1, 3, 36, 48)).float()
    own = Preprocessor(PreprocessingSection(), CPU)
    assert torch.equal(own(images, 0.5), resize_images(images, (18, 24)) / 255)
    assert own.fed_size((5, 7), 0.01) == (1, 1)
    described = Preprocessor(PreprocessingSection(size=(64, 96)), CPU)
    assert torch.equal(described(images, 1.25), resize_images(images, (80, 120)) / 255)


@pytest.mark.parametrize(
    ("keys", "scale", "multiple"),
    [
        ({}, 0.5, 1),
        ({"size": (704, 960)}, 1, 1),
        ({"size": (704, 960)}, 0.75, 32),
        ({"size": (720, 960)}, 0.75, 16),
        ({"size": (720, 960), "multiple_of": 24}, 0.75, 24),
    ],
)
def test_scaled_sizes_stay_as_divisible_as_the_one_given(keys: dict[str, Any], scale: float, multiple: int) -> None:
    assert Preprocessor(PreprocessingSection(**keys), CPU).multiple(scale) == multiple


def test_preprocessing_does_what_its_keys_say() -> None:
    images = torch.randint(0, 256, (2, 3, 6, 7)).float()
    assert torch.equal(Preprocessor(PreprocessingSection(), CPU)(images), images / 255)

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    got = Preprocessor(PreprocessingSection(mean=mean, std=std), CPU)(images)
    for c in range(3):
        torch.testing.assert_close(got[:, c], (images[:, c] / 255 - mean[c]) / std[c])

    mean, std = (72.39, 82.91, 73.16), (45.32, 46.15, 44.91)
    got = Preprocessor(PreprocessingSection("bgr", mean, std, 255.0), CPU)(images)
    for c in range(3):
        torch.testing.assert_close(got[:, c], (images[:, 2 - c] - mean[c]) / std[c] / 255)


def test_shrinking_is_antialiased_as_pillow_does() -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((20, 13), Image.Resampling.BILINEAR)).astype(np.float32)
    got = resize_images(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), (13, 20))[0].permute(1, 2, 0).numpy()
    assert np.abs(got - expected).max() <= 1  # Pillow rounds to integers


def test_padding_is_below_and_on_the_right() -> None:
    padded = pad_to_multiple(torch.ones(1, 3, 5, 8), 4)
    assert padded.shape == (1, 3, 8, 8)
    assert padded.sum() == 3 * 40
    assert padded[..., :5, :].min() == 1
