import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.classes import ClassSet, class_set, preset
from blda_cli.data.label_files import read_label_file, write_label_png
from blda_cli.errors import BldaError

WritePng = Callable[..., None]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), bits=st.sampled_from([1, 2, 4]), width=st.integers(1, 17))
def test_grey_of_few_bits_is_not_stretched(
    tmp_path: Path, write_png: WritePng, seed: int, bits: int, width: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, (5, width), np.uint8)
    write_png(tmp_path / "few.png", values, color_type=0, bits=bits)
    raw = read_label_file(tmp_path / "few.png")
    assert raw.values is not None
    np.testing.assert_array_equal(raw.values, values)


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_gives_the_first_channel_whole(tmp_path: Path, write_png: WritePng, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (7, 9, channels))
    values[0, :3, 0] = (3, 22, 513)
    write_png(tmp_path / "wide.png", values, color_type=2 if channels == 3 else 6, bits=16)
    raw = read_label_file(tmp_path / "wide.png")
    assert raw.wide_color
    assert raw.colors is None
    assert raw.values is not None
    np.testing.assert_array_equal(raw.values, values[..., 0])


def test_16_bit_grey(tmp_path: Path) -> None:
    values = np.array([[0, 26001, 65535]], dtype=np.uint16)
    for name in ("wide.png", "wide.tif"):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(read_label_file(tmp_path / name).values, values)


def test_palette_gives_indices_and_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 7, 200]], np.uint8))
    image.putpalette(np.arange(768, dtype=np.uint16).astype(np.uint8).tobytes())
    image.save(tmp_path / "p.png")
    raw = read_label_file(tmp_path / "p.png")
    np.testing.assert_array_equal(raw.values, [[0, 7, 200]])
    assert raw.palette is not None
    assert raw.palette[7].tolist() == [21, 22, 23]


def test_colours_and_grey_saved_as_colours(tmp_path: Path) -> None:
    colors = np.array([[[1, 2, 3], [4, 4, 4]]], np.uint8)
    Image.fromarray(colors).save(tmp_path / "c.png")
    raw = read_label_file(tmp_path / "c.png")
    assert raw.values is None
    np.testing.assert_array_equal(raw.colors, colors)
    Image.fromarray(np.repeat(colors[..., :1], 3, axis=2)).save(tmp_path / "g.png")
    np.testing.assert_array_equal(read_label_file(tmp_path / "g.png").values, [[1, 4]])


def test_whole_numbers_are_asked_for(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 3]], np.float32)).save(tmp_path / "whole.tif")
    np.testing.assert_array_equal(read_label_file(tmp_path / "whole.tif").values, [[0, 3]])
    for name, values in {"half": [[0.5]], "below": [[-1.0]], "nan": [[np.nan]]}.items():
        Image.fromarray(np.array(values, np.float32)).save(tmp_path / f"{name}.tif")
        with pytest.raises(BldaError, match=rf"{name}\.tif holds values that are not whole"):
            read_label_file(tmp_path / f"{name}.tif")


def test_a_truncated_label_is_named(tmp_path: Path) -> None:
    write_label_png(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 19, (64, 64)), preset("cityscapes"))
    os.truncate(tmp_path / "cut.png", 1500)
    with pytest.raises(BldaError, match=r"cut\.png cannot be read"):
        read_label_file(tmp_path / "cut.png")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_what_is_written_is_read(tmp_path: Path, count: int, seed: int) -> None:
    classes = class_set([f"class {index}" for index in range(count)])
    labels = np.random.default_rng(seed).integers(IGNORE_INDEX, count, (6, 5))
    write_label_png(tmp_path / "out" / "labels.png", labels, classes)
    raw = read_label_file(tmp_path / "out" / "labels.png")
    np.testing.assert_array_equal(raw.values, np.where(labels < 0, 255 if count <= 255 else 65535, labels))
    assert (raw.palette is None) == (count > 255)
    if raw.palette is not None:
        np.testing.assert_array_equal(raw.palette[raw.values], np.array([*classes.palette, (0, 0, 0)])[labels])


def test_ids_and_ignored_pixels(tmp_path: Path) -> None:
    labels = np.array([[0, 13, IGNORE_INDEX]])
    write_label_png(tmp_path / "a.png", labels, preset("cityscapes"), original_ids=True)
    raw = read_label_file(tmp_path / "a.png")
    np.testing.assert_array_equal(raw.values, [[7, 26, 255]])
    assert raw.palette is not None
    assert raw.palette[[7, 26, 255]].tolist() == [[128, 64, 128], [0, 0, 142], [0, 0, 0]]
    wide = ClassSet(("a", "b"), ((1, 1, 1), (2, 2, 2)), (1000, 26000))
    write_label_png(tmp_path / "b.png", np.array([[1, 0]]), wide, original_ids=True)
    np.testing.assert_array_equal(read_label_file(tmp_path / "b.png").values, [[26000, 1000]])


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "labels.png").mkdir()
    with pytest.raises(BldaError, match=r"labels\.png cannot be written"):
        write_label_png(tmp_path / "labels.png", np.zeros((2, 2), np.uint8), preset("camvid"))
    (tmp_path / "file").touch()
    with pytest.raises(BldaError, match="cannot be written"):
        write_label_png(tmp_path / "file" / "a.png", np.zeros((2, 2), np.uint8), preset("camvid"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "labels.png"]
