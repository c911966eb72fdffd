from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blda_cli.data.images import at_rate, every, find_images, image_at
from blda_cli.errors import BldaError

av = pytest.importorskip("av", reason="the extra video is not installed")

FRAMES = 40


def film(path: Path, count: int = FRAMES, codec: str = "mpeg4", size: tuple[int, int] = (64, 48)) -> Path:
    """A video whose frames get brighter, with a keyframe every 12."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 12
        stream.max_b_frames = 2
        for number in range(count):
            pixels = np.full((height, width, 3), 10 + 5 * number, np.uint8)
            pixels[: height // 2, :, 1] = 200
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
def test_every_frame_in_any_order(tmp_path: Path, suffix: str) -> None:
    path = film(tmp_path / f"drive{suffix}")
    frames = find_images(tmp_path)
    expected = decoded(path)
    assert len(frames) == len(expected) == FRAMES
    assert [frames[0].key, frames[-1].key] == ["drive/000000", f"drive/{FRAMES - 1:06}"]
    assert frames[12].location == f"{path}#12"
    assert image_at(frames[12].location, frames[12].key) == frames[12]
    order = list(range(FRAMES))
    for _ in range(2):
        for number in order:
            np.testing.assert_array_equal(frames[number].read(), expected[number], err_msg=str(number))
            assert frames[number].size() == (48, 64)
        random.Random(0).shuffle(order)
    with ThreadPoolExecutor(4) as pool:
        for number, pixels in zip(order, pool.map(lambda number: frames[number].read(), order), strict=True):
            np.testing.assert_array_equal(pixels, expected[number])


@pytest.mark.parametrize(("rate", "numbers"), [
    (10, [*range(40)]), (30, [*range(40)]), (5, [*range(0, 40, 2)]), (4, [0, 3, 5, 8, 10, 13]), (0.3, [0, 34]),
])  # fmt: skip
def test_frames_a_second(tmp_path: Path, rate: float, numbers: list[int]) -> None:
    """Of a video of ten frames a second."""
    film(tmp_path / "a.mp4")
    film(tmp_path / "b.mp4")
    chosen = [file.key for file in at_rate(find_images(tmp_path), rate)]
    assert [key for key in chosen if key.startswith("a/")][: len(numbers)] == [f"a/{one:06}" for one in numbers]
    assert [key.replace("a/", "b/") for key in chosen if key.startswith("a/")] == chosen[len(chosen) // 2 :]


def test_frames_a_second_are_of_videos(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    with pytest.raises(BldaError, match=r"--fps is for videos, and .*a\.png is no frame of one: --every N"):
        at_rate(find_images(tmp_path), 2)


def test_every_nth_of_each_folder(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 7)
    film(tmp_path / "b.mp4", 5)
    assert [file.key for file in every(find_images(tmp_path), 3)] == [
        "a/000000", "a/000003", "a/000006", "b/000000", "b/000003",
    ]  # fmt: skip


def test_what_is_no_whole_video(tmp_path: Path) -> None:
    path = film(tmp_path / "x.mp4")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # without its index, which comes last
    with pytest.raises(BldaError, match=r"x.mp4 cannot be read as a video \(.*\): is the file complete\?"):
        find_images(path)
    path = film(tmp_path / "x.mkv")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    frames = find_images(path)
    assert 0 < len(frames) < FRAMES  # as far as it goes
    np.testing.assert_array_equal(frames[3].read(), decoded(path)[3])
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    with pytest.raises(BldaError, match="cannot be read as a video"):
        find_images(path)


def test_a_replaced_video_is_read_anew(tmp_path: Path) -> None:
    path = film(tmp_path / "x.mp4", 5)
    before = find_images(path)[0].fingerprint()
    film(path, 9, size=(32, 32))
    assert find_images(path)[0].fingerprint() != before
    assert find_images(path)[8].read().shape == (32, 32, 3)
