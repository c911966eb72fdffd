"""Pairing of images with their label files, by name."""

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from blda_cli.data.encodings import ENCODINGS, NO_LABEL_SUFFIXES
from blda_cli.data.images import find_files
from blda_cli.data.label_files import LABEL_SUFFIXES
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError

# What follows them (Foggy and Rainy Cityscapes) is ignored too.
_IMAGE_MARKS = ("_leftImg8bit", "_rgb_anon", "_rgb_ref_anon")

_PLAIN_LABEL_SUFFIXES = ("_labels", "_label", "_masks", "_mask", "_gt", "_seg")

# Longest first, so that _gtFine_labelIds is not taken for _labelIds.
_LABEL_MARKS = sorted(
    {
        *(suffix for encoding in ENCODINGS.values() for suffix in encoding.suffixes),
        *NO_LABEL_SUFFIXES,
        *_PLAIN_LABEL_SUFFIXES,
    },
    key=len,
    reverse=True,
)


def pair_labels(images: Sequence[ImageSource], source: str | Path) -> dict[str, list[Path]]:
    """Find the label files of images by relative path, ignoring the data sets' usual suffixes.

    A label at the image's relative path is preferred; else the file name decides, and among files of one name
    the folders, from the innermost out.

    Args:
        images: the images.
        source: a folder of label files (searched through), a glob, or a ``.txt`` list.

    Returns:
        For each image's key its label files: more than one where a data set has several kinds of labels.

    Raises:
        BldaError: an image has none, several fit equally well, or two images share one.
    """
    root, paths = find_files(source, LABEL_SUFFIXES, "labels")
    own = {image.path.absolute() for image in images}
    by_key: dict[str, list[Path]] = defaultdict(list)
    by_name: dict[str, list[tuple[tuple[str, ...], Path]]] = defaultdict(list)
    for path in paths:
        if path.absolute() in own:  # images and labels in one folder
            continue
        key = _normal(path.relative_to(root).with_suffix("").as_posix())
        folders = path.absolute().parent.parts
        for form in {key, strip_label(key)}:
            by_key[form].append(path)
            by_name[PurePosixPath(form).name].append((folders, path))

    paired: dict[str, list[Path]] = {}
    missing = []
    for image in images:
        forms = (_normal(image.labelled_as), strip_image(_normal(image.labelled_as)))
        found = next((by_key[form] for form in forms if form in by_key), None) or next(
            (_nearest(image, by_name[name]) for name in map(_name, forms) if name in by_name), None
        )
        if found:
            paired[image.key] = found
        else:
            missing.append(image)
    if missing:
        others = f" ({len(missing)} of {len(images)} images have none)" if len(images) > 1 else ""
        raise BldaError(
            f"no label found for {missing[0].location} in {source}{others}: labels go by the images' relative paths, "
            f"e.g. {_name(strip_image(missing[0].key))}.png"
        )
    _refuse_shared(paired, images)
    return paired


def _normal(key: str) -> str:
    """A key in Unicode normal form C, as some file systems and archives store accents separately."""
    return unicodedata.normalize("NFC", key)


def label_mark(path: Path) -> str:
    """The usual label suffix that a file's name ends in; empty where there is none."""
    return next((mark for mark in _LABEL_MARKS if path.stem.endswith(mark) and path.stem != mark), "")


def strip_image(key: str) -> str:
    """An image's key without the data set's suffix for images."""
    name = _name(key)
    for mark in _IMAGE_MARKS:
        before, found, _ = name.rpartition(mark)
        if found and before:
            return key.removesuffix(name) + before
    return key


def strip_label(key: str) -> str:
    """A label's key without the data set's suffix for labels."""
    name = _name(key)
    mark = next((mark for mark in _LABEL_MARKS if name.endswith(mark) and name != mark), "")
    return key.removesuffix(mark)


def _name(key: str) -> str:
    return PurePosixPath(key).name


def _nearest(image: ImageSource, found: Sequence[tuple[tuple[str, ...], Path]]) -> list[Path]:
    """The files of one name whose folders agree with the image's for longest, from the innermost out."""
    own = image.path.absolute().parent.parts

    def agreement(folders: tuple[str, ...]) -> int:
        count = 0
        for mine, theirs in zip(reversed(own), reversed(folders), strict=False):
            if mine != theirs:
                break
            count += 1
        return count

    best = max(agreement(folders) for folders, _ in found)
    chosen = [path for folders, path in found if agreement(folders) == best]
    if len({path.parent for path in chosen}) > 1:
        raise BldaError(
            f"{image.location} could have the label {chosen[0]} or {chosen[1]}: give the folder of labels that "
            "has the images' sub-folders"
        )
    return chosen


def _refuse_shared(paired: Mapping[str, Sequence[Path]], images: Sequence[ImageSource]) -> None:
    owner: dict[Path, ImageSource] = {}
    for image in images:
        for path in paired[image.key]:
            first = owner.setdefault(path, image)
            if first.path != image.path and strip_image(first.labelled_as) != strip_image(image.labelled_as):
                raise BldaError(
                    f"{first.location} and {image.location} would have the same label {path}: give the folder of "
                    "labels that has the images' sub-folders"
                )
