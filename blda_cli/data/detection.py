"""Detection of label encodings from file names and contents."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from blda_cli.data.classes import ClassSet, plain_name, preset
from blda_cli.data.encodings import (
    ENCODINGS,
    FAMILIES,
    IDS_FROM_1,
    MASK,
    NO_LABEL_SUFFIXES,
    VOID,
    ClassLookup,
    LabelEncoding,
    binary_mask,
    check_encoding_name,
    class_colors,
    class_ids,
    class_ids_from_1,
    encoding_names,
    resolve,
)
from blda_cli.data.label_files import RawLabel, packed, read_label_file
from blda_cli.data.pairing import label_mark
from blda_cli.errors import BldaError

# Files read to detect the encoding.
SAMPLES = 5

Groups = Mapping[str, Sequence[str]] | None


class Samples:
    """The raw contents of a few label files, pooled.

    Attributes:
        paths: the files.
        values: pixel count of each value of the single-channel files.
        found_in: the files that each value is in.
        colors: pixel count of each colour of the colour pictures.
        palette: the colour of each value, where all single-channel files have the same palette.
        painted: the colours that palettes give to each value that occurs, with a file of each.
        wide_color: a file has 16-bit colour channels.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths: list[Path] = []
        self.values: dict[int, int] = {}
        self.found_in: dict[int, list[Path]] = defaultdict(list)
        self.colors: dict[tuple[int, int, int], int] = {}
        self.palette: np.ndarray | None = None
        self.painted: dict[int, dict[tuple[int, int, int], Path]] = defaultdict(dict)
        self.wide_color = False
        failed: BldaError | None = None
        palettes = set()
        for path in paths:
            try:
                raw = read_label_file(path)
            except BldaError as error:  # it is reported, or skipped, when its turn comes
                failed = error
                continue
            self.paths.append(path)
            self._add(raw)
            palettes.add(None if raw.palette is None else raw.palette.tobytes())
            self.palette = raw.palette
        if failed is not None and not self.paths:
            raise failed
        if len(palettes) > 1:
            self.palette = None

    def _add(self, raw: RawLabel) -> None:
        self.wide_color |= raw.wide_color
        if raw.values is not None:
            values, counts = np.unique(raw.values, return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                self.found_in[value].append(self.paths[-1])
                self.values[value] = self.values.get(value, 0) + count
                if raw.palette is not None and value < len(raw.palette):
                    red, green, blue = raw.palette[value].tolist()
                    self.painted[value].setdefault((red, green, blue), self.paths[-1])
        elif raw.colors is not None:
            codes, counts = np.unique(packed(raw.colors), return_counts=True)
            for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
                color = (code >> 16, code >> 8 & 255, code & 255)
                self.colors[color] = self.colors.get(color, 0) + count

    def without(self, ignore: int | None) -> dict[int, int]:
        """`values` without the one declared to have no class."""
        return {value: count for value, count in self.values.items() if value != ignore}


def choose_encoding(
    candidates: Mapping[str, Sequence[Path]],
    encoding: str | LabelEncoding,
    classes: ClassSet,
    groups: Groups,
    ignore: int | None,
) -> tuple[ClassLookup, dict[str, Path]]:
    """Determine the encoding of label files, and which file of each image to read.

    Args:
        candidates: label files of each image, by its key.
        encoding: the user's choice: an encoding, its name, a data set's name, or ``"auto"``.
        classes: the segmenter's classes.
        groups: names of the classes that each of them groups.
        ignore: a pixel value without a class.

    Returns:
        The encoding in terms of the segmenter's classes, and the file of each key.

    Raises:
        BldaError: it cannot be determined, or the contents contradict it.
    """
    if isinstance(encoding, LabelEncoding):
        options = [encoding]
    elif encoding == "ids":
        options = [class_ids(classes)]
    elif encoding == IDS_FROM_1:
        options = [class_ids_from_1(classes)]
    elif encoding == MASK:
        options = [binary_mask(classes)]
    elif encoding == "colors":
        options = [class_colors(classes)]
    elif encoding in ENCODINGS:
        options = [ENCODINGS[encoding]]
    elif encoding in FAMILIES:
        options = [ENCODINGS[name] for name in FAMILIES[encoding]]
    else:
        check_encoding_name(encoding)
        options = list(ENCODINGS.values())  # auto

    named = [option for option in options if all(map(_Named(option), candidates.values()))]
    if len(options) == 1:
        chosen = options[0]
    elif named:
        chosen = min(named, key=lambda option: len(classes) - len(_classes_met(option, classes, groups)))
    else:
        plain = {key: _pick(paths, None) for key, paths in candidates.items()}
        samples = Samples(_spread(list(plain.values())))
        chosen = _by_contents(samples, options, encoding == "auto", classes, groups, ignore)
    paths = {key: _pick(files, chosen) for key, files in candidates.items()}
    lookup = resolve(chosen, classes, groups)
    _check(Samples(_spread(list(paths.values()))), lookup, classes, ignore)
    if ignore is not None and not chosen.values:
        raise BldaError(
            f"--ignore-label {ignore} is a pixel value, but the label encoding {chosen.name} reads colours: leave it "
            "out; colours that are not named have no class"
        )
    return lookup, paths


def _spread(paths: Sequence[Path]) -> list[Path]:
    """A few of the files, evenly over all."""
    count = min(SAMPLES, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


class _Named:
    """Whether one of an image's files has a name that means an encoding."""

    def __init__(self, encoding: LabelEncoding) -> None:
        self.encoding = encoding

    def __call__(self, paths: Sequence[Path]) -> bool:
        return any(map(self.of, paths))

    def of(self, path: Path) -> bool:
        prefixes = self.encoding.prefixes
        return label_mark(path) in self.encoding.suffixes or (bool(prefixes) and path.name.startswith(prefixes))


def _pick(paths: Sequence[Path], encoding: LabelEncoding | None) -> Path:
    """The file of an image to read: one named for the encoding, else one named for none, else another."""
    usable = [path for path in paths if label_mark(path) not in NO_LABEL_SUFFIXES]
    if not usable and encoding is not None and encoding.colors:
        usable = list(paths)
    if not usable:
        raise BldaError(
            f"{paths[0]} is not a file of class ids (those end in _labelIds, _labelTrainIds, _train_id ...): give the "
            "folder that holds them, or the encoding cityscapes-colors to read colours"
        )
    marked = {suffix for known in ENCODINGS.values() for suffix in known.suffixes}
    named = [path for path in usable if encoding is not None and _Named(encoding).of(path)]
    plain = [path for path in usable if label_mark(path) not in marked]
    return (named or plain or usable)[0]


def _classes_met(encoding: LabelEncoding, classes: ClassSet, groups: Groups) -> set[int]:
    lookup = resolve(encoding, classes, groups)
    return {*lookup.values.values(), *lookup.colors.values()}


def _by_contents(
    samples: Samples,
    options: Sequence[LabelEncoding],
    auto: bool,
    classes: ClassSet,
    groups: Groups,
    ignore: int | None,
) -> LabelEncoding:
    """The encoding that fits the files' values, if it is the only one."""
    if samples.wide_color and ENCODINGS["synthia"] in options:
        return ENCODINGS["synthia"]
    if samples.colors:
        raise _colour_picture(samples, classes)
    values = samples.without(ignore)
    if auto:
        _refuse_palettes(samples, values, classes, groups)
        if set(values) == {0, VOID} and not _as_written_here(samples.palette, classes):
            raise BldaError(
                f"the labels in {samples.paths[0].parent} hold 0 and 255 alone: give the label encoding {MASK} if 255 "
                f"is a class ({classes.names[-1]!r} of two), or ids if it means no class"
            )
    readable = [option for option in options if option.values and option.name not in ("gta5", "synthia")]
    lookups = [resolve(option, classes, groups) for option in readable]
    own = [resolve(class_ids(classes), classes)] if auto else []
    if samples.palette is not None:
        for lookup in [*own, *lookups]:
            if _painted(samples.palette, values, lookup, classes) and _explains(values, lookup):
                return lookup.encoding
    plain = [plain_name(name) for name in classes.names]
    for lookup in lookups:
        if [plain_name(name) for name in lookup.encoding.class_names] == plain:
            own.append(lookup)
    whole = [lookup for lookup in lookups if not lookup.unmatched]
    for tier in ([*own, *whole], [] if auto else lookups):
        fitting = [lookup for lookup in tier if _explains(values, lookup)]
        meanings = {tuple(lookup.values.get(value) for value in sorted(values)) for lookup in fitting}
        if len(meanings) == 1:
            if auto:
                _refuse_accidents(samples, fitting[0], lookups, values, ignore, classes)
            return fitting[0].encoding
        if meanings:
            names = " or ".join(dict.fromkeys(lookup.encoding.name for lookup in fitting))
            raise BldaError(
                f"the labels in {samples.paths[0].parent} could be {names}: say which with the label encoding "
                f"(values {_listed(values)})"
            )
    from_1 = resolve(class_ids_from_1(classes), classes)
    hint = ""
    if auto and len(classes) in values and _explains(values, from_1):
        if ignore == 0:  # 0 has no class and the number of classes has one: they count from 1
            return from_1.encoding
        hint = (
            f"{IDS_FROM_1} if they count from 1 and 0 has no class, or --ignore-label {len(classes)} if they count "
            "from 0 and that one has none; else "
        )
    raise BldaError(
        f"the values {_listed(values)}{_odd_one(samples)} in {samples.paths[0].parent} are no class ids of "
        f"{len(classes)} classes and fit no encoding that goes with them: name the label encoding: {hint}one of "
        f"{', '.join(encoding_names()[1:])}, a mapping, or the value to ignore"
    )


def _refuse_palettes(samples: Samples, values: Mapping[int, int], classes: ClassSet, groups: Groups) -> None:
    """Refuse single-channel files whose palettes show that their values are no ids.

    Raises:
        BldaError: a value has different colours in different files, or the colours are those of other classes.
    """
    for value in values:
        colors = list(samples.painted[value].items()) if value in samples.painted else []
        if len(colors) > 1:
            (one, first), (other, second) = colors[:2]
            raise BldaError(
                f"the value {value} is of the colour {_color(one)} in {first} but {_color(other)} in {second}: the "
                "values are places in each file's own palette, not ids; map the colours to classes under "
                "[labels.mapping], or give an encoding of colours"
            )
    shown = {value: next(iter(samples.painted[value])) for value in values if value in samples.painted}
    shown.pop(VOID, None)
    tables = {"colors": dict(zip(classes.palette, range(len(classes)), strict=True))}
    for encoding in ENCODINGS.values():
        if encoding.colors:
            tables[encoding.name] = dict(resolve(encoding, classes, groups).colors)
    for name, table in tables.items():
        known = {value: table[color] for value, color in shown.items() if color in table}
        if len(known) > 1 and len(known) == len(shown) and any(value != index for value, index in known.items()):
            value = next(value for value, index in known.items() if value != index)
            raise BldaError(
                f"the value {value} in {samples.paths[0]} has the colour of {classes.names[known[value]]!r} in its "
                f"palette: are the values places in the palette? The label encoding {name} reads colours, ids reads "
                "values"
            )


def _refuse_accidents(
    samples: Samples,
    chosen: ClassLookup,
    lookups: Sequence[ClassLookup],
    values: Mapping[int, int],
    ignore: int | None,
    classes: ClassSet,
) -> None:
    """Refuse an encoding that may fit by accident.

    Raises:
        BldaError: class 0 would have no label, or the folder is called after a data set with other ids.
    """
    if ignore == 0 and chosen.encoding.values.get(0) == 0:
        raise BldaError(
            f"--ignore-label 0 leaves no label of class 0, {classes.names[0]!r}: give the label encoding {IDS_FROM_1} "
            f"if the ids count from 1, or {chosen.encoding.name} if not"
        )
    words = set(re.split(r"[\W_]+", samples.paths[0].as_posix().lower()))
    meaning = [chosen.values.get(value) for value in sorted(values)]
    called = [one for one in lookups if one.encoding.name.partition("-")[0] in words and _explains(values, one)]
    if called and all([one.values.get(value) for value in sorted(values)] != meaning for one in called):
        raise BldaError(
            f"{samples.paths[0].parent} is called after a data set whose ids mean something else: name the label "
            f"encoding, {called[0].encoding.name} or {chosen.encoding.name}"
        )


def _color(color: tuple[int, int, int]) -> str:
    return ",".join(map(str, color))


def _odd_one(samples: Samples) -> str:
    """Names the one file of several that holds values which no other does."""
    alone = {paths[0]: value for value, paths in samples.found_in.items() if len(paths) == 1}
    if len(alone) != 1 or len(samples.paths) == 1:
        return ""
    path, value = next(iter(alone.items()))
    return f" ({value} only in {path})"


def _explains(values: Mapping[int, int], lookup: ClassLookup) -> bool:
    """Whether values may be of an encoding, and at least one has a class unless all are ignored values."""
    if _all_ignored(values):
        return True
    if not all(map(lookup.knows, values)) or not any(value in lookup.values for value in values):
        return False
    return not (_is_city_ids(lookup.encoding) and _like_train_ids(values, lookup.encoding))


def _all_ignored(values: Mapping[int, int]) -> bool:
    """Whether too few pixels have a label to judge an encoding, as with sparse labels."""
    return set(values) <= {VOID}


def _painted(palette: np.ndarray, values: Mapping[int, int], lookup: ClassLookup, classes: ClassSet) -> bool:
    """Whether a file's palette has the encoding's colours at the values that occur, two of them at least."""
    encoding = lookup.encoding
    if encoding.preset is None:  # the segmenter's own class ids
        expected = dict(enumerate(classes.palette))
    else:
        known = preset(encoding.preset)
        colors = dict(zip(known.names, known.palette, strict=True))
        expected = {value: colors[str(name)] for value, name in encoding.values.items()}
    shared = [value for value in values if value in expected and value < len(palette)]
    return len(shared) > 1 and all(tuple(palette[value]) == expected[value] for value in shared)


def _as_written_here(palette: np.ndarray | None, classes: ClassSet) -> bool:
    """Whether a file's palette is that of all the segmenter's classes, as in predictions."""
    return palette is not None and np.array_equal(palette[: len(classes)], classes.palette)


def _is_city_ids(encoding: LabelEncoding) -> bool:
    return encoding.values == ENCODINGS["cityscapes-ids"].values


def _like_train_ids(values: Mapping[int, int], encoding: LabelEncoding) -> bool:
    """Whether values declared as Cityscapes label ids can hardly be these: no vegetation, sky, person or car among
    them, and 255, which label ids do not have, or mostly pixels without a class."""
    if not values or any(18 < value < VOID for value in values):
        return False
    unclassed = sum(count for value, count in values.items() if value not in encoding.values)
    return VOID in values or 2 * unclassed > sum(values.values())


def _check(samples: Samples, lookup: ClassLookup, classes: ClassSet, ignore: int | None) -> None:
    """Refuse an encoding that the contents contradict."""
    encoding = lookup.encoding
    values = samples.without(ignore)
    where = samples.paths[0]
    if _is_city_ids(encoding) and _like_train_ids(values, encoding):
        raise BldaError(
            f"{where} is read as Cityscapes label ids but holds train ids (values {_listed(values)}): "
            "give the label encoding cityscapes-train-ids"
        )
    if samples.colors and not encoding.colors:
        raise _colour_picture(samples, classes)
    total = sum(samples.colors.values())
    strange = sum(count for color, count in samples.colors.items() if color not in encoding.colors and any(color))
    if encoding.colors and 2 * strange > total:
        most = max((color for color in samples.colors if color not in encoding.colors), key=samples.colors.__getitem__)
        raise BldaError(
            f"most pixels of {where} and others are of colours that the label encoding {encoding.name} does not have, "
            f"as {_color(most)}: name another encoding, or map the colours under [labels.mapping]"
        )
    if encoding.colors and not encoding.values and samples.values:
        return  # a palette's colours, or grey ones: looked up when read
    met = any(value in lookup.values for value in values) or any(color in lookup.colors for color in samples.colors)
    if not met and not (_all_ignored(values) and not samples.colors):
        raise BldaError(
            f"no pixel of {where} has a class under the label encoding {encoding.name} "
            f"(it holds {_listed(values or samples.colors)}): name another encoding or a mapping"
        )


def _colour_picture(samples: Samples, classes: ClassSet) -> BldaError:
    """The error for a colour map where class ids are expected."""
    distinct = len(set(classes.palette)) == len(classes)
    own = [class_colors(classes)] if distinct else []
    options = [*own, *(encoding for encoding in ENCODINGS.values() if encoding.colors)]
    total = sum(samples.colors.values())
    fitting = [
        option.name
        for option in options
        if 2 * sum(count for color, count in samples.colors.items() if color in option.colors) > total
    ]
    way = f"the label encoding {fitting[0]} reads its colours" if fitting else "or map its colours to classes"
    return BldaError(
        f"{samples.paths[0]} is a colour picture, not a mask of class ids: give the folder of masks; {way}"
    )


def _listed(values: Mapping[int, int] | Mapping[tuple[int, int, int], int]) -> str:
    """The first few values, for a message."""
    shown = sorted(values)[:12]
    return ", ".join(map(str, shown)) + (", ..." if len(values) > len(shown) else "")
