"""Frames of video files, by PyAV; needs the extra ``video``."""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from blda_cli.data.pixels import PixelFormat
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import check_regular, stamp

if TYPE_CHECKING:
    import av
    import av.container

_KEPT = 8
"""Frames kept decoded: threads that read ahead ask for neighbours in any order."""

_OPEN = 4
"""Videos kept open."""


@dataclass(frozen=True)
class VideoFrame(ImageSource):
    """A frame of a video; ``part`` is its number from 0, in the order of display."""

    suffixes = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv"})

    @classmethod
    def found_in(cls, path: Path, key: str, pixels: PixelFormat) -> list[Self]:
        """See `ImageSource.found_in`: one for each frame, ``KEY/NUMBER``."""
        frames = len(_video(path).times)
        digits = max(6, len(str(frames)))
        return [cls(path, f"{key}/{number:0{digits}}", str(number), pixels) for number in range(frames)]

    def size(self) -> tuple[int, int]:
        """See `ImageSource.size`."""
        return _video(self.path).size

    def seconds(self) -> float:
        """See `ImageSource.seconds`."""
        video = _video(self.path)
        return float(video.times[int(self.part)] - video.times[0]) * video.unit

    def seen(self) -> np.ndarray:
        """See `ImageSource.seen`."""
        return _video(self.path).frame(int(self.part))


class _Video:
    """A video that is being read, by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._container: av.container.InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._next = 0
        with self._reading(), self._opened() as container:
            stream = container.streams.video[0]
            self.unit = float(stream.time_base)
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        times = [(packet.pts if packet.pts is not None else packet.dts, packet.is_keyframe) for packet in packets]
        known = sorted((time, key) for time, key in times if time is not None)
        self.times = [time for time, _ in known]
        self._keys = [time for time, key in known if key]
        if not self.times or len(self.times) < len(times):
            raise BldaError(f"{path} has no frames, or none whose time is known: save it anew, e.g. as .mp4")

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.frame(0).shape[:2]
        return height, width

    def frame(self, number: int) -> np.ndarray:
        """A frame, uint8 ``[H, W, 3]``, RGB."""
        with self._lock:
            if number not in self._kept:
                if number >= len(self.times):
                    raise BldaError(f"{self.path} has {len(self.times)} frames, no number {number}")
                with self._reading():
                    self._decode_up_to(number)
            return self._kept[number].copy()

    def _decode_up_to(self, number: int) -> None:
        time = self.times[number]
        # From the keyframe before the last: what follows a keyframe may be shown before it, and need the one before.
        key = self._keys[max(0, bisect.bisect_right(self._keys, time) - 2)] if self._keys else self.times[0]
        later = self._next < len(self.times) and key > self.times[self._next]
        if self._container is None or number < self._next or later:
            self._seek(key)
        for frame in self._frames:
            if frame.pts is None:
                continue
            place = bisect.bisect_left(self.times, frame.pts)
            self._next = place + 1
            if place <= number - _KEPT:
                continue
            self._kept[place] = _upright(frame)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            if place >= number:
                break
        if number not in self._kept:
            raise BldaError(f"{self.path}: frame {number} cannot be decoded: is the file complete?")

    def _seek(self, time: int) -> None:
        if self._container is None:
            self._container = self._open()
        stream = self._container.streams.video[0]
        self._kept.clear()
        self._container.seek(time, stream=stream, backward=True)
        self._frames = self._container.decode(stream)

    def _open(self) -> "av.container.InputContainer":
        try:
            import av
        except ModuleNotFoundError as error:
            raise BldaError(f"{self.path} is a video: pip install 'blda-cli[video]' for what reads it") from error
        check_regular(self.path)
        container = av.open(str(self.path))
        if not container.streams.video:
            container.close()
            raise BldaError(f"{self.path} holds no pictures: give a video")
        return container

    @contextmanager
    def _opened(self) -> "Iterator[av.container.InputContainer]":
        container = self._open()
        try:
            yield container
        finally:
            container.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn PyAV's exceptions into one-line errors."""
        try:
            yield
        except BldaError:
            raise
        except Exception as error:  # PyAV has dozens
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BldaError(f"{self.path} cannot be read as a video ({reason}): is the file complete?") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._container is not None:
                self._container.close()
                self._container = None


def _upright(frame: "av.VideoFrame") -> np.ndarray:
    """A frame as it is meant to be seen."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


_open_videos: OrderedDict[tuple[Path, str], _Video] = OrderedDict()
_open_lock = threading.Lock()


def _video(path: Path) -> _Video:
    """A video, opened once as long as its file is unchanged."""
    key = path, stamp([path])
    with _open_lock:
        if key not in _open_videos:
            _open_videos[key] = _Video(path)
            while len(_open_videos) > _OPEN:
                _open_videos.popitem(last=False)[1].close()
        _open_videos.move_to_end(key)
        return _open_videos[key]
