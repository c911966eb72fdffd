"""A new kind of image takes one module and one line, and nothing that uses images has to know it."""

import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from PIL import Image

from blda_cli.data import images
from blda_cli.data.classes import class_set
from blda_cli.data.images import find_images, image_at
from blda_cli.data.labels import label_reader
from blda_cli.data.logit_arrays import LogitArray
from blda_cli.data.pillow_images import PillowImage
from blda_cli.data.pixels import PixelFormat
from blda_cli.data.raster_images import RasterImage
from blda_cli.data.shapes import Shape
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError


@dataclass(frozen=True)
class Film(ImageSource):
    """A made-up kind: a text file, each line of which is an image of one row of grey pixels, in hexadecimal digits."""

    suffixes = frozenset({".film"})

    @classmethod
    def found_in(cls, path: Path, key: str, pixels: PixelFormat) -> list[Self]:
        return [cls(path, f"{key}/{number}", str(number), pixels) for number in range(len(path.read_text().split()))]

    def size(self) -> tuple[int, int]:
        return 1, self.read().shape[1]

    def seen(self) -> np.ndarray:
        row = np.frombuffer(bytes.fromhex(self.path.read_text().split()[int(self.part)]), np.uint8)
        return row[None, :, None].repeat(3, axis=2)


@pytest.fixture
def films(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("blda_cli.data.films")
    module.Film = Film  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "blda_cli.data.films", module)
    monkeypatch.setattr(images, "KINDS", [*images.KINDS, "films:Film"])


@pytest.fixture
def folder(tmp_path: Path, films: None) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "drive.film").write_text("00ff\n804020\n")
    Image.fromarray(np.full((3, 2, 3), 7, np.uint8)).save(folder / "still.png")
    return folder


def test_a_file_may_hold_several_images(folder: Path) -> None:
    found = find_images(folder)
    assert [file.key for file in found] == ["drive/0", "drive/1", "still"]
    assert [file.size() for file in found] == [(1, 2), (1, 3), (3, 2)]
    assert found[1].location == f"{folder}/drive.film#1"
    assert [file.read()[0, :, 0].tolist() for file in found[:2]] == [[0, 255], [128, 64, 32]]
    # What a record keeps leads back to the same images.
    assert [image_at(file.location, file.key) for file in found] == found
    assert find_images(folder / "drive.film") == [Film(folder / "drive.film", f"drive/{n}", str(n)) for n in (0, 1)]


@pytest.mark.parametrize("name", ["a#1.png", "no suffix", "list#1", "photo.strange", "#.png", "a.film#x.png"])
def test_a_name_with_a_number_sign_is_a_whole_file(films: None, name: str) -> None:
    source = PillowImage(Path("/x") / name, "key")
    assert image_at(source.location, "key") == source


def test_the_fingerprint_is_that_of_the_file(folder: Path) -> None:
    first, second, still = find_images(folder)
    before = [file.fingerprint() for file in (first, second, still)]
    assert before[0] == before[1]
    (folder / "drive.film").write_text("00ff\n804021\nff\n")
    assert [file.fingerprint() == state for file, state in zip((first, second, still), before, strict=True)] == [
        False, False, True,
    ]  # fmt: skip


def test_labels_belong_to_the_images_of_a_file(folder: Path, tmp_path: Path) -> None:
    found = find_images(folder / "drive.film")
    labels = tmp_path / "labels" / "drive"
    labels.mkdir(parents=True)
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(labels / "0.png")
    Image.fromarray(np.array([[1, 1]], np.uint8)).save(labels / "1.png")
    reader = label_reader(found, tmp_path / "labels", class_set(["one", "two"]), encoding="ids")
    assert reader(found[0]).tolist() == [[0, 1]]
    with pytest.raises(BldaError, match=r"1.png is 2x1 but its image .*drive.film#1 is 3x1"):
        reader(found[1])
    table = tmp_path / "labels.csv"
    table.write_text("drive.film#0,two\ndrive/1,0\n")
    reader = label_reader(found, table, class_set(["one", "two"]))
    assert [int(reader(file)) for file in found] == [1, 0]


def test_arrays_of_logits(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 5), np.float32))
    np.savez(tmp_path / "b.npz", logits=np.zeros((1, 3, 4, 6), np.float16), more=np.zeros(2))
    np.save(tmp_path / "c.npy", np.zeros(3, np.float32))
    array, archive, whole = (LogitArray(tmp_path / name, name[0]) for name in ("a.npy", "b.npz", "c.npy"))
    assert (array.size(), archive.size()) == ((4, 5), (4, 6))
    with pytest.raises(BldaError, match=r"c.npy is of shape \[3\]: one answer for a whole image"):
        whole.size()
    with pytest.raises(BldaError, match=r"a.npy holds logits, not an image"):
        array.read()


def test_arrays_beside_other_images_are_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 30, 3), np.uint8))
    assert [file.key for file in find_images(tmp_path)] == ["a"]
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    assert find_images(tmp_path) == [PillowImage(tmp_path / "a.png", "a")]


def test_what_an_extra_reads_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("av", "pycocotools", "rasterio"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(RasterImage, "suffixes", frozenset())
    (tmp_path / "x.mp4").write_bytes(b"video")
    with pytest.raises(BldaError, match=r"x.mp4 is a video: pip install 'blda-cli\[video\]'"):
        find_images(tmp_path)
    (tmp_path / "x.tif").write_bytes(b"II*\0 of another kind")
    with pytest.raises(BldaError, match=r"pip install 'blda-cli\[geo\]' for what reads any TIFF"):
        find_images(tmp_path / "x.tif")[0].read()
    with pytest.raises(BldaError, match=r"pip install 'blda-cli\[coco\]'"):
        Shape("road", "coco", [[0, 0, 5, 0, 5, 5]], None).mask((9, 9))
