import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blda_cli.data import pillow_images
from blda_cli.data.images import find_images, unsaid_bits
from blda_cli.data.pillow_images import image_size, read_image
from blda_cli.data.pixels import PixelFormat
from blda_cli.errors import BldaError


def save(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 3, 3), np.uint8) if array is None else array).save(path)
    return path


def gradient(height: int = 12, width: int = 20) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 12, y * 20, (x + y) * 7], axis=-1).astype(np.uint8)


class TestFinding:
    def test_a_folder_is_searched_and_keys_are_relative(self, tmp_path: Path) -> None:
        for name in ("b/two.JPG", "a/one.png", "three.webp", ".hidden.png", "a/.thumbnails/x.png"):
            save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("no image")
        found = find_images(tmp_path)
        assert [image.key for image in found] == ["a/one", "b/two", "three"]
        assert found[1].path == tmp_path / "b/two.JPG"

    def test_glob_keys_are_relative_to_its_plain_part(self, tmp_path: Path) -> None:
        for name in ("x/a/1.png", "x/b/2.png", "y/3.png", "x/a/._1.png", ".cache/4.png"):
            save(tmp_path / name)
        assert [image.key for image in find_images(f"{tmp_path}/x/*/*.png")] == ["a/1", "b/2"]
        assert [image.key for image in find_images(f"{tmp_path}/**/*.png")] == ["x/a/1", "x/b/2", "y/3"]

    def test_a_list_is_relative_to_itself_and_keys_never_leave_the_output(self, tmp_path: Path) -> None:
        save(tmp_path / "pictures/a/1.png")
        save(tmp_path / "pictures/b/2.png")
        lists = tmp_path / "lists"
        lists.mkdir()
        (lists / "val.txt").write_text("# two of them\n../pictures/a/1.png\n\n../pictures/b/2.png\n")
        assert [image.key for image in find_images(lists / "val.txt")] == ["a/1", "b/2"]

    def test_a_listed_file_that_is_missing_is_named_with_its_line(self, tmp_path: Path) -> None:
        (tmp_path / "val.txt").write_text("\nnowhere.png\n")
        with pytest.raises(BldaError, match=r"val\.txt, line 2: .*nowhere\.png does not exist"):
            find_images(tmp_path / "val.txt")

    def test_one_image(self, tmp_path: Path) -> None:
        assert [image.key for image in find_images(save(tmp_path / "only.png"))] == ["only"]

    @pytest.mark.parametrize("source", ["", "nowhere", "*.png"])
    def test_none_found(self, tmp_path: Path, source: str) -> None:
        with pytest.raises(BldaError, match=r"holds no images|does not exist"):
            find_images(tmp_path / source)

    def test_two_images_of_one_key_are_refused(self, tmp_path: Path) -> None:
        save(tmp_path / "a.png")
        save(tmp_path / "a.jpg")
        with pytest.raises(BldaError, match=r"a\.jpg and .*a\.png would both be called a"):
            find_images(tmp_path)

    def test_a_link_to_the_folder_above_ends(self, tmp_path: Path) -> None:
        save(tmp_path / "in/a.png")
        (tmp_path / "in/up").symlink_to(tmp_path, target_is_directory=True)
        elsewhere = tmp_path.parent / f"{tmp_path.name}-linked"
        save(elsewhere / "b.png")
        (tmp_path / "linked").symlink_to(elsewhere, target_is_directory=True)
        assert [image.key for image in find_images(tmp_path)] == ["in/a", "linked/b"]

    def test_a_dot_within_the_name_stays(self, tmp_path: Path) -> None:
        save(tmp_path / "x_foggy_beta_0.02.png")
        assert find_images(tmp_path)[0].key == "x_foggy_beta_0.02"


class TestReading:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
    def test_lossless_formats(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"a{suffix}"
        Image.fromarray(gradient()).save(path, lossless=True)  # for WebP; the others always are
        np.testing.assert_array_equal(read_image(path), gradient())

    def test_jpeg_is_close(self, tmp_path: Path) -> None:
        Image.fromarray(gradient(64, 64) // 2).save(tmp_path / "a.jpg", quality=95, subsampling=0)
        difference = read_image(tmp_path / "a.jpg").astype(int) - gradient(64, 64) // 2
        assert np.abs(difference).mean() < 4

    def test_grey_palette_and_alpha(self, tmp_path: Path) -> None:
        image = Image.fromarray(gradient())
        grey = np.asarray(image.convert("L"))
        image.convert("L").save(tmp_path / "grey.png")
        np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))
        paletted = image.quantize(16)
        paletted.save(tmp_path / "palette.png")
        np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.asarray(paletted.convert("RGB")))
        alpha = np.dstack([gradient(), np.full((12, 20), 7, np.uint8)])
        Image.fromarray(alpha).save(tmp_path / "alpha.png")
        np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), gradient())

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_16_bit_grey_keeps_its_upper_byte(self, tmp_path: Path, suffix: str) -> None:
        values = (np.arange(240, dtype=np.uint16) * 273).reshape(12, 20)
        Image.fromarray(values).save(tmp_path / f"wide{suffix}")
        read = read_image(tmp_path / f"wide{suffix}")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read[..., 0], values >> 8)

    def test_floating_point_is_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
        with pytest.raises(BldaError, match=r"f\.tif holds floating-point"):
            read_image(tmp_path / "f.tif")

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(gradient()).save(tmp_path / "turned.png", exif=exif)
        turned = {
            1: gradient(),
            2: gradient()[:, ::-1],
            3: gradient()[::-1, ::-1],
            4: gradient()[::-1],
            5: gradient().transpose(1, 0, 2),
            6: np.rot90(gradient(), -1),
            7: np.rot90(gradient().transpose(1, 0, 2), 2),
            8: np.rot90(gradient()),
        }[orientation]
        np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), turned)
        assert image_size(tmp_path / "turned.png") == turned.shape[:2]

    def test_what_is_no_image_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("not an image")
        (tmp_path / "empty.png").touch()
        for name in ("text.png", "empty.png"):
            with pytest.raises(BldaError, match=rf"{name} is not an image"):
                read_image(tmp_path / name)
        with pytest.raises(BldaError, match=r"gone\.png does not exist"):
            read_image(tmp_path / "gone.png")

    @pytest.mark.filterwarnings("ignore:::PIL")
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_a_damaged_file_is_read_or_named_in_one_line(self, tmp_path: Path, data: st.DataObject) -> None:
        suffix = data.draw(st.sampled_from([".png", ".jpg", ".webp", ".tif", ".bmp"]))
        path = tmp_path / f"damaged{suffix}"
        Image.fromarray(gradient()).save(path)
        whole = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            del whole[data.draw(st.integers(0, len(whole) - 1)) :]
        else:
            for _ in range(data.draw(st.integers(1, 4))):
                whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(whole)
        said = ""
        try:
            read = read_image(path)
        except BldaError as error:
            said = str(error)
        assert (str(path) in said and "\n" not in said) if said else read.ndim == 3

    def test_a_truncated_photo_is_an_error(self, tmp_path: Path) -> None:
        for suffix in (".png", ".jpg"):
            path = tmp_path / f"cut{suffix}"
            noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(noise).save(path)
            os.truncate(path, path.stat().st_size // 2)
            with pytest.raises(BldaError, match=rf"cut\{suffix} cannot be read"):
                read_image(path)

    def test_real_frames(self, shared_data: Path) -> None:
        images = find_images(shared_data / "camvid" / "dusk" / "images")
        assert len(images) == 62
        assert read_image(images[0].path).flags.writeable  # torch warns where not
        assert read_image(images[0].path).shape == (*image_size(images[0].path), 3) == (360, 480, 3)


@pytest.mark.parametrize(
    "suffix", [".jfif", ".jpe", ".mpo", ".jp2", ".j2k", ".avif", ".gif", ".tga", ".dib", ".pbm", ".pnm", ".qoi", ".pcx"]
)
def test_every_picture_format_of_pillow_is_found_and_read(tmp_path: Path, suffix: str) -> None:
    picture = Image.fromarray(gradient().repeat(4, axis=0).repeat(4, axis=1))
    if suffix == ".pbm":
        picture = picture.convert("1")
    kind = {".mpo": "MPO", ".jfif": "JPEG", ".jpe": "JPEG", ".pnm": "PPM"}.get(suffix)
    try:
        picture.save(tmp_path / f"a{suffix}", format=kind)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"this Pillow writes no {suffix}")
    (image,) = find_images(tmp_path)
    assert image.read().shape == (48, 80, 3)
    assert image.size() == (48, 80)
    assert image.read().std() > 10


@pytest.mark.parametrize("suffix", [".pdf", ".eps", ".h5", ".fits", ".wmf", ".flc", ".grib"])
def test_documents_films_and_data_are_no_images(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"x")
    save(tmp_path / "b.png", gradient())
    assert [image.key for image in find_images(tmp_path)] == ["b"]


def test_a_listed_name_may_begin_with_a_hash(tmp_path: Path) -> None:
    save(tmp_path / "#1.png")
    save(tmp_path / "2.png")
    (tmp_path / "list.txt").write_text("# two\n#1.png\n#3.png\n2.png\n")
    assert [image.key for image in find_images(tmp_path / "list.txt")] == ["#1", "2"]


@pytest.mark.parametrize(
    ("largest", "bits"), [(255, 8), (1000, 10), (4095, 12), (16383, 14), (40000, None), (65535, None)]
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_bits_that_16_bit_files_use_are_told(tmp_path: Path, largest: int, bits: int | None, suffix: str) -> None:
    values = np.linspace(0, largest, 60).astype(np.uint16).reshape(6, 10)
    save(tmp_path / f"a{suffix}", values)
    save(tmp_path / f"b{suffix}", values // 2)
    assert unsaid_bits(find_images(tmp_path)) == bits
    said = PixelFormat(range=(0, 4095))
    assert unsaid_bits(find_images(tmp_path, said)) is None


def test_bits_make_the_largest_value_white(tmp_path: Path) -> None:
    values = np.array([[0, 2048, 4095]], np.uint16)
    save(tmp_path / "a.png", values)
    (image,) = find_images(tmp_path, PixelFormat(range=(0, 4095)))
    np.testing.assert_allclose(image.read()[0, :, 0], [0, 2048 * 255 / 4095, 255])


def test_a_picture_beyond_pillows_limit_is_read_if_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "a.jpg", "a.bmp"):
        save(tmp_path / name, gradient())
    before = [read_image(tmp_path / name) for name in ("a.png", "a.jpg")]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(pillow_images, "LARGE", 100)
    for name, pixels in zip(("a.png", "a.jpg"), before, strict=True):
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels)
    with pytest.raises(BldaError, match=r"a\.bmp has more pixels than Pillow reads .* save it as a TIFF"):
        read_image(tmp_path / "a.bmp")
    monkeypatch.setattr(pillow_images, "available_memory", lambda: 1000)
    with pytest.raises(BldaError, match=r"a\.png is \d+x\d+ .* decoding it takes .* a tiled TIFF is read in parts"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(pillow_images, "available_memory", lambda: None)
    with pytest.raises(BldaError, match=r"a\.png has more pixels than Pillow reads"):
        read_image(tmp_path / "a.png")
