"""Bands and depths: the same samples are the same pixels, whichever container they come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blda_cli.data.images import find_images
from blda_cli.data.pixels import PixelFormat, stretched
from blda_cli.errors import BldaError

SAMPLES = np.random.default_rng(0).integers(0, 4096, (18, 25, 6)).astype(np.uint16)


def save_tiff(path: Path, samples: np.ndarray, names: tuple[str, ...] = ()) -> Path:
    rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
    height, width, bands = samples.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=samples.dtype.name
    ) as raster:
        raster.write(samples.transpose(2, 0, 1))
        if names:
            raster.descriptions = names
    return path


def save_npy(path: Path, samples: np.ndarray) -> Path:
    np.save(path.with_suffix(".npy"), samples)
    return path.with_suffix(".npy")


def save_chw(path: Path, samples: np.ndarray) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), image=samples.transpose(2, 0, 1), other=np.zeros(3))
    return path.with_suffix(".npz")


def save_png(path: Path, samples: np.ndarray) -> Path:
    """Grey of 16 bits."""
    Image.fromarray(samples[..., 0]).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def read(path: Path, *bands: int | str, **said: object) -> np.ndarray:
    (file,) = find_images(path, PixelFormat(bands, **said))  # type: ignore[arg-type]
    values = file.read()
    assert values.shape[:2] == file.size()
    assert file.picture().dtype == np.uint8
    assert file.picture().shape == (*file.size(), 3)
    return values


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("save", [save_tiff, save_npy, save_chw])
def test_bands_and_range(tmp_path: Path, save: Callable[[Path, np.ndarray], Path]) -> None:
    path = save(tmp_path / "x.tif", SAMPLES)
    values = read(path, 4, 3, 2, 6, range=(0, 4095))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, (SAMPLES[..., [3, 2, 1, 5]] * (255 / 4095)).astype(np.float32))
    # Without a range it is that of the type.
    np.testing.assert_array_equal(read(path, 1), (SAMPLES[..., :1] * (255 / 65535)).astype(np.float32))
    assert read(path, 1, range=(1000, 2000)).min() < -60  # values beyond the range are kept


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("save", [save_tiff, save_npy, save_chw, save_png])
def test_a_grey_image_of_12_bits(tmp_path: Path, save: Callable[[Path, np.ndarray], Path]) -> None:
    path = save(tmp_path / "x.tif", SAMPLES[..., :1])
    grey = (SAMPLES[..., :1] * (255 / 4095)).astype(np.float32)
    np.testing.assert_array_equal(read(path, 1, range=(0, 4095)), grey)
    np.testing.assert_array_equal(read(path, range=(0, 4095)), grey.repeat(3, axis=2))  # for a network of RGB


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_eight_bits_are_the_same_pixels_in_every_container(tmp_path: Path) -> None:
    rgb = (SAMPLES[..., :3] >> 4).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "x.png")
    paths = [tmp_path / "x.png", save_tiff(tmp_path / "x.tif", rgb), save_npy(tmp_path / "x", rgb)]
    paths.append(save_chw(tmp_path / "x", rgb))
    for path in paths:
        np.testing.assert_array_equal(read(path), rgb)
        np.testing.assert_array_equal(read(path, 3, 1), rgb[..., [2, 0]].astype(np.float32))
    np.testing.assert_array_equal(read(paths[0], "Blue"), rgb[..., 2:].astype(np.float32))


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_bands_by_name(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "x.tif", SAMPLES, ("B1", "B2", "Red", "NIR", "B5", "B5"))
    np.testing.assert_array_equal(read(path, "nir", "red"), read(path, 4, 3))
    with pytest.raises(BldaError, match=r"6 bands \(B1, B2, Red, NIR, B5, B5\): .* names 'B5', which is none"):
        read(path, "B5")


def test_both_bytes_of_colours_of_16_bits(tmp_path: Path) -> None:
    import struct
    import zlib

    samples = SAMPLES[..., :3] * 16 + 7
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 25, 18, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), (samples >> 8).astype(np.uint8))
    np.testing.assert_array_equal(read(tmp_path / "x.png", 1, 2, 3), (samples * (255 / 65535)).astype(np.float32))


def test_floating_point_needs_a_range(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).normal(size=(20, 30)).astype(np.float32)
    np.save(tmp_path / "x.npy", samples)
    Image.fromarray(samples).save(tmp_path / "x.tif")
    for name in ("x.npy", "x.tif"):
        with pytest.raises(BldaError, match=r"\[preprocessing\] bands and range|floating-point values: say which"):
            find_images(tmp_path / name)[0].read()
        with pytest.raises(BldaError, match=r"float32 values: say which of them become 0 and 1"):
            find_images(tmp_path / name, PixelFormat((1,)))[0].read()
        expected = ((samples.astype(np.float64) + 2) * (255 / 4)).astype(np.float32)
        np.testing.assert_array_equal(read(tmp_path / name, 1, range=(-2, 2))[..., 0], expected)
    samples[3, 4] = np.nan
    np.save(tmp_path / "x.npy", samples)
    with pytest.raises(BldaError, match="not finite"):
        read(tmp_path / "x.npy", 1, range=(-2, 2))


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [
        ((20, 30), None, (20, 30)),
        ((20, 30, 3), None, (20, 30)),
        ((3, 20, 30), None, (20, 30)),
        ((4, 5, 3), "hwc", (4, 5)),
        ((4, 5, 3), "chw", (5, 3)),
        ((20, 30, 40), "chw", (30, 40)),
    ],
)
def test_which_axis_holds_the_bands(
    tmp_path: Path, shape: tuple[int, ...], layout: str | None, size: tuple[int, int]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    (file,) = find_images(tmp_path, PixelFormat((1,), layout=layout))  # type: ignore[arg-type]
    assert file.size() == file.read().shape[:2] == size


@pytest.mark.parametrize("shape", [(4, 5, 3), (20, 30, 40), (4, 20, 3)])
def test_it_is_asked_which_axis_holds_the_bands(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(BldaError, match="say which axis holds the bands"):
        find_images(tmp_path)[0].size()


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_what_cannot_be_told_is_asked(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "x.tif", SAMPLES)
    with pytest.raises(BldaError, match=r"x.tif has 6 bands of uint16 values: say which the network takes"):
        find_images(path)[0].read()
    with pytest.raises(BldaError, match=r"x.tif has 6 bands.*: say which the network takes"):
        read(path, range=(0, 4095))
    with pytest.raises(BldaError, match=r"names 7, which is none"):
        read(path, 7)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BldaError, match=r"x.tif cannot be read as a raster"):
        read(path, 1)
    np.save(tmp_path / "five.npy", np.zeros((2, 3, 4, 5, 6), np.uint8))
    with pytest.raises(BldaError, match=r"shape \[2, 3, 4, 5, 6\]: an image is \[H, W\]"):
        read(tmp_path / "five.npy", 1)


def test_pictures_of_bands_are_stretched() -> None:
    ramp = np.linspace(1000, 1100, 40 * 50).reshape(40, 50)
    picture = stretched(np.stack([ramp, ramp * 0, -ramp, ramp], axis=-1))
    assert (picture[0, 0].tolist(), picture[-1, -1].tolist()) == ([0, 0, 255], [255, 0, 0])
    assert 120 < picture[20, 0, 0] < 135
    grey = stretched(np.where(np.arange(50) < 25, ramp, np.nan)[..., None])
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    assert not grey[:, 25:].any()
