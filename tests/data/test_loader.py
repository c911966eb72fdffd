import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blda_cli.data.images import find_images
from blda_cli.data.loader import SkippedFile, load_batches
from blda_cli.data.pillow_images import PillowImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError


def files(count: int) -> list[ImageSource]:
    return [PillowImage(Path(f"{index}.png"), str(index)) for index in range(count)]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 2), max_size=20),
    batch_size=st.integers(1, 4),
    workers=st.integers(1, 4),
    bad=st.sets(st.integers(0, 19)),
)
def test_every_good_sample_comes_once_in_order_in_batches_of_one_shape(
    sizes: list[int], batch_size: int, workers: int, bad: set[int]
) -> None:
    def read(file: ImageSource) -> np.ndarray:
        index = int(file.key)
        if index in bad:
            raise BldaError(f"{index} is bad")
        return np.full((sizes[index], 2), index)

    skipped: list[SkippedFile] = []
    batches = list(
        load_batches(
            files(len(sizes)), read, read, batch_size=batch_size, workers=workers, on_error="skip", skipped=skipped
        )
    )
    keys = [file.key for batch in batches for file in batch.files]
    assert keys == [str(index) for index in range(len(sizes)) if index not in bad]
    assert [entry.file.key for entry in skipped] == [str(index) for index in range(len(sizes)) if index in bad]
    for batch in batches:
        assert 1 <= len(batch.files) == len(batch.arrays) <= batch_size
        assert [int(array.flat[0]) for array in batch.arrays] == [int(file.key) for file in batch.files]
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.labels, batch.arrays)
    for before, after in pairwise(batches):  # no batch is smaller than it need be
        assert len(before.files) == batch_size or before.arrays.shape[1:] != after.arrays.shape[1:]


def test_a_bad_label_skips_its_image_and_says_why() -> None:
    def labels(file: ImageSource) -> np.ndarray:
        if file.key == "1":
            raise BldaError("label 1 is torn")
        return np.zeros(1)

    skipped: list[SkippedFile] = []
    batches = load_batches(files(3), lambda file: np.zeros(1), labels, batch_size=3, on_error="skip", skipped=skipped)
    assert [file.key for batch in batches for file in batch.files] == ["0", "2"]
    assert [(entry.file.key, entry.reason) for entry in skipped] == [("1", "label 1 is torn")]


def test_stop_gives_what_was_read_before_and_then_raises() -> None:
    def read(file: ImageSource) -> np.ndarray:
        if file.key == "2":
            raise BldaError("2.png is torn")
        return np.zeros(1)

    batches = load_batches(files(5), read, batch_size=4)
    assert [file.key for file in next(batches).files] == ["0", "1"]
    with pytest.raises(BldaError, match=r"2\.png is torn"):
        next(batches)


def test_a_programming_error_is_not_skipped() -> None:
    def read(file: ImageSource) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(load_batches(files(1), read, on_error="skip"))


def test_reading_ahead_is_bounded_and_ends_with_the_iterator() -> None:
    started: list[str] = []
    lock = threading.Lock()

    def read(file: ImageSource) -> np.ndarray:
        with lock:
            started.append(file.key)
        return np.zeros(1)

    batches = load_batches(files(100), read, batch_size=2, workers=3)
    assert not started
    next(batches)
    time.sleep(0.05)
    assert len(started) <= 2 + 2 + 3
    batches.close()  # type: ignore[attr-defined]
    count = len(started)
    time.sleep(0.05)
    assert len(started) == count
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("blda-read")]


def test_the_next_samples_are_read_while_the_consumer_works() -> None:
    read_ahead = threading.Event()

    def read(file: ImageSource) -> np.ndarray:
        if file.key == "2":
            read_ahead.set()
        return np.zeros(1)

    batches = load_batches(files(3), read, workers=2)
    next(batches)
    assert read_ahead.wait(timeout=10)


def test_real_frames_in_batches(shared_data: Path) -> None:
    images = find_images(shared_data / "camvid" / "day" / "images")[:7]
    batches = list(load_batches(images, lambda file: file.read(), batch_size=3))
    assert [batch.arrays.shape for batch in batches] == [(3, 360, 480, 3), (3, 360, 480, 3), (1, 360, 480, 3)]
    assert batches[0].labels is None
