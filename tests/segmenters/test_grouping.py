import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blda_cli.data.classes import class_set, preset
from blda_cli.errors import BldaError
from blda_cli.segmenters.grouping import Grouping, resolve_classes
from blda_cli.segmenters.spec import ClassesSection


@settings(deadline=None, max_examples=50)
@given(
    data=st.data(),
    channels=st.integers(1, 8),
    spatial=st.lists(st.integers(1, 4), max_size=3),
)
def test_a_groups_probability_is_the_sum_of_its_members(data: st.DataObject, channels: int, spatial: list[int]) -> None:
    assignment = data.draw(st.lists(st.integers(0, 3), min_size=channels, max_size=channels))
    members = tuple(
        tuple(channel for channel in range(channels) if assignment[channel] == group)
        for group in sorted(set(assignment))
    )
    logits = torch.randn(2, channels, *spatial, dtype=torch.float64) * 30
    grouped = Grouping(members)(logits)
    expected = torch.stack([logits.softmax(1)[:, list(one)].sum(1) for one in members], 1)
    torch.testing.assert_close(grouped.softmax(1), expected, atol=1e-12, rtol=1e-9)


def test_gradients_reach_the_members() -> None:
    logits = torch.randn(1, 3, 2, requires_grad=True)
    Grouping(((0, 2), (1,)))(logits)[:, 0].sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:, [0, 2]].sum(1), torch.ones(1, 2))
    assert (logits.grad[:, 1] == 0).all()


def test_groups_become_classes_with_their_first_members_colour() -> None:
    cityscapes = preset("cityscapes")
    groups = {"plants": ("vegetation", "terrain"), "sky": ("sky",)}
    classes, grouping = resolve_classes(ClassesSection("cityscapes", None, groups), cityscapes)
    assert classes.names == ("plants", "sky")
    assert classes.palette == (
        cityscapes.palette[cityscapes.names.index("vegetation")],
        cityscapes.palette[cityscapes.names.index("sky")],
    )
    assert grouping is not None
    assert [[cityscapes.names[i] for i in one] for one in grouping.members] == [["vegetation", "terrain"], ["sky"]]


def test_groups_that_are_a_presets_classes_have_its_palette() -> None:
    camvid = preset("camvid")
    groups = {name: (own,) for name, own in zip(camvid.names, preset("cityscapes").names, strict=False)}
    classes, _ = resolve_classes(ClassesSection("cityscapes", None, groups), preset("cityscapes"))
    assert classes == camvid


def test_a_palette_is_one_of_the_groups() -> None:
    section = ClassesSection(None, ((1, 2, 3),), {"all": ("a", "b")})
    classes, _ = resolve_classes(section, class_set(["a", "b"]))
    assert classes.palette == ((1, 2, 3),)
    with pytest.raises(BldaError, match="palette"):
        resolve_classes(ClassesSection(None, ((1, 2, 3), (0, 0, 0)), {"all": ("a", "b")}), class_set(["a", "b"]))


def test_without_groups_the_classes_stay() -> None:
    classes = class_set(["a", "b"])
    assert resolve_classes(ClassesSection(), classes) == (classes, None)
