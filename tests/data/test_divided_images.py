"""Large images in parts, and pixels that a file says are no data."""

import itertools
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blda_cli.data import divided_images, pillow_images
from blda_cli.data.annotations import AnnotatedLabels
from blda_cli.data.divided_images import DividedImage, in_windows
from blda_cli.data.images import find_images, image_at
from blda_cli.data.pixels import PixelFormat
from blda_cli.data.source import refuse_parts
from blda_cli.errors import BldaError


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (50, 70, 4)).astype(np.uint8)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divided_images, "BLOCK", 32)
    monkeypatch.setattr(divided_images, "LARGE", 1000)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", ["x.png", "x.npy", "x.jpg"])
def test_parts_with_what_surrounds_them(tmp_path: Path, pixels: np.ndarray, name: str) -> None:
    if name.endswith("npy"):
        np.save(tmp_path / name, pixels[..., :3])
    else:
        Image.fromarray(pixels[..., :3]).save(tmp_path / name)
    whole = np.array(Image.open(tmp_path / name)) if name != "x.npy" else pixels[..., :3]
    images = find_images(tmp_path)
    assert [image.key for image in images] == [f"x/{row:03}-{column:03}" for row in range(2) for column in range(3)]
    for image in images:
        (top, bottom), (left, right) = image.place()
        np.testing.assert_array_equal(image.read(), whole[top:bottom, left:right])
        assert image_at(image.location, image.key) == image
        assert (image.whole_size(), image.labelled_as) == ((50, 70), "x")
        (wide,) = in_windows([image], (20, 20), (15, 15))
        core = wide.core
        assert core is not None
        around = wide.read()
        np.testing.assert_array_equal(
            around[core[0] : core[0] + core[2], core[1] : core[1] + core[3]], whole[top:bottom, left:right]
        )
    assert in_windows(images, (20, 20), (15, 15))[4].read().shape[:2] == (35, 55)
    with pytest.raises(BldaError, match="has no part 5-0 any more: it is 70x50"):
        image_at(f"{tmp_path / name}#5-0", "x/005-000").read()


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("suffix", ["png", "npy", "tif"])
def test_windows_spread_over_the_image_of_a_part(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    if suffix == "tif":
        pytest.importorskip("rasterio", reason="the extra geo is not installed")
    pixels[10:30, :40, 3] = 0
    if suffix == "npy":
        np.save(tmp_path / "x.npy", pixels[..., :3])
    else:
        Image.fromarray(pixels).save(tmp_path / f"x.{suffix}")
    there = np.ones((50, 70), bool) if suffix == "npy" else pixels[..., 3] > 0
    (part,) = in_windows(find_images(tmp_path)[3:4], (20, 30), (15, 15))
    assert isinstance(part, DividedImage)
    for count, starts in ((9, ((0, 15, 30), (0, 20, 40))), (4, ((0, 30), (0, 40)))):
        windows = part.spread_windows(count)
        assert [(one.area()[0][0], one.area()[1][0]) for one in windows] == list(itertools.product(*starts))
        for window in windows:
            (top, bottom), (left, right) = window.area()
            assert (bottom - top, right - left) == (20, 30)
            shown = np.where(there[..., None], pixels[..., :3], 0)[top:bottom, left:right]
            np.testing.assert_array_equal(window.read(), shown)
            valid = window.valid_around()
            np.testing.assert_array_equal(True if valid is None else valid, there[top:bottom, left:right])


@pytest.mark.usefixtures("parts")
def test_what_needs_whole_images_names_the_one_that_is_run_in_parts(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels[:9, :9, :3]).save(tmp_path / "small.png")
    refuse_parts(find_images(tmp_path), "--this")
    Image.fromarray(pixels[..., :3]).save(tmp_path / "x.png")
    images = find_images(tmp_path)
    said = re.escape(f"--this needs whole images, and {tmp_path / 'x.png'} is run in parts: cut it into images of at")
    with pytest.raises(BldaError, match=said):
        refuse_parts(images, "--this")
    with pytest.raises(BldaError, match=r"a file of annotations needs .*: give the labels as a picture of its size"):
        AnnotatedLabels("coco", {}, (), {})(images[1])


@pytest.mark.usefixtures("parts")
def test_a_part_of_an_image_that_exif_turns(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "x.png", exif=exif)
    first = find_images(tmp_path)[0]
    assert first.whole_size() == (70, 50)
    np.testing.assert_array_equal(first.read(), np.rot90(pixels[..., :3], -1)[:32, :32])


@pytest.mark.usefixtures("parts")
def test_a_large_image_and_another_of_its_name_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    """The predictions of both would be one file."""
    save(tmp_path / "x.png", pixels[:9, :9])
    save(tmp_path / "x.webp", pixels)
    with pytest.raises(BldaError, match=r"x.png and .*x.webp#0-0 would both be called x:"):
        find_images(tmp_path)


def save(path: Path, pixels: np.ndarray) -> None:
    if path.suffix == ".webp":
        Image.fromarray(pixels).save(path, lossless=True, exact=True)
    else:
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_transparent_pixels_are_no_data(
    tmp_path: Path, pixels: np.ndarray, name: str, large: bool, request: pytest.FixtureRequest
) -> None:
    if large:
        request.getfixturevalue("parts")
    pixels[:20, 5:30, 3] = 0
    pixels[0, 0, 3] = 1  # hardly visible, yet there
    save(tmp_path / name, pixels)
    image = find_images(tmp_path)[0]
    there = pixels[..., 3] > 0
    shown = pixels[..., :3] * there[..., None]
    (top, bottom), (left, right) = image.place()
    np.testing.assert_array_equal(image.valid(), there[top:bottom, left:right])
    np.testing.assert_array_equal(image.read(), shown[top:bottom, left:right])
    if large:
        assert find_images(tmp_path)[5].valid() is None


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_alpha_that_says_nothing(tmp_path: Path, pixels: np.ndarray, name: str) -> None:
    """Where all is transparent some tool left the channel empty; where the network takes it, it is no alpha."""
    pixels[:20, 5:30, 3] = 0
    save(tmp_path / name, pixels)
    (four,) = find_images(tmp_path, PixelFormat((1, 2, 3, 4)))
    assert four.valid() is None
    np.testing.assert_array_equal(four.read(), pixels)
    pixels[..., 3] = 0
    save(tmp_path / name, pixels)
    (image,) = find_images(tmp_path)
    assert image.valid() is None
    np.testing.assert_array_equal(image.read(), pixels[..., :3])


def test_a_transparent_entry_of_a_palette(tmp_path: Path) -> None:
    indices = np.random.default_rng(1).integers(0, 4, (40, 50)).astype(np.uint8)
    image = Image.fromarray(indices, mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.save(tmp_path / "x.png", transparency=2)
    np.testing.assert_array_equal(find_images(tmp_path / "x.png")[0].valid(), indices != 2)


def raster(path: Path, pixels: np.ndarray) -> None:
    """A GeoTIFF, tiled and compressed as Pillow does not write them."""
    import rasterio

    height, width, count = pixels.shape
    colors = {} if count == 3 else {"photometric": "RGB", "alpha": "yes"}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, crs="EPSG:4326",
        tiled=True, blockxsize=16, blockysize=16, compress="deflate", predictor=2, **colors,
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))


def wide_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG of 16-bit colour, which Pillow does not write."""
    height, width, count = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.astype(">u2").view(np.uint8).reshape(height, -1)], 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[count], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


Write = Callable[[Path, np.ndarray], None]
CONTAINERS: dict[str, tuple[str, Write, bool, bool]] = {
    # suffix, writer, whether it takes 16 bits, and alpha
    "png": (".png", lambda path, pixels: (wide_png if pixels.dtype == np.uint16 else save)(path, pixels), True, True),
    "webp": (".webp", save, False, True),
    "bmp": (".bmp", save, False, False),
    "tiff": (".tif", save, False, True),
    "geotiff": (".tif", raster, True, True),
    "npy": (".npy", np.save, True, False),
    "npz": (".npz", lambda path, pixels: np.savez(path, image=pixels.transpose(2, 0, 1)), True, False),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("form", [PixelFormat(), PixelFormat((3, 1)), PixelFormat((), (10, 4095))], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_read_does_not_depend_on_the_container(
    tmp_path: Path, large: bool, alpha: bool, form: PixelFormat, dtype: type[np.integer], request: pytest.FixtureRequest
) -> None:
    """All that statistics are made of: the pixels, where there is data, and what lies where."""
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    if large:
        request.getfixturevalue("parts")
    pixels: np.ndarray = np.random.default_rng(0).integers(1, np.iinfo(dtype).max, (50, 70, 3 + alpha)).astype(dtype)
    if alpha:
        pixels[10:30, :40, 3] = 0
    found: dict[str, list[tuple[object, ...]]] = {}
    for name, (suffix, write, wide, transparent) in CONTAINERS.items():
        if (alpha and not transparent) or (dtype == np.uint16 and not wide):
            continue
        (tmp_path / name).mkdir()
        write(tmp_path / name / f"x{suffix}", pixels)
        images = in_windows(find_images(tmp_path / name, form), (20, 20), (15, 15))
        found[name] = [(one.key, one.core, one.read(), one.valid_around(), one.valid()) for one in images]
    reference = found.pop("png")
    assert len(reference) == (6 if large else 1)
    assert len(found) >= (3 if dtype == np.uint8 else 1)
    assert (reference[0][4] is not None) == alpha
    for name, parts in found.items():
        for one, other in zip(reference, parts, strict=True):
            assert one[:2] == other[:2], name
            for mine, theirs in zip(one[2:], other[2:], strict=True):
                np.testing.assert_array_equal(mine, theirs, err_msg=name, strict=True)


@pytest.mark.usefixtures("parts")
def test_a_file_is_decoded_once_for_its_parts(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the memory that this takes is asked for before it, not while the pixels are kept."""
    pixels[:20, 5:30, 3] = 0
    save(tmp_path / "x.png", pixels)
    decoded, read = [], pillow_images.read_image

    def reading(path: Path) -> np.ndarray:
        decoded.append(path)
        return read(path)

    monkeypatch.setattr(pillow_images, "LARGE", 1000)
    monkeypatch.setattr(pillow_images, "read_image", reading)
    images = find_images(tmp_path)
    images[0].read()
    monkeypatch.setattr(pillow_images, "available_memory", lambda: 1000)
    for image in images:
        image.read()
        image.valid()
    assert len(decoded) == 1
    save(tmp_path / "x.png", pixels[::-1])
    with pytest.raises(BldaError, match=r"decoding it takes .* and .* are left"):
        images[0].read()
