"""Reading an image's label as class ids of the segmenter's classes."""

import csv
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.annotations import LABELMAP, MASKS, annotated_labels, cvat_encoding
from blda_cli.data.classes import ClassSet, plain_name, void_value
from blda_cli.data.detection import choose_encoding
from blda_cli.data.encodings import (
    ENCODINGS,
    VOID,
    ClassLookup,
    LabelEncoding,
    as_array,
    class_ids,
    resolve,
    unknown_names,
)
from blda_cli.data.label_files import (
    RawLabel,
    kept_label_file,
    packed,
    read_label_file,
    read_label_raster,
    refuse_other_size,
)
from blda_cli.data.pairing import pair_labels, strip_image
from blda_cli.data.pillow_images import TRANSPOSED
from blda_cli.data.raster_images import RasterImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError

Orientation = Literal["shown", "stored"]
"""Orientation of the labels of images that EXIF turns: ``[labels] orientation``."""

# The most values shown in a message.
_SHOWN = 8


class LabelReader:
    """Reads the label of an image; made by `label_reader`. May be called from several threads.

    Attributes:
        encoding: name of the label encoding.
        paths: the file that an image's label is read from, by the image's key.
        unmatched: names of the encoding's classes that are none of the segmenter's; their pixels are ignored.
    """

    def __init__(
        self,
        read: Callable[[ImageSource], np.ndarray],
        encoding: str,
        paths: Mapping[str, Path],
        unmatched: tuple[str, ...] = (),
        left_out: Callable[[], int] = lambda: 0,
    ) -> None:
        self.encoding = encoding
        self.paths = paths
        self.unmatched = unmatched
        self._read = read
        self._lock = threading.Lock()
        self._labelled = 0
        self._ignored = 0
        self._left_out = left_out

    def __call__(self, file: ImageSource) -> np.ndarray:
        """Read the label of an image.

        Returns:
            int16 ``[H, W]`` class ids, ``IGNORE_INDEX`` where there is none, or no data; of shape ``[]`` for a
            classifier.

        Raises:
            BldaError: it cannot be read, is of another size than the image, or holds values that are no class.
        """
        labels, valid = self._read(file), file.valid()
        if valid is not None and labels.ndim == 2:
            labels = np.where(valid, labels, np.int16(IGNORE_INDEX))
        ignored = int(np.count_nonzero(labels == IGNORE_INDEX))
        with self._lock:
            self._labelled += labels.size
            self._ignored += ignored
        return labels

    @property
    def ignored_share(self) -> float:
        """Share of the pixels (a classifier's images) read so far that have no class; 0 before any was read."""
        return self._ignored / max(self._labelled, 1)

    @property
    def left_out_share(self) -> float:
        """Share of the pixels (a classifier's images) read so far that hold the value to ignore."""
        return self._left_out() / max(self._labelled, 1)


def label_reader(
    images: Sequence[ImageSource],
    source: str | Path,
    classes: ClassSet,
    *,
    encoding: str | LabelEncoding = "auto",
    groups: Mapping[str, Sequence[str]] | None = None,
    ignore: int | None = None,
    orientation: Orientation | None = None,
) -> LabelReader:
    """Pair images with their labels and determine the label encoding.

    Args:
        images: the images.
        source: a folder of label files (searched through), a glob or a ``.txt`` list of them; an annotation tool's
            export (see `annotations`); or, for a classifier, a ``.csv`` or ``.txt`` file with ``key,class`` on each
            line, the class being an id or a name.
        classes: the segmenter's classes.
        encoding: one of `encodings.encoding_names`, or one made by `encodings.custom_encoding`. ``"auto"`` goes by the
            files' names, then by their contents, and refuses where these are ambiguous.
        groups: for each of the segmenter's classes the names of the classes it groups, where it groups any.
        ignore: a pixel value without a class, besides those the encoding has.
        orientation: of the labels of images that EXIF turns: as the images are shown, or as they are stored. None:
            determined by their sizes, and refused where these are ambiguous.

    Returns:
        The reader.

    Raises:
        BldaError: an image has no label, or the encoding does not fit the files or the classes.
    """
    source = Path(source)
    if _is_table(source):
        return _table_reader(images, source, classes, groups, ignore)
    drawn = annotated_labels(images, source, classes, groups)  # whatever encoding is declared for other labels
    if drawn is not None:
        return LabelReader(drawn, drawn.encoding, drawn.paths, drawn.unmatched)
    if (source / LABELMAP).is_file():
        encoding, unmatched = cvat_encoding(source, classes, groups)
        source = source / MASKS
        lookup, paths = choose_encoding(pair_labels(images, source), encoding, classes, groups, ignore)
        masks = _PictureReader(paths, lookup, classes, ignore, orientation)
        return LabelReader(masks, LABELMAP, paths, unmatched)
    lookup, paths = choose_encoding(pair_labels(images, source), encoding, classes, groups, ignore)
    if lookup.unmatched and lookup.encoding.void is None:  # the user's own mapping: a slip of the pen
        raise unknown_names(lookup, classes)
    reader = _PictureReader(paths, lookup, classes, ignore, orientation)
    return LabelReader(reader, lookup.encoding.name, paths, lookup.unmatched, lambda: reader.left_out)


class _PictureReader:
    """Reads label pictures and looks up their values or colours.

    Attributes:
        left_out: how many pixels held the value to ignore.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        lookup: ClassLookup,
        classes: ClassSet,
        ignore: int | None,
        orientation: Orientation | None = None,
    ) -> None:
        self.orientation = orientation
        self.left_out = 0
        self._lock = threading.Lock()
        self.paths = paths
        self.lookup = lookup
        self.classes = classes
        self.ignore = ignore
        values = {value: index for value, index in lookup.values.items() if value != ignore}
        self.by_value = as_array(values, max([VOID, *values]) + 1)
        colors = sorted((int(packed(np.array(color))), index) for color, index in lookup.colors.items())
        self.codes = np.array([code for code, _ in colors], dtype=np.int32)
        self.by_code = np.array([index for _, index in colors], dtype=self.by_value.dtype)

    def __call__(self, file: ImageSource) -> np.ndarray:
        path = self.paths[file.key]
        if isinstance(file, RasterImage) and file.is_map():
            raw = read_label_raster(path, file)
        else:
            raw = kept_label_file(path) if file.is_part else read_label_file(path)
            raw = self._upright(raw, path, file)
            refuse_other_size(path, raw.size, file)
            raw = raw.part(file.place()) if file.is_part else raw
        encoding = self.lookup.encoding
        if raw.colors is not None and encoding.colors and not self._grey_ids(raw):
            return self._of_colors(raw.colors)
        if raw.values is not None and encoding.values:
            if self.ignore is not None:
                with self._lock:
                    self.left_out += int(np.count_nonzero(raw.values == self.ignore))
            return self._of_values(raw.values, path)
        if raw.values is not None and raw.palette is not None:
            return self._of_colors(raw.palette[np.minimum(raw.values, len(raw.palette) - 1)])
        raise self._wrong_kind(raw, path)

    def _grey_ids(self, raw: RawLabel) -> bool:
        """Whether a grey picture of three channels holds ids, where the encoding has both values and colours."""
        encoding = self.lookup.encoding
        if raw.values is None or not encoding.values:
            return False
        greys = [int(value) for value in np.unique(raw.values)]
        if all((grey, grey, grey) in encoding.colors for grey in greys):
            return False
        return all(value in (VOID, self.ignore) or self.lookup.knows(value) for value in greys)

    def _upright(self, raw: RawLabel, path: Path, file: ImageSource) -> RawLabel:
        """A label in its image's shown orientation; where EXIF turns the image, the label may be as the image is
        stored."""
        number = file.orientation()
        if number == 1 or raw.turned:
            return raw
        lies = self.orientation
        whole = file.whole_size()
        shown, stored = whole, whole[::-1] if number in TRANSPOSED else whole
        if lies is None and shown != stored and raw.size in (shown, stored):
            lies = "shown" if raw.size == shown else "stored"
        if lies is None and raw.size == shown:
            raise BldaError(
                f"EXIF turns {file.location} (orientation {number}), and nothing says whether its label {path} lies as "
                'the image is shown or as it is stored: give orientation = "shown" or "stored" under [labels] in the '
                "model's TOML"
            )
        return raw.as_shown(number) if lies == "stored" else raw

    def _of_values(self, values: np.ndarray, path: Path) -> np.ndarray:
        top = int(values.max(initial=0))
        # counting is many times faster than sorting, but its table must stay small
        present = np.flatnonzero(np.bincount(values.ravel())) if top < 2**16 else np.unique(values)
        strange = [
            value for value in map(int, present) if value not in (VOID, self.ignore) and not self.lookup.knows(value)
        ]
        if strange:
            raise self._strange(strange, path)
        if top >= len(self.by_value):
            known = values < len(self.by_value)
            return np.where(known, self.by_value[np.where(known, values, 0)], np.int16(IGNORE_INDEX))
        labels: np.ndarray = self.by_value[values]
        return labels

    def _of_colors(self, colors: np.ndarray) -> np.ndarray:
        codes = packed(colors)
        place = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        labels: np.ndarray = self.by_code[place]
        labels[self.codes[place] != codes] = IGNORE_INDEX
        return labels

    def _wrong_kind(self, raw: RawLabel, path: Path) -> BldaError:
        name = self.lookup.encoding.name
        if raw.values is None:
            return BldaError(
                f"{path} is a colour picture, not a mask of class ids as the label encoding {name} reads: "
                "give the folder of masks, or an encoding of colours"
            )
        return BldaError(
            f"{path} holds single values, not colours as the label encoding {name} reads: give the colour pictures, "
            "or an encoding of values"
        )

    def _strange(self, values: Sequence[int], path: Path) -> BldaError:
        encoding = self.lookup.encoding
        shown = ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
        known = sorted(encoding.values)
        city = ENCODINGS["cityscapes-ids"].values
        if len(known) == len(city) and known[-1] == 18 and set(values) <= set(range(35)):
            hint = "these look like Cityscapes label ids: give the label encoding cityscapes-ids"
        elif encoding.name == "ids" and values == [len(self.classes)] == [150]:
            hint = "ADE20K counts from 1: give the label encoding ade20k"
        else:
            hint = (
                f"give another label encoding, or say what the values mean under [labels.mapping] in the model's TOML; "
                f"--ignore-label {values[0]} leaves one out"
            )
        return BldaError(
            f"{path} holds {'the value' if len(values) == 1 else 'the values'} {shown}, which the label encoding "
            f"{encoding.name} ({known[0]}..{known[-1]}) does not have; {hint}"
        )


def _is_table(source: Path) -> bool:
    if not source.is_file() or source.suffix.lower() not in (".csv", ".txt"):
        return False
    if source.suffix.lower() == ".csv":
        return True
    return all("," in row for row in _rows(source))


def _rows(source: Path) -> list[str]:
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BldaError(f"{source} cannot be read as text: {error}") from error
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _table_reader(
    images: Sequence[ImageSource],
    source: Path,
    classes: ClassSet,
    groups: Mapping[str, Sequence[str]] | None,
    ignore: int | None,
) -> LabelReader:
    """Labels of whole images from a file of ``key,class``."""
    own = class_ids(classes).values
    members = [member for names in (groups or {}).values() for member in names]
    names = dict(enumerate([*classes.names, *members]))
    by_name = {
        plain_name(names[place]): index
        for place, index in resolve(LabelEncoding(source.name, names, void=None), classes, groups).values.items()
    }
    table: dict[str, str] = {}
    for key, said in (map(str.strip, row) for row in csv.reader(_rows(source)) if len(row) == 2):
        if table.setdefault(key, said) != said:
            raise BldaError(f"{source}: {key} is given twice, as {table[key]} and as {said}: leave one of them")

    left_out: set[str] = set()

    def find(image: ImageSource) -> int:
        names = (*image.aliases, strip_image(image.key))
        said = next((table[name] for name in names if name in table), None)
        if said is None:
            raise BldaError(f"no label found for {image.location} in {source}: add a line {image.key},CLASS")
        number = int(said) if re.fullmatch("[0-9]{1,9}", said) else None
        if number is not None and number == ignore:
            left_out.add(image.key)
        if number is not None and number in (void_value(own), ignore):
            return IGNORE_INDEX
        index = number if number in own else by_name.get(plain_name(said))
        if index is None:
            raise BldaError(f"{source}: {said!r}, the class of {image.key}, is none of the {len(classes)} classes")
        return index

    found = {image.key: np.array(find(image), dtype=np.int16) for image in images}

    paths = dict.fromkeys(found, source)
    return LabelReader(lambda file: found[file.key], "table", paths, left_out=lambda: len(left_out))
