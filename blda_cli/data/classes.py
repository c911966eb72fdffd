"""Class sets: names, colours and ids."""

import colorsys
import csv
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from blda_cli.errors import BldaError
from blda_cli.text import printable, suggestion

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassSet:
    """The classes in the order of the logits' channels.

    Attributes:
        names: one name per class, unique.
        palette: one RGB colour (0..255) per class.
        ids: the data set's original id of each class, for servers that want them (``--ids``); the class ids
            themselves where the data set has no other.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)


def preset_names() -> list[str]:
    """The presets of `class_set`: one for every table in the ``presets`` folder."""
    tables = resources.files("blda_cli.data").joinpath("presets").iterdir()
    return sorted(table.name.removesuffix(".csv") for table in tables if table.name.endswith(".csv"))


@cache
def preset(name: str) -> ClassSet:
    """The classes of a well-known data set.

    Raises:
        BldaError: there is no preset of that name.
    """
    known = preset_names()
    if name not in known:
        hint = suggestion(name, known)
        raise BldaError(f"there is no preset of classes called {name!r}{hint} (presets: {', '.join(known)})")
    with resources.files("blda_cli.data").joinpath("presets", f"{name}.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    return ClassSet(
        names=tuple(row["name"] for row in rows),
        palette=tuple((int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows),
        ids=tuple(int(row["id"]) for row in rows),
    )


def class_set(names: str | Sequence[str], palette: Sequence[Color] | None = None) -> ClassSet:
    """Make a set of classes.

    Args:
        names: a preset's name, or one name per class. Where the names are those of a preset in its order, its
            palette and ids come with them.
        palette: one RGB colour per class; by default the preset's, or colours that can be told apart.

    Returns:
        The classes.

    Raises:
        BldaError: no such preset, a name twice, no name, or a palette of another length.
    """
    if isinstance(names, str):
        base = preset(names)
    else:
        names = tuple(name.strip() for name in names)
        if not names or not all(names):
            raise BldaError("every class needs a name, and there must be at least one class")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise BldaError(f"the class {twice[0]!r} is named twice: give every class its own name")
        odd = next((name for name in names if printable(name) != name or "\n" in name), None)
        if odd is not None:
            raise BldaError(f"the class names hold {odd!r}: control characters cannot be shown, leave them out")
        base = _matching_preset(names) or ClassSet(names, default_palette(len(names)), tuple(range(len(names))))
    if palette is None:
        return base
    if len(palette) != len(base):
        raise BldaError(f"the palette has {len(palette)} colours for {len(base)} classes: give one colour per class")
    if not all(len(color) == 3 and all(0 <= part <= 255 for part in color) for color in palette):
        raise BldaError("the palette's colours must be red, green, blue in 0..255")
    return ClassSet(base.names, tuple((color[0], color[1], color[2]) for color in palette), base.ids)


def numbered_classes(count: int) -> ClassSet:
    """Classes named ``class 0``, ``class 1``, ..., where no names are given."""
    return class_set([f"class {number}" for number in range(count)])


def _matching_preset(names: Sequence[str]) -> ClassSet | None:
    """The preset with these names in this order, in the spelling given."""
    plain = [plain_name(name) for name in names]
    for known in map(preset, preset_names()):
        if [plain_name(name) for name in known.names] == plain:
            return ClassSet(tuple(names), known.palette, known.ids)
    return None


def plain_name(name: str) -> str:
    """Normal form of a class name: lower case, anything but letters and digits as one space."""
    return re.sub(r"[\W_]+", " ", name).strip().lower()


def default_palette(count: int) -> tuple[Color, ...]:
    """Different colours for classes that have none: hues a golden angle apart, in rings of lightness."""
    palette: list[Color] = []
    seen = {(0, 0, 0)}  # black is for pixels without a class
    step = 0
    while len(palette) < count:
        hue = step * 0.618033988749895 % 1.0
        red, green, blue = colorsys.hls_to_rgb(hue, (0.5, 0.35, 0.7, 0.22, 0.82)[step // 8 % 5], 0.75)
        color = (round(red * 255), round(green * 255), round(blue * 255))
        step += 1
        if color not in seen:
            seen.add(color)
            palette.append(color)
    return tuple(palette)


def grouped(classes: ClassSet, groups: Mapping[str, Sequence[str]], palette: Sequence[Color] | None = None) -> ClassSet:
    """Classes that result from grouping others.

    Args:
        classes: the classes to be grouped.
        groups: for each new class, in order, the names of those it is made of. Classes in no group are left out.
        palette: one colour per group; by default a preset's where the groups are its classes, else that of each
            group's first member.

    Returns:
        One class per group.

    Raises:
        BldaError: as for `group_members`.
    """
    members = group_members(classes, groups)
    if palette is None and _matching_preset(list(groups)) is None:
        palette = [classes.palette[indices[0]] for indices in members]
    return class_set(list(groups), palette)


def group_members(classes: ClassSet, groups: Mapping[str, Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """The class ids that each group is made of.

    Args:
        classes: the classes to be grouped.
        groups: as for `grouped`.

    Returns:
        For each group the ids of its members, in the order given.

    Raises:
        BldaError: a group is empty, names an unknown class, or a class is in two groups.
    """
    ids = {plain_name(name): index for index, name in enumerate(classes.names)}
    taken: dict[int, str] = {}
    members = []
    for group, names in groups.items():
        if not names:
            raise BldaError(f"classes.groups: {group!r} has no classes: name at least one, or leave it out")
        for name in names:
            index = ids.get(plain_name(name))
            if index is None:
                nearest = difflib.get_close_matches(name, classes.names, n=1, cutoff=0.0)[0]
                raise BldaError(f"classes.groups: {group!r} names {name!r}, no class (do you mean {nearest!r}?)")
            if index in taken:
                raise BldaError(f"classes.groups: class {name!r} is in {taken[index]!r} and {group!r}: keep it in one")
            taken[index] = group
        members.append(tuple(ids[plain_name(name)] for name in names))
    return tuple(members)


def void_value(ids: Iterable[int]) -> int:
    """The value of pixels without a class in a label file: 255 by convention, 65535 where a class has an id from 255
    on."""
    return 255 if max(ids) < 255 else 65535


def to_ids(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Replace class ids by a data set's original ids, as a label file holds them.

    Args:
        labels: class ids of any integer type and shape, or ``IGNORE_INDEX``, which becomes :func:`void_value`.
        ids: the original id of each class, in 0..65534.

    Returns:
        The ids, of the same shape: uint8, or uint16 where one exceeds 254.
    """
    void = void_value(ids)
    table = np.array([*ids, void], dtype=np.uint8 if void == 255 else np.uint16)
    result: np.ndarray = table[labels]  # IGNORE_INDEX is the last entry
    return result
