import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import LabelSource, LogitSpace
from blda_cli.core.corrections import Correction, LocationCorrection, OffsetCorrection, QuantileCorrection
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.shifts import location_shifts
from blda_cli.data.classes import class_set
from blda_cli.data.pillow_images import PillowImage
from blda_cli.reporting import gallery
from blda_cli.reporting.check_page import overlay
from blda_cli.reporting.colors import diverging, luminance, sequential, text_on
from blda_cli.reporting.densities import BINS, densities
from blda_cli.reporting.gallery import choose_frames, make_gallery
from blda_cli.reporting.matrices import confusion_matrix, shift_matrix


@pytest.fixture(scope="module")
def cells(make_domain: Callable[..., Any]) -> LogitHistogram:
    histogram: LogitHistogram = make_domain(5, 4).statistics.cells[LabelSource.GROUND_TRUTH]
    return histogram


def test_curves_are_those_of_the_cells(cells: LogitHistogram) -> None:
    shown = densities(cells, cells, None)
    assert shown.after is None
    own = shown.before[2].positive
    assert own is not None
    assert own.mean == pytest.approx(float(cells.means()[2, 2]))
    assert own.heights.shape == (BINS,)
    assert own.heights.max() == 1
    edges = np.linspace(shown.low, shown.high, BINS + 1)
    expected = np.histogram(cells.centers, edges, weights=cells.counts[2, 2])[0]
    np.testing.assert_allclose(own.heights, expected / expected.max(), atol=0.15)  # bins are cut, not moved whole
    negative = shown.before[2].negative
    assert negative is not None
    counts = cells.counts[:, 2].sum(dim=0) - cells.counts[2, 2]
    assert negative.mean == pytest.approx(float(counts @ cells.centers / counts.sum()))
    assert shown.before[4].positive is None  # never there


def test_location_shifts_put_the_means_on_the_anchors(cells: LogitHistogram) -> None:
    shifts = location_shifts(cells.means(), cells.label_pixels())
    shown = densities(cells, cells, LocationCorrection(shifts.float()))
    assert shown.after is not None
    assert shown.anchors.positive is not None
    assert shown.anchors.negative is not None
    for pair in shown.after[:4]:
        assert pair.positive is not None
        assert pair.negative is not None
        assert pair.positive.mean == pytest.approx(shown.anchors.positive.mean, abs=1e-4)
        assert pair.negative.mean == pytest.approx(shown.anchors.negative.mean, abs=1e-4)


def test_equal_shifts_of_every_kind_look_alike(cells: LogitHistogram) -> None:
    offsets = torch.tensor([0.5, -0.5, 0.25, -0.25, 0.0])
    table = offsets.expand(5, 5)
    kinds: list[Correction] = [
        OffsetCorrection(offsets + 3),  # a constant more changes no prediction
        LocationCorrection(table),
        QuantileCorrection(table.unsqueeze(2).expand(5, 5, 64), 32.0, LogitSpace.RAW),
    ]
    first, *others = [densities(cells, cells, kind).after for kind in kinds]
    assert first is not None
    for other in others:
        assert other is not None
        for one, two in zip(first[:4], other[:4], strict=True):
            assert one.positive is not None
            assert two.positive is not None
            np.testing.assert_allclose(one.positive.heights, two.positive.heights, atol=1e-6)


def test_most_changed_frames_without_neighbours() -> None:
    changed = {"a": 0.1, "b": 0.5, "c": 0.4, "d": 0.3, "e": 0.0, "f": 0.2}
    assert choose_frames(changed) == ["b", "d", "f"]
    assert choose_frames(changed, 1) == ["b"]
    assert choose_frames({"a": 0.0}) == []


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(1, 6))
def test_chosen_frames_follow_the_rule(shares: list[float], count: int) -> None:
    changed = {str(index): share for index, share in enumerate(shares)}
    chosen = [int(key) for key in choose_frames(changed, count)]
    assert len(chosen) <= count
    assert all(shares[place] > 0 for place in chosen)
    assert all(abs(one - other) > 1 for one in chosen for other in chosen if one != other)
    assert [shares[place] for place in chosen] == sorted((shares[place] for place in chosen), reverse=True)


def opened(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_pictures_of_a_frame(tmp_path: Path) -> None:
    classes = class_set(["one", "two", "three"])
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "x.png")
    before = np.zeros((20, 30), np.int64)
    after = before.copy()
    after[:10] = 2
    labels = np.full((20, 30), 1)
    labels[:5], labels[5:10] = 2, IGNORE_INDEX
    images = {"x": PillowImage(tmp_path / "x.png", "x")}
    (frame,) = make_gallery(["x"], images, lambda _: before, {"run": lambda _: after}, classes, lambda _: labels)
    assert (frame.width, frame.height) == (30, 20)
    assert frame.classes == {0: 600 + 300, 1: 300, 2: 300 + 150}
    assert (frame.right, frame.runs[0].right) == (0, 150 / 450)
    assert frame.labels is not None
    shown = opened(frame.labels)
    np.testing.assert_array_equal(shown[[0, 7, 15], 0], [classes.palette[2], (0, 0, 0), classes.palette[1]])
    (frame,) = make_gallery(["x"], images, lambda _: before, {"run": lambda _: after}, classes)
    assert (frame.labels, frame.right, frame.runs[0].right) == (None, None, None)
    assert frame.runs[0].changed == 0.5
    after[10:14] = before[10:14] = IGNORE_INDEX  # no data
    (part,) = make_gallery(["x"], images, lambda _: before, {"run": lambda _: after}, classes)
    assert part.runs[0].changed == 10 / 16
    np.testing.assert_array_equal(opened(frame.runs[0].after)[0, 0], classes.palette[2])
    np.testing.assert_array_equal(opened(frame.before)[0, 0], classes.palette[0])
    difference = opened(frame.runs[0].difference).astype(int)
    assert np.abs(difference[3, 15] - classes.palette[2]).max() < 40
    assert np.ptp(difference[16, 15]) < 12  # unchanged: grey


def test_the_overlays_of_a_check_leave_pixels_without_data_grey() -> None:
    classes = np.array([[0, 1, IGNORE_INDEX]])
    drawn = np.asarray(overlay(np.full((1, 3, 3), 90, np.uint8), classes, [(255, 0, 0), (0, 0, 255)]))
    assert drawn[0, 0, 0] > drawn[0, 0, 2]
    assert drawn[0, 1, 2] > drawn[0, 1, 0]
    assert drawn[0, 2].tolist() == [90, 90, 90]


def test_gallery_keeps_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "_BUDGET", 1)
    labels = np.zeros((8, 8), np.int64)
    keys = ["a", "b", "c"]
    images = {key: PillowImage(tmp_path / key, key) for key in keys}
    frames = make_gallery(keys, images, lambda _: labels, {"run": lambda _: labels}, class_set(["one"]))
    assert [frame.key for frame in frames] == ["a"]


def contrast(text: str, color: tuple[int, ...]) -> float:
    lights = sorted([luminance(color), 1.0 if text == "#fff" else 0.0])
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@given(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)))
def test_text_can_be_read_on_any_colour(color: tuple[int, int, int]) -> None:
    assert contrast(text_on(color), color) >= 4.5


def test_scales() -> None:
    values = np.array([-2.0, 0.0, 2.0, np.nan])
    low, middle, high, missing = diverging(values, 2.0).tolist()
    assert low[0] > low[2]  # orange: too high
    assert high[2] > high[0]  # blue: too low
    assert middle == [247, 247, 247]
    assert missing == [200, 200, 200]
    assert np.diff(sequential(np.linspace(0, 1, 9)).astype(int).sum(axis=1)).max() < 0


def test_small_matrices_are_tables_and_large_ones_pictures() -> None:
    small = confusion_matrix("x", [[3, 1], [0, 0]], ["a", "b"])
    assert [[text for text, _, _ in row] for row in small.cells] == [["75", "25"], ["n/a", "n/a"]]
    names = [str(number) for number in range(30)]
    values = np.zeros((30, 30))
    values[4, 7] = -3.25
    large = shift_matrix(values.tolist(), names)
    assert large.cells == []
    assert large.largest[0] == ("4", "7", "−3.2")
    assert opened(large.picture).shape == (30, 30, 3)
