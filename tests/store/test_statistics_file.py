import os
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import LabelSource
from blda_cli.core.statistics import LogitStatistics
from blda_cli.data.classes import class_set
from blda_cli.errors import BldaError
from blda_cli.store.differences import difference_of
from blda_cli.store.provenance import Provenance
from blda_cli.store.statistics import (
    FORMAT_VERSION,
    StatisticsFile,
    merge_statistics,
    read_statistics,
    write_statistics,
)

CLASSES = class_set(["road", "tree", "car"], [(1, 2, 3), (4, 5, 6), (7, 8, 9)])
MODEL = {"kind": "python", "weights": "sha256:1", "preprocessing": {"mean": [0.5, 0.5, 0.5]}}


def counted(*keys: str, seed: int = 0, scale: float = 3.0) -> StatisticsFile:
    """Statistics of random logits; an image's depend on its key alone."""
    statistics = LogitStatistics(3, list(LabelSource), bins=64)
    for key in keys:
        generator = torch.Generator().manual_seed(seed + sum(map(ord, key)))
        logits = torch.randn(1, 3, 20, 30, generator=generator) * scale
        labels = torch.randint(0, 3, (1, 20, 30), generator=generator)
        statistics.update(logits, labels, [key])
    return StatisticsFile(statistics, CLASSES, MODEL, list(keys), True, Provenance("blda x"))


def tensors(content: StatisticsFile) -> Iterator[tuple[str, Tensor]]:
    """Everything that is counted."""
    for source, cells in content.statistics.cells.items():
        yield f"counts/{source}", cells.counts
        yield f"edges/{source}", cells.edges
    assert content.statistics.confusion is not None
    yield "confusion", content.statistics.confusion.counts
    assert content.statistics.positions is not None
    yield "positions", content.statistics.positions.counts
    for name in ("seen", "logits", "predicted", "labels", "images", "positions", "priorities"):
        yield f"sample/{name}", getattr(content.statistics.sample, name)


def assert_equal(one: StatisticsFile, other: StatisticsFile) -> None:
    for (name, mine), (_, theirs) in zip(tensors(one), tensors(other), strict=True):
        assert torch.equal(mine, theirs), name
    assert one.statistics.images == other.statistics.images
    assert one.statistics.pixels == other.statistics.pixels
    assert one.statistics.space == other.statistics.space
    assert one.statistics.sample.capacity == other.statistics.sample.capacity


@pytest.fixture(scope="module")
def _content() -> StatisticsFile:
    return counted("west/a", "b", "ü")


@pytest.fixture
def content(_content: StatisticsFile) -> StatisticsFile:
    return deepcopy(_content)


@pytest.fixture
def file(tmp_path: Path, content: StatisticsFile) -> Path:
    write_statistics(tmp_path / "s.h5", content)
    return tmp_path / "s.h5"


def test_what_is_read_is_what_was_written(file: Path, content: StatisticsFile) -> None:
    read = read_statistics(file)
    assert_equal(read, content)
    for name in ("classes", "model", "images", "complete", "provenance"):
        assert getattr(read, name) == getattr(content, name), name


def test_readable_with_h5py_alone(file: Path, content: StatisticsFile) -> None:
    with h5py.File(file) as h5:
        counts, edges = h5["cells/pseudo/counts"][:], h5["edges"][:]  # label, channel, bin
        names = list(h5.attrs["classes"])
        means = (counts * (edges[1:] + edges[:-1]) / 2).sum(axis=2) / counts.sum(axis=2)
        assert names == ["road", "tree", "car"]
        assert counts.shape == (3, 3, 64)
        assert counts.dtype == np.int64
        assert edges.shape == (65,)
        assert counts.sum() == 3 * content.statistics.pixels
        np.testing.assert_allclose(means, content.statistics.cells[LabelSource.PSEUDO].means())
        assert dict(h5.attrs) | {"classes": 0, "palette": 0, "original_ids": 0, "model": 0, "created_by": 0} == {
            "format": "blda-statistics",
            "format_version": 2,
            "created_by": 0,
            "model": 0,
            "classes": 0,
            "palette": 0,
            "original_ids": 0,
            "ignore_index": -1,
            "logit_space": "raw",
            "images": 3,
            "pixels": 1800,
            "complete": True,
        }
        assert h5["cells/soft/counts"].dtype == np.float64
        assert h5["confusion"][:].sum() == 1800
        assert [key.decode() for key in h5["progress/images"]] == ["west/a", "b", "ü"]


def test_files_of_the_first_version_are_read(file: Path, content: StatisticsFile) -> None:
    with h5py.File(file, "a") as h5:
        h5.attrs.update(format_version=1, ignore_index=255)
        h5["sample/labels"][::3] = 255
    expected = content.statistics.sample.labels.clone()
    expected[::3] = IGNORE_INDEX
    assert torch.equal(read_statistics(file).statistics.sample.labels, expected)


def test_anchors_come_with_their_mixtures_and_how_well_these_fit(file: Path, content: StatisticsFile) -> None:
    cells = content.statistics.cells[LabelSource.GROUND_TRUTH]
    with h5py.File(file) as h5:
        anchors = h5["anchors/ground_truth"]
        assert list(anchors.attrs["rows"]) == ["positive", "negative"]
        assert anchors["quantiles"].shape == (2, 101)
        assert (np.diff(anchors["quantiles"][:], axis=1) >= 0).all()
        positive = float((cells.positive() * cells.centers).sum() / cells.positive().sum())
        assert anchors["means"][0] == pytest.approx(positive)
        assert "3 images" in anchors.attrs["provenance"]
        np.testing.assert_allclose(anchors["mixture_weights"][:].sum(axis=-1), 1)
        assert anchors["mixture_means"].shape == anchors["mixture_variances"].shape == (2, 5)
        mean = (anchors["mixture_weights"][:] * anchors["mixture_means"][:]).sum(axis=-1)
        np.testing.assert_allclose(mean, anchors["means"], atol=0.02)
        distance = anchors["mixture_distance"][:]
        assert distance.shape == (2,)
        assert (distance > 0).all()
        assert (distance < 0.1).all()


def test_long_provenance_fits(tmp_path: Path, content: StatisticsFile) -> None:
    content.provenance = Provenance(skipped={f"image {n}": "cannot be read" * 10 for n in range(2000)})
    write_statistics(tmp_path / "s.h5", content)
    assert read_statistics(tmp_path / "s.h5").provenance == content.provenance


def test_statistics_of_nothing(tmp_path: Path) -> None:
    empty = StatisticsFile(LogitStatistics(3, [LabelSource.PSEUDO]), CLASSES, MODEL)
    write_statistics(tmp_path / "s.h5", empty)
    read = read_statistics(tmp_path / "s.h5")
    assert read.statistics.images == 0
    assert len(read.statistics.sample) == 0
    assert not read.complete


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999])
def test_cut_files_are_refused(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BldaError, match=r"s\.h5 cannot be read as statistics; it may be truncated"):
        read_statistics(file)


def test_damaged_bytes_never_end_in_another_error(file: Path) -> None:
    data = file.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        start = int(generator.integers(0, len(data) - 64))
        damaged[start : start + 64] = generator.bytes(64)
        file.write_bytes(damaged)
        try:
            read_statistics(file)
        except BldaError:
            refused += 1
    assert refused > 10


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BldaError, match="no such statistics file; blda collect-stats makes one"):
        read_statistics(tmp_path / "none.h5")
    with pytest.raises(BldaError, match="no such statistics file"):
        read_statistics(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["weights"] = [1, 2]
    with pytest.raises(BldaError, match="not of blda's statistics"):
        read_statistics(tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(BldaError, match="no HDF5 file"):
        read_statistics(tmp_path / "text.h5")


def test_files_of_a_newer_version_are_refused(file: Path) -> None:
    with h5py.File(file, "a") as h5:
        h5.attrs["format_version"] = FORMAT_VERSION + 1
    with pytest.raises(BldaError, match=r"format version 3, this blda reads up to 2: upgrade it"):
        read_statistics(file)


def test_files_of_the_first_version_are_read_and_added_to(tmp_path: Path, content: StatisticsFile) -> None:
    old, newer = tmp_path / "old.h5", counted("c")
    write_statistics(old, content)
    with h5py.File(old, "a") as h5:
        h5.attrs["format_version"] = 1
        del h5["sample/positions"], h5["positions"]
    read = read_statistics(old)
    assert torch.equal(read.statistics.sample.logits, content.statistics.sample.logits)
    assert bool(read.statistics.sample.positions.isnan().all())
    assert read.statistics.positions is None
    whole = merge_statistics([(old, read), (tmp_path / "c", newer)]).statistics
    assert whole.images == 4
    known = whole.sample.positions.isfinite().all(dim=1)
    assert int(known.sum()) == int(torch.isin(whole.sample.images, newer.statistics.sample.images).sum()) > 0


@pytest.mark.parametrize("entry", [bytes(16), b"\1" + bytes(7) + b"\xff" * 8], ids=["none", "endless"])
def test_a_heap_without_end_is_not_left_to_the_library(file: Path, entry: bytes) -> None:
    whole = bytearray(file.read_bytes())
    heap = whole.index(b"GCOL")
    whole[heap + 16 : heap + 32] = entry  # the first text's head; the library would never come back
    file.write_bytes(whole)
    with pytest.raises(BldaError, match=rf"heap of texts is damaged at byte {heap + 16}"):
        read_statistics(file)


def remove(name: str) -> Callable[[h5py.File], None]:
    return lambda h5: h5.__delitem__(name)


def put(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(h5: h5py.File) -> None:
        del h5[name]
        h5[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        remove("edges"),
        remove("sample"),
        put("cells", 3),
        put("cells/pseudo/counts", np.zeros((3, 3, 32))),
        put("cells/pseudo/counts", np.full((3, 3, 64), np.nan)),
        put("cells/pseudo/counts", np.full((3, 3, 64), -1)),
        put("cells/pseudo/counts", np.zeros((3, 3))),
        put("edges", np.zeros(0)),
        put("edges", np.linspace(-8, 9, 65)),
        put("edges", "x"),
        put("confusion", np.zeros((2, 2), dtype=int)),
        put("sample/seen", np.zeros(4, dtype=int)),
        put("sample/logits", np.zeros((1, 3))),
        put("sample/predicted", np.full(1800, 3)),
        put("sample/positions", np.zeros((1800, 3))),
        remove("sample/positions"),
        put("positions", np.zeros((3, 2, 2))),
        put("progress/images", 5),
        put("provenance", "{"),
        lambda h5: h5.attrs.__setitem__("model", "{"),
        lambda h5: h5.attrs.__setitem__("logit_space", "other"),
        lambda h5: h5.attrs.__setitem__("palette", 3),
        lambda h5: h5.attrs.__delitem__("classes"),
        lambda h5: h5.attrs.__delitem__("format_version"),
        lambda h5: h5.move("cells/pseudo", "cells/other"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(file: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(file, "a") as h5:
        change(h5)
    with pytest.raises(BldaError, match=r"s\.h5"):
        read_statistics(file)


def test_nothing_is_left_of_a_write_that_fails(
    file: Path, content: StatisticsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BldaError, match=r"s\.h5 cannot be written: No space left on device"):
        write_statistics(file, replace(content, complete=False))
    assert [path.name for path in file.parent.iterdir()] == ["s.h5"]
    assert file.read_bytes() == before


def test_nothing_is_left_where_the_content_cannot_be_written(file: Path, content: StatisticsFile) -> None:
    before = file.read_bytes()
    with pytest.raises(TypeError):
        write_statistics(file, replace(content, model={"kind": object()}))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["s.h5"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk takes root")
def test_full_disk(tmp_path: Path, content: StatisticsFile) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with pytest.raises(BldaError, match="cannot be written: No space left on device"):
            write_statistics(disk / "s.h5", content)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_parts_add_up_to_the_whole_bit_for_bit(tmp_path: Path) -> None:
    names = [f"image {n}" for n in range(7)]
    whole = counted(*names)
    parts = {tmp_path / "a": counted(*names[:2]), tmp_path / "b": counted(*names[2:3]), tmp_path / "c": counted()}
    parts[tmp_path / "d"] = counted(*names[3:])
    merged = merge_statistics(iter(parts.items()))
    assert_equal(merged, whole)
    assert merged.images == names
    assert merged.complete
    assert len(merged.provenance.merged) == 4


def test_parts_of_different_ranges_add_up(tmp_path: Path) -> None:
    small, large = counted("a", scale=0.1), counted("b", scale=50)
    merged = merge_statistics([(tmp_path / "a", small), (tmp_path / "b", large)])
    cells = merged.statistics.cells[LabelSource.PSEUDO]
    assert cells.limit == large.statistics.cells[LabelSource.PSEUDO].limit > 64
    assert cells.counts.sum() == 3 * 1200


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"model": {**MODEL, "weights": "sha256:2"}}, 'differ in weights ("sha256:1" and "sha256:2")'),
        ({"classes": class_set(["road", "tree", "sky"])}, "differ in the classes"),
        ({"images": ["c", "a"]}, "both count image a"),
        ({"statistics": LogitStatistics(3, [LabelSource.PSEUDO])}, "label sources"),
        ({"statistics": LogitStatistics(3, list(LabelSource), bins=128)}, "bins (64 and 128)"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, change: dict[str, object], difference: str
) -> None:
    other = replace(counted("b"), **change)  # type: ignore[arg-type]
    with pytest.raises(BldaError) as caught:
        merge_statistics([(tmp_path / "one.h5", counted("a")), (tmp_path / "two.h5", other)])
    assert difference in str(caught.value)
    assert "one.h5" in str(caught.value)
    assert "two.h5" in str(caught.value)


def test_whole_is_incomplete_where_a_part_is(tmp_path: Path) -> None:
    part = replace(counted("b"), complete=False)
    assert not merge_statistics([(tmp_path / "a", counted("a")), (tmp_path / "b", part)]).complete


def test_difference_is_named_by_its_path() -> None:
    assert difference_of({"a": {"b": [1]}}, {"a": {"b": [1]}}) is None
    assert difference_of({"a": {"b": [1]}}, {"a": {"b": [2]}}) == "a.b ([1] and [2])"
    assert difference_of({"a": 1}, {"a": 1, "c": "x"}) == 'c (null and "x")'
    found = difference_of({"a": "y" * 200}, {"a": None})
    assert found is not None
    assert len(found) < 100
