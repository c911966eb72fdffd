from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from blda_cli.core.choices import LabelSource
from blda_cli.core.statistics import LogitStatistics
from blda_cli.errors import BldaError
from blda_cli.runtime.monitor import Interrupted, SilentMonitor
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.store.statistics import StatisticsFile, read_statistics, write_statistics

if TYPE_CHECKING:
    from tests.pipelines.conftest import RandomSegmenter

Collect = Callable[..., StatisticsFile]


class Stopping(SilentMonitor):
    """Asks to stop after some batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches
        self.started: list[tuple[str, int, int]] = []

    def start(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:
        self.started.append((what, total, done))

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted


def assert_same(one: StatisticsFile, other: StatisticsFile) -> None:
    assert one.images == other.images
    for source, cells in one.statistics.cells.items():
        assert torch.equal(cells.counts, other.statistics.cells[source].counts)
        assert cells.limit == other.statistics.cells[source].limit
    for name in ("seen", "logits", "predicted", "images", "priorities"):
        assert torch.equal(getattr(one.statistics.sample, name), getattr(other.statistics.sample, name))


def test_what_is_returned_is_what_is_written(collect: Collect, tmp_path: Path) -> None:
    content = collect(tmp_path / "s.h5")
    assert content.complete
    assert content.images == list("abcdef")
    assert_same(content, read_statistics(tmp_path / "s.h5"))


@pytest.mark.parametrize("batches", [1, 3, 6])
def test_nothing_is_run_twice_after_an_interruption(
    collect: Collect, segmenter: RandomSegmenter, tmp_path: Path, batches: int
) -> None:
    whole = collect(tmp_path / "whole.h5")
    segmenter.seen.clear()
    with pytest.raises(Interrupted):
        collect(tmp_path / "s.h5", monitor=Stopping(batches))
    monitor = Stopping(100)
    assert_same(collect(tmp_path / "s.h5", monitor=monitor), whole)
    assert segmenter.seen == list("abcdef")
    assert monitor.started == [("counting", 6, batches)]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["s.h5", "whole.h5"]


@pytest.fixture
def gpu_beside(segmenter: RandomSegmenter, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The segmenter's device works on while results are worked on, as CUDA does; the marks that were waited for."""
    waited: list[str] = []

    class Stream:
        there = True

        def __init__(self, device: torch.device) -> None:
            pass

        def mark(self) -> str:
            return "".join(segmenter.seen)

        @contextmanager
        def after(self, mark: str) -> Iterator[None]:
            waited.append(mark)
            yield

    monkeypatch.setattr("blda_cli.segmenters.base.SideStream", Stream)
    return waited


def test_the_next_batch_is_started_before_one_is_counted(
    collect: Collect, segmenter: RandomSegmenter, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    expected = collect(tmp_path / "one by one.h5")
    segmenter.seen.clear()
    waited = request.getfixturevalue("gpu_beside")
    running: list[str] = []

    class Watching(SilentMonitor):
        def advance(self, count: int) -> None:
            running.append(segmenter.seen[-1])

    assert_same(collect(tmp_path / "s.h5", monitor=Watching()), expected)
    assert running == list("bcdeff")
    # The range check and the counting of a batch each wait for that batch, not for the one that runs.
    assert waited == [name for end in range(1, 7) for name in ["abcdef"[:end]] * 2]


def test_what_was_run_before_an_image_that_cannot_be_read_is_counted(
    collect: Collect, segmenter: RandomSegmenter, tmp_path: Path, gpu_beside: list[str]
) -> None:
    whole = collect(tmp_path / "whole.h5")
    segmenter.bad = {"d"}
    with pytest.raises(BldaError, match="cannot be read"):
        collect(tmp_path / "s.h5")
    segmenter.bad, segmenter.seen = set(), []
    assert_same(collect(tmp_path / "s.h5"), whole)
    assert segmenter.seen == list("def")


def test_a_batch_that_was_counted_in_part_is_never_kept(
    collect: Collect, segmenter: RandomSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LogitStatistics.update
    calls = 0

    def update(self: LogitStatistics, *arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, *arguments, **options)
        if calls == 3:
            self.images -= 1  # as if it had stopped half-way
            raise RuntimeError("out of memory")

    monkeypatch.setattr(LogitStatistics, "update", update)
    with pytest.raises(RuntimeError):
        collect(tmp_path / "s.h5")
    assert list(tmp_path.iterdir()) == []


def test_skipped_images_are_noted_and_tried_again(collect: Collect, segmenter: RandomSegmenter, tmp_path: Path) -> None:
    segmenter.bad = {"b"}
    skip = InferenceOptions(on_error="skip")
    with pytest.raises(Interrupted):
        collect(tmp_path / "s.h5", inference=skip, monitor=Stopping(3))
    content = collect(tmp_path / "s.h5", inference=skip)
    assert content.provenance.skipped == {"b": "cannot be read"}
    assert content.images == list("acdef")

    with pytest.raises(BldaError):
        collect(tmp_path / "t.h5")
    segmenter.bad.clear()
    assert collect(tmp_path / "t.h5").images == list("abcdef")


def test_what_another_model_counted_is_refused(collect: Collect, segmenter: RandomSegmenter, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        collect(tmp_path / "s.h5", monitor=Stopping(2))
    segmenter.identity["weights"] = "sha256:2"
    with pytest.raises(BldaError, match="differs in weights"):
        collect(tmp_path / "s.h5")
    assert collect(tmp_path / "s.h5", overwrite=True).images == list("abcdef")
    assert not (tmp_path / "s.h5.partial").exists()


def test_a_file_newer_than_what_was_kept_is_not_replaced(collect: Collect, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        collect(tmp_path / "s.h5", monitor=Stopping(2))
    kept = read_statistics(tmp_path / "s.h5.partial")
    write_statistics(tmp_path / "s.h5", kept)
    with pytest.raises(BldaError, match="exists already"):
        collect(tmp_path / "s.h5")


def test_label_sources_can_be_single(collect: Collect, tmp_path: Path) -> None:
    from blda_cli.pipelines.collect import CountingOptions

    content = collect(tmp_path / "s.h5", counting=CountingOptions((LabelSource.SOFT,)))
    assert list(content.statistics.cells) == [LabelSource.SOFT]
