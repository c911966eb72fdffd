"""Label maps are no images; what a folder holds besides images is counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blda_cli.data.classes import preset
from blda_cli.data.images import find_images, left_out
from blda_cli.data.mistaken import is_label_map
from blda_cli.errors import BldaError

IDS = np.kron(np.random.default_rng(0).integers(0, 6, (4, 6)), np.ones((8, 8), int)).astype(np.uint8)
PHOTO = np.random.default_rng(1).integers(0, 256, (32, 48, 3)).astype(np.uint8)


def save(path: Path, array: np.ndarray, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette(palette)
    image.save(path)
    return path


def keys(source: Path) -> list[str]:
    return [image.key for image in find_images(source)]


@pytest.mark.parametrize("folder", ["labels", "masks", "gtFine", "SegmentationClass"])
def test_images_and_labels_side_by_side_are_asked_about(tmp_path: Path, folder: str) -> None:
    for name in "ab":
        save(tmp_path / "images" / f"{name}.png", PHOTO)
        save(tmp_path / folder / f"{name}.png", IDS)
    with pytest.raises(BldaError, match=f"side by side .*images/a.png and .*{folder}/a.png.*images alone"):
        find_images(tmp_path)
    assert keys(tmp_path / "images") == ["a", "b"]


def test_a_folder_called_mask_without_images_beside_it_is_one_of_images(tmp_path: Path) -> None:
    save(tmp_path / "mask" / "1.png", PHOTO)
    save(tmp_path / "without" / "2.png", PHOTO)
    assert keys(tmp_path) == ["mask/1", "without/2"]


@pytest.mark.parametrize("label", ["a_labels.png", "a_gtFine_labelIds.png", "a_L.png", "a_mask.png"])
def test_labels_in_the_images_folder_are_left_out(tmp_path: Path, label: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        save(tmp_path / name, PHOTO)
    save(tmp_path / label, IDS)
    assert keys(tmp_path) == ["a", "b"]
    assert "1 .png" in str(left_out(tmp_path, find_images(tmp_path)))


def test_a_label_map_of_an_images_name_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", PHOTO)
    save(tmp_path / "a.png", IDS)
    assert [image.path.suffix for image in find_images(tmp_path)] == [".jpg"]
    save(tmp_path / "a.png", PHOTO)
    with pytest.raises(BldaError, match="would both be called a"):
        find_images(tmp_path)


def test_a_folder_of_label_maps_is_refused(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png", IDS)
    with pytest.raises(BldaError, match=r"holds label maps \(\.png\), not images .* values"):
        find_images(tmp_path)


def test_what_is_plainly_a_label_map(tmp_path: Path) -> None:
    voc = [part for color in preset("voc").palette for part in color]
    assert is_label_map(save(tmp_path / "ids.png", IDS))
    assert is_label_map(save(tmp_path / "void.png", np.where(IDS == 0, 255, IDS).astype(np.uint8)))
    assert is_label_map(save(tmp_path / "voc.png", IDS, voc))
    grey = PHOTO[..., 0]
    assert not is_label_map(save(tmp_path / "grey.png", grey))
    assert not is_label_map(save(tmp_path / "dark.png", grey // 8))  # few values, but not in areas
    assert not is_label_map(save(tmp_path / "black.png", IDS * 0))
    assert not is_label_map(save(tmp_path / "drawn.png", IDS, [200, 30, 30, 10, 90, 200, 250, 250, 250] * 8))
    assert not is_label_map(save(tmp_path / "flat.png", np.stack([IDS * 40] * 3, axis=-1)))
    assert not is_label_map(save(tmp_path / "photo.jpg", PHOTO))


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path) -> None:
    save(tmp_path / "a.png", PHOTO)
    for name in ("notes.txt", "b.npz", "more/c.npz", "LICENSE", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    remark = left_out(tmp_path, find_images(tmp_path))
    assert remark is not None
    assert remark.startswith(f"4 files in {tmp_path} left out")
    assert all(part in remark for part in ("2 .npz", "1 .txt", "1 without suffix"))
    assert left_out(tmp_path / "a.png", find_images(tmp_path / "a.png")) is None
