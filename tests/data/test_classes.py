import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.classes import (
    class_set,
    default_palette,
    group_members,
    grouped,
    preset,
    preset_names,
    to_ids,
)
from blda_cli.errors import BldaError

CAMVID_GROUPS = {
    "sky": ["sky"],
    "building": ["building", "wall"],
    "pole": ["pole"],
    "road": ["road"],
    "pavement": ["sidewalk"],
    "tree": ["vegetation", "terrain"],
    "sign": ["traffic light", "traffic sign"],
    "fence": ["fence"],
    "car": ["car", "truck", "bus", "train"],
    "pedestrian": ["person"],
    "bicyclist": ["rider", "motorcycle", "bicycle"],
}


@pytest.mark.parametrize(
    ("name", "count"),
    [("cityscapes", 19), ("camvid", 11), ("ade20k", 150), ("mapillary", 65), ("voc", 21), ("synthia", 16), ("idd", 26)],
)
def test_presets(name: str, count: int) -> None:
    classes = preset(name)
    assert len(classes) == len(classes.palette) == len(classes.ids) == count
    assert len(set(classes.names)) == len(set(classes.ids)) == count
    assert list(classes.ids) == sorted(classes.ids)
    assert all(0 <= part <= 255 for color in classes.palette for part in color)
    assert len(set(classes.palette)) >= count - 1  # ADE20K has one colour twice
    assert name in preset_names()


def test_known_entries() -> None:
    cityscapes = preset("cityscapes")
    assert cityscapes.names[13] == "car"
    assert cityscapes.ids[13] == 26
    assert cityscapes.palette[13] == (0, 0, 142)
    assert preset("ade20k").ids == tuple(range(1, 151))
    assert preset("mapillary").names[13] == "Road"
    assert preset("voc").palette[15] == (192, 128, 128)


def test_an_unknown_preset_suggests_one() -> None:
    with pytest.raises(BldaError, match=r"'cityscape'; do you mean cityscapes\?"):
        class_set("cityscape")


def test_names_of_a_preset_bring_its_palette_and_ids() -> None:
    names = [name.title().replace(" ", "_") for name in preset("cityscapes").names]
    classes = class_set(names)
    assert classes.names == tuple(names)
    assert classes.ids == preset("cityscapes").ids
    assert class_set(names[:3]).ids == (0, 1, 2)


def test_a_palette_replaces_the_preset_s() -> None:
    assert class_set(["a", "b"], [(1, 2, 3), (4, 5, 6)]).palette == ((1, 2, 3), (4, 5, 6))
    with pytest.raises(BldaError, match="3 colours for 2 classes"):
        class_set(["a", "b"], [(1, 2, 3)] * 3)


@pytest.mark.parametrize(("names", "message"), [([], "at least one"), (["a", " "], "name"), (["a", "b", "a"], "'a'")])
def test_bad_names(names: list[str], message: str) -> None:
    with pytest.raises(BldaError, match=message):
        class_set(names)


@given(st.integers(0, 600))
def test_default_colours_differ_and_do_not_depend_on_their_number(count: int) -> None:
    palette = default_palette(count)
    assert len(set(palette)) == count
    assert (0, 0, 0) not in palette
    assert palette == default_palette(600)[:count]


def test_first_colours_are_far_apart() -> None:
    palette = np.array(default_palette(20), dtype=float)
    distance = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
    assert distance[~np.eye(20, dtype=bool)].min() > 25


def test_cityscapes_grouped_into_camvid() -> None:
    members = group_members(preset("cityscapes"), CAMVID_GROUPS)
    assert members[8] == (13, 14, 15, 16)
    assert sorted(index for group in members for index in group) == list(range(19))
    assert grouped(preset("cityscapes"), CAMVID_GROUPS) == preset("camvid")


def test_a_group_without_a_preset_takes_its_first_member_s_colour() -> None:
    classes = grouped(preset("cityscapes"), {"flat": ["Sidewalk", "road"], "rest": ["sky"]})
    assert classes.palette == ((244, 35, 232), (70, 130, 180))
    assert classes.ids == (0, 1)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": []}, "'a' has no classes"),
        ({"a": ["skyy"]}, r"'skyy', no class \(do you mean 'sky'\?\)"),
        ({"a": ["sky"], "b": ["sky"]}, "'sky' is in 'a' and 'b'"),
    ],
)
def test_bad_groups(groups: dict[str, list[str]], message: str) -> None:
    with pytest.raises(BldaError, match=message):
        group_members(preset("cityscapes"), groups)


@given(st.lists(st.integers(0, 18) | st.just(IGNORE_INDEX), min_size=1), st.booleans())
def test_original_ids(labels: list[int], wide: bool) -> None:
    ids = [index * 1000 if wide else index for index in preset("cityscapes").ids]
    mapped = to_ids(np.array(labels, dtype=np.int16), ids)
    assert mapped.dtype == (np.uint16 if wide else np.uint8)
    assert mapped.tolist() == [(65535 if wide else 255) if label == IGNORE_INDEX else ids[label] for label in labels]
