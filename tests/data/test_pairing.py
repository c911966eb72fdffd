from pathlib import Path

import pytest

from blda_cli.data.images import find_images
from blda_cli.data.pairing import pair_labels, strip_image, strip_label
from blda_cli.data.pillow_images import PillowImage
from blda_cli.errors import BldaError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pair(images: Path | str, labels: Path | str) -> dict[str, list[str]]:
    found = pair_labels(find_images(images), labels)
    return {key: [path.name for path in paths] for key, paths in found.items()}


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("lindau/lindau_000000_000019_leftImg8bit", "lindau/lindau_000000_000019_gtFine_labelIds"),
        ("lindau/lindau_000000_000019_leftImg8bit", "lindau/lindau_000000_000019_gtFine_labelTrainIds"),
        ("a_000000_leftImg8bit_foggy_beta_0.02", "a_000000_gtFine_labelIds"),
        ("fog/val/GOPR0476/GOPR0476_frame_000854_rgb_anon", "fog/val/GOPR0476/GOPR0476_frame_000854_gt_labelTrainIds"),
        ("val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon", "val/night/GOPR0356/GOPR0356_frame_000321_gt_labelIds"),
        ("val/7d06fefd-f7be05a6", "val/7d06fefd-f7be05a6_train_id"),
        ("val/119/903127_leftImg8bit", "val/119/903127_gtFine_labellevel3Ids"),
        ("val/119/903127_leftImg8bit", "val/119/903127_gtFine_labelcsTrainIds"),
        ("00001", "00001_labelTrainIds"),
        ("0001TP_006690", "0001TP_006690_L"),
        ("training/ADE_train_00000001", "training/ADE_train_00000001"),
        ("a/photo", "a/photo_mask"),
        ("a_leftImg8bit", "a_leftImg8bit"),
    ],
)
def test_the_data_sets_names_meet(tmp_path: Path, image: str, label: str) -> None:
    images = touch(tmp_path / "images", f"{image}.jpg")
    labels = touch(tmp_path / "labels", f"{label}.png", "other/unrelated.png")
    assert pair(images, labels) == {image: [Path(label).name + ".png"]}


def test_suffixes_are_stripped_only_at_the_end_of_a_name() -> None:
    assert strip_image("x_rgb_anon/b_rgb_anon") == "x_rgb_anon/b"
    assert strip_label("a_gt/b_gtFine_labelIds") == "a_gt/b"
    assert strip_label("d/_L") == "d/_L"
    assert strip_image("_leftImg8bit") == "_leftImg8bit"


def test_labels_found_by_name_where_the_folders_differ(tmp_path: Path) -> None:
    images = touch(tmp_path / "leftImg8bit/val/ulm", "a_leftImg8bit.png")
    labels = touch(tmp_path / "gtFine", "val/ulm/a_gtFine_labelIds.png", "val/jena/b_gtFine_labelIds.png")
    assert pair(images, labels) == {"a_leftImg8bit": ["a_gtFine_labelIds.png"]}


def test_of_labels_of_one_name_the_nearest_folder_wins(tmp_path: Path) -> None:
    touch(tmp_path, "images/day/1.png", "labels/day/1.png", "labels/night/1.png")
    found = pair_labels(find_images(tmp_path / "images/day"), tmp_path / "labels")
    assert found == {"1": [tmp_path / "labels/day/1.png"]}


def test_a_choice_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.png", "labels/a/1.png", "labels/b/1.png")
    with pytest.raises(BldaError, match=r"could have the label .*a/1\.png or .*b/1\.png"):
        pair(tmp_path / "images", tmp_path / "labels")


def test_one_label_for_two_images_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images/a/1.png", "images/b/1.png", "labels/1.png")
    with pytest.raises(BldaError, match=r"would have the same label .*labels/1\.png"):
        pair(tmp_path / "images", tmp_path / "labels")


def test_fogs_of_one_scene_share_its_label(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "a_leftImg8bit_foggy_beta_0.01.png", "a_leftImg8bit_foggy_beta_0.02.png")
    labels = touch(tmp_path / "l", "a_gtFine_labelIds.png")
    assert len(pair(images, labels)) == 2


def test_every_kind_of_label_of_an_image_is_given(tmp_path: Path) -> None:
    names = ["a_gtFine_color.png", "a_gtFine_labelIds.png", "a_gtFine_labelTrainIds.png"]
    images, labels = touch(tmp_path / "i", "a_leftImg8bit.png"), touch(tmp_path / "l", *names, "a_gtFine_polygons.json")
    assert pair(images, labels) == {"a_leftImg8bit": names}


def test_images_and_labels_in_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a_leftImg8bit.png", "a_gtFine_labelIds.png", "b.jpg", "b.png")
    assert pair(f"{tmp_path}/*_leftImg8bit.png", tmp_path) == {"a_leftImg8bit": ["a_gtFine_labelIds.png"]}
    assert pair(f"{tmp_path}/*.jpg", tmp_path) == {"b": ["b.png"]}


def test_lists_and_globs_of_labels(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.jpg", "i/b.jpg", "l/a.png", "l/b.png", "l/c.png")
    (tmp_path / "labels.txt").write_text("l/b.png\nl/a.png\n")
    assert pair(tmp_path / "i", tmp_path / "labels.txt") == {"a": ["a.png"], "b": ["b.png"]}
    assert pair(tmp_path / "i", f"{tmp_path}/l/[ab].png") == {"a": ["a.png"], "b": ["b.png"]}


def test_missing_labels_are_counted(tmp_path: Path) -> None:
    images, labels = touch(tmp_path / "i", "a.png", "b.png", "c.png"), touch(tmp_path / "l", "b.png")
    with pytest.raises(BldaError, match=r"no label found for .*a\.png in .*l \(2 of 3 images have none\)"):
        pair(images, labels)
    with pytest.raises(BldaError, match="holds no labels"):
        pair_labels([PillowImage(Path("a.png"), "a")], touch(tmp_path / "jpegs", "a.jpg"))
