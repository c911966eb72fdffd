"""Large images in parts, and pixels that a file says are no data."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blda_cli.data import divided_images
from blda_cli.data.images import find_images, image_at
from blda_cli.data.pixels import PixelFormat
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
        wide = image.with_context((20, 20), (15, 15))
        core = wide.core
        assert core is not None
        around = wide.read()
        np.testing.assert_array_equal(
            around[core[0] : core[0] + core[2], core[1] : core[1] + core[3]], whole[top:bottom, left:right]
        )
    assert images[4].with_context((20, 20), (15, 15)).read().shape[:2] == (35, 55)
    with pytest.raises(BldaError, match="has no part 5-0 any more: it is 70x50"):
        image_at(f"{tmp_path / name}#5-0", "x/005-000").read()


@pytest.mark.usefixtures("parts")
def test_a_part_of_an_image_that_exif_turns(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "x.png", exif=exif)
    first = find_images(tmp_path)[0]
    assert first.whole_size() == (70, 50)
    np.testing.assert_array_equal(first.read(), np.rot90(pixels[..., :3], -1)[:32, :32])


def save(path: Path, pixels: np.ndarray) -> None:
    if path.suffix == ".tif":
        Image.fromarray(pixels).save(path)
    else:
        Image.fromarray(pixels).save(path, **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}))


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
