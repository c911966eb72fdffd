"""Label encodings: the meaning of pixel values in label files, for known data sets and custom ones."""

import csv
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TypeVar

import numpy as np

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.classes import ClassSet, Color, plain_name, void_value
from blda_cli.errors import BldaError
from blda_cli.text import suggestion

Key = TypeVar("Key", int, Color)

VOID = 255
"""The value that label files by convention hold at pixels without a class."""


@dataclass(frozen=True)
class LabelEncoding:
    """The meaning of pixel values.

    Attributes:
        name: its name in options and messages.
        values: class name (or the segmenter's class id) of each pixel value of a single-channel file, in the data
            set's order of classes.
        colors: the same of each colour of a colour picture; other colours have no class.
        void: further values that may occur and have no class; None: all others.
        suffixes: ends of file names (before the file suffix) that mean this encoding, to be ignored in pairing.
        prefixes: beginnings of file names that mean it.
        preset: the preset whose names and colours its values have.
    """

    name: str
    values: Mapping[int, str | int] = field(default_factory=dict)
    colors: Mapping[Color, str | int] = field(default_factory=dict)
    void: frozenset[int] | None = frozenset()
    suffixes: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    preset: str | None = None

    @property
    def class_names(self) -> list[str]:
        """The names of its classes, each once, in its order."""
        named = [*self.values.values(), *self.colors.values()]
        return list(dict.fromkeys(name for name in named if isinstance(name, str)))


def _read_encoding(table: Traversable) -> LabelEncoding:
    """An encoding from its file: remarks ``# KEY: WORDS``, then a row for each value or colour; void has no class."""
    lines = table.read_text(encoding="utf-8").splitlines()
    remarks = dict(line.removeprefix("# ").split(": ") for line in lines if line.startswith("#"))
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return LabelEncoding(
        name=table.name.removesuffix(".csv"),
        values={int(row["value"]): row["class"] for row in rows if row["value"] and row["class"]},
        colors={(int(row["red"]), int(row["green"]), int(row["blue"])): row["class"] for row in rows if row["red"]},
        void=frozenset(int(row["value"]) for row in rows if not row["class"]),
        suffixes=tuple(remarks.get("suffixes", "").split()),
        prefixes=tuple(remarks.get("prefixes", "").split()),
        preset=remarks.get("preset"),
    )


_TABLES = resources.files("blda_cli.data").joinpath("label_encodings").iterdir()

ENCODINGS: dict[str, LabelEncoding] = {
    encoding.name: encoding for encoding in map(_read_encoding, sorted(_TABLES, key=lambda table: table.name))
}
"""The data sets' encodings by name, one for every table in the ``label_encodings`` folder."""

# Names for a data set whose files come in more than one encoding, told apart by file name, then by content.
FAMILIES: dict[str, tuple[str, ...]] = {
    "cityscapes": ("cityscapes-ids", "cityscapes-train-ids"),
    "acdc": ("cityscapes-ids", "cityscapes-train-ids"),
    "dark-zurich": ("cityscapes-ids", "cityscapes-train-ids"),
    "bdd100k": ("cityscapes-train-ids",),
    "idd": ("idd-level3", "cityscapes-train-ids", "cityscapes-ids"),
}

# Files that lie beside label files and hold no classes that could be read.
NO_LABEL_SUFFIXES = (
    "_gtFine_color",
    "_gtCoarse_color",
    "_gtFine_instanceIds",
    "_gtCoarse_instanceIds",
    "_gtFine_instanceTrainIds",
    "_gtFine_instancelevel3Ids",
    "_gtFine_labellevel1Ids",
    "_gtFine_labellevel2Ids",
    "_gtFine_labellevel4Ids",
    "_gtFine_labelids",  # IDD's own ids: level3Ids are made from them
    "_gtFine_labelColors",
    "_gt_labelColor",
    "_gt_invIds",
    "_gt_invGray",
    "_train_color",
    "_val_color",
)


IDS_FROM_1 = "ids-from-1"
"""Name of the encoding in which pixel values are class ids plus 1, and 0 means no class."""

MASK = "mask"
"""Name of the encoding of two classes in which the second is 255."""


def encoding_names() -> list[str]:
    """Everything that may be given as the name of an encoding."""
    return ["auto", "ids", IDS_FROM_1, MASK, "colors", *FAMILIES, *ENCODINGS]


def check_encoding_name(name: str | None) -> None:
    """Refuse a name that is no encoding's.

    Raises:
        BldaError: it is none; the message lists the nearest and all others.
    """
    names = encoding_names()
    if name is not None and name not in names:
        hint = suggestion(name, names)
        raise BldaError(
            f"there is no label encoding {name[:60]!r}{hint} (one of {', '.join(names)}, or a mapping in the model's "
            "TOML)"
        )


def class_ids(classes: ClassSet) -> LabelEncoding:
    """Pixel values that are the segmenter's class ids themselves."""
    ids = range(len(classes))
    return LabelEncoding("ids", values={index: index for index in ids}, void=frozenset({void_value(ids)}))


def class_ids_from_1(classes: ClassSet) -> LabelEncoding:
    """Pixel values that are the segmenter's class ids plus 1; 0 has no class."""
    ids = range(len(classes))
    return LabelEncoding(
        IDS_FROM_1, values={index + 1: index for index in ids}, void=frozenset({0, void_value([*ids, len(classes)])})
    )


def binary_mask(classes: ClassSet) -> LabelEncoding:
    """Masks of two classes: 0 is the first, 255 the second.

    Raises:
        BldaError: there is another number of classes.
    """
    if len(classes) != 2:
        raise BldaError(f"the label encoding {MASK} is of two classes, the model has {len(classes)}: give another one")
    return LabelEncoding(MASK, values={0: 0, VOID: 1})


def class_colors(classes: ClassSet) -> LabelEncoding:
    """Colours that are those of the segmenter's classes.

    Raises:
        BldaError: two classes have the same colour.
    """
    colors: dict[Color, str | int] = {color: index for index, color in enumerate(classes.palette)}
    if len(colors) < len(classes):
        raise BldaError("two classes have the same colour, so labels cannot be read by colour: give a palette or masks")
    return LabelEncoding("colors", colors=colors)


def custom_encoding(mapping: Mapping[str, str], name: str = "mapping") -> LabelEncoding:
    """An encoding defined by the user; values that it does not name have no class.

    Args:
        mapping: class name of each pixel value (``{"7": "road"}``) or colour (``{"128,64,128": "road"}``).
        name: its name in messages.

    Raises:
        BldaError: a key is neither, or values and colours are mixed.
    """
    values: dict[int, str | int] = {}
    colors: dict[Color, str | int] = {}
    for key, class_name in mapping.items():
        try:
            numbers = [int(part) for part in key.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 1 and 0 <= numbers[0] <= 65535:
            values[numbers[0]] = class_name
        elif len(numbers) == 3 and all(0 <= number <= 255 for number in numbers):
            colors[numbers[0], numbers[1], numbers[2]] = class_name
        else:
            raise BldaError(f'labels: {key[:60]!r} is neither a pixel value ("7") nor a colour ("128,64,128")')
    if bool(values) == bool(colors):
        raise BldaError("labels: the mapping needs pixel values or colours, and not both")
    return LabelEncoding(name, values, colors, void=None)


@dataclass(frozen=True)
class ClassLookup:
    """An encoding in terms of a segmenter's classes.

    Attributes:
        encoding: the encoding.
        values: class id of each pixel value that has one.
        colors: class id of each colour that has one.
        unmatched: names of the encoding's classes that the segmenter does not have; their pixels are ignored.
    """

    encoding: LabelEncoding
    values: Mapping[int, int]
    colors: Mapping[Color, int]
    unmatched: tuple[str, ...]

    def knows(self, value: int) -> bool:
        """Whether a pixel value may occur under the encoding, with a class or without."""
        void = self.encoding.void
        return value in self.encoding.values or void is None or value in void


def resolve(
    encoding: LabelEncoding, classes: ClassSet, groups: Mapping[str, Sequence[str]] | None = None
) -> ClassLookup:
    """Find the segmenter's class for each of an encoding's classes.

    A name goes to the group it is a member of, else to the class of that name. Names are compared without regard to
    case and punctuation. Where the names differ (or the segmenter's are numbers) but there are as many classes, and no
    name contradicts it, the order decides.

    Args:
        encoding: the encoding.
        classes: the segmenter's classes.
        groups: for each of them the names of the classes it groups.
    """
    targets = {plain_name(name): index for index, name in enumerate(classes.names)}
    for group, members in (groups or {}).items():
        for member in members:
            targets[plain_name(member)] = targets[plain_name(group)]
    names = encoding.class_names
    found = [targets.get(plain_name(name)) for name in names]
    if None in found and encoding.void is not None and len(names) == len(classes) and _same_order(found, classes):
        found = list(range(len(names)))
    ids = {name: index for name, index in zip(names, found, strict=True) if index is not None}

    unmatched = tuple(name for name in names if name not in ids)
    return ClassLookup(encoding, _by_id(encoding.values, ids), _by_id(encoding.colors, ids), unmatched)


def _by_id(table: Mapping[Key, str | int], ids: Mapping[str, int]) -> dict[Key, int]:
    found = ((key, target if isinstance(target, int) else ids.get(target)) for key, target in table.items())
    return {key: index for key, index in found if index is not None}


def _same_order(found: Sequence[int | None], classes: ClassSet) -> bool:
    """Whether classes whose names were found stand at the same places in both, and most were found or none has a
    name."""
    agree = sum(index == place for place, index in enumerate(found))
    if any(index not in (None, place) for place, index in enumerate(found)):
        return False
    unnamed = all(plain_name(name).split()[-1:] and plain_name(name).split()[-1].isdigit() for name in classes.names)
    return unnamed or 2 * agree >= len(found)


def unknown_names(lookup: ClassLookup, classes: ClassSet) -> BldaError:
    """The error for an encoding whose class names are not the segmenter's."""
    name = lookup.unmatched[0]
    nearest = difflib.get_close_matches(name, classes.names, n=1, cutoff=0.0)[0]
    known = ", ".join(classes.names[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
    return BldaError(
        f"the label encoding {lookup.encoding.name} names {name[:60]!r}, which is none of the segmenter's "
        f"{len(classes)} classes (the nearest is {nearest!r}): correct the name, or group the classes (they are "
        f"{known})"
    )


def as_array(table: Mapping[int, int], size: int) -> np.ndarray:
    """A lookup table: the class id of each value below ``size``, int16, ``IGNORE_INDEX`` where it has none."""
    array = np.full(size, IGNORE_INDEX, dtype=np.int16)
    for value, index in table.items():
        if value < size:
            array[value] = index
    return array
