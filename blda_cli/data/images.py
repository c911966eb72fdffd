"""Finding images: the kinds of image there are, and the sources in a folder, a glob or a list."""

import glob
import importlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from itertools import takewhile
from math import floor
from pathlib import Path

from blda_cli.data.pixels import AS_SEEN, PixelFormat
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import real

_PILLOW = "pillow_images:PillowImage"

KINDS = ["array_images:ArrayImage", "raster_images:RasterImage", "video_frames:VideoFrame", _PILLOW]
"""The kinds of image, as ``"module:class"`` in this package. A file is of the first kind that has its suffix; one with
another suffix that is named outright or in a list is left to Pillow."""


MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"})
"""Suffixes of masks; not JPEG, which changes values."""


def kinds() -> list[type[ImageSource]]:
    """The classes that `KINDS` names."""
    return [_named(kind) for kind in KINDS]


def _named(kind: str) -> type[ImageSource]:
    module, name = kind.split(":")
    found: type[ImageSource] = getattr(importlib.import_module(f"blda_cli.data.{module}"), name)
    return found


def image_suffixes() -> frozenset[str]:
    """The lower-case suffixes of all kinds of image."""
    return frozenset().union(*(kind.suffixes for kind in kinds()))


def kind_of(path: Path) -> type[ImageSource]:
    """The kind of a file, by its suffix."""
    suffix = path.suffix.lower()
    return next((kind for kind in kinds() if suffix in kind.suffixes), _named(_PILLOW))


def image_at(location: str, key: str, pixels: PixelFormat = AS_SEEN) -> ImageSource:
    """The image that a record names.

    Args:
        location: from `ImageSource.location`.
        key: its key.
        pixels: which of its samples are read.
    """
    path, _, part = location.rpartition("#")
    if Path(path).suffix.lower() in image_suffixes() and Path(location).suffix.lower() not in image_suffixes():
        return kind_of(Path(path))(Path(path), key, part, pixels)
    return kind_of(Path(location))(Path(location), key, pixels=pixels)


def find_images(source: str | Path, pixels: PixelFormat = AS_SEEN) -> list[ImageSource]:
    """Find the images of a folder, a glob or a list.

    Args:
        source: a folder (searched through), one image, a glob (``**`` goes through folders), or a ``.txt`` file
            with one path a line, relative to the list.
        pixels: which of their samples are read; see `ImageSource.pixels`.

    Returns:
        The images, sorted by key.

    Raises:
        BldaError: there is none, a listed one does not exist, or two differ only in their suffix.
    """
    from blda_cli.data.mistaken import refuse_label_maps, without_label_maps  # which pairs files as this finds them

    root, paths = find_files(source, image_suffixes(), "images")
    if len(paths) > 1:
        paths, _ = without_label_maps(source, root, paths)
        refuse_label_maps(paths)
    alone = all(kind_of(path).only_alone for path in paths)
    found: dict[str, ImageSource] = {}
    named: dict[str, ImageSource] = {}  # by the names of whole images, which predictions and labels of parts have
    for path in paths:
        kind = kind_of(path)
        if kind.only_alone and not alone:
            continue
        for image in kind.found_in(path, path.relative_to(root).with_suffix("").as_posix(), pixels):
            other = found.get(image.key) or named.setdefault(image.labelled_as, image)
            if other.path != path:
                raise BldaError(
                    f"{other.location} and {image.location} would both be called {image.labelled_as}: rename one, "
                    "or choose one kind with a glob"
                )
            found[image.key] = image
    return [found[key] for key in sorted(found)]


def every(images: Sequence[ImageSource], step: int) -> list[ImageSource]:
    """Every ``step``-th image of each folder or video, from the first.

    Args:
        images: sorted by key.
        step: at least 1.
    """
    places: dict[str, int] = {}
    chosen = []
    for image in images:
        folder = image.key.rpartition("/")[0]
        places[folder] = places.get(folder, -1) + 1
        if places[folder] % step == 0:
            chosen.append(image)
    return chosen


def at_rate(images: Sequence[ImageSource], rate: float) -> list[ImageSource]:
    """About so many frames of each second of every video, from its first.

    Args:
        images: frames, sorted by key.
        rate: frames a second; all of a video that has fewer.

    Raises:
        BldaError: an image is no frame of a video.
    """
    due: dict[Path, float] = {}
    chosen = []
    for image in images:
        seconds = image.seconds()
        if seconds is None:
            raise BldaError(
                f"--fps is for videos, and {image.location} is no frame of one: --every N takes every N-th image"
            )
        wanted = due.get(image.path, 0.0)
        if seconds > wanted - 1e-6:  # times are rounded
            chosen.append(image)
            due[image.path] = wanted + (floor((seconds - wanted) * rate + 1e-6) + 1) / rate
    return chosen


def masked(images: Sequence[ImageSource], folder: str | Path) -> list[ImageSource]:
    """The images with masks of where they hold data.

    Args:
        images: the images.
        folder: of masks, named as the images are; or a glob or a list of masks.

    Raises:
        BldaError: an image has none.
    """
    root, paths = find_files(folder, MASK_SUFFIXES, "masks")
    by_key = {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}
    by_name = {path.stem: path for path in paths}
    found = []
    for image in images:
        key = image.labelled_as
        path = by_key.get(key) or by_name.get(key.rpartition("/")[2])
        if path is None:
            raise BldaError(f"no mask found for {image.location} in {folder}: {key}.png is looked for")
        found.append(replace(image, mask=path))
    return found


_SAMPLED = 5
"""Images whose depth is checked."""

_DEPTHS = (8, 10, 12, 14)
"""Bits that sensors give, in files of 16."""


def unsaid_bits(images: Sequence[ImageSource]) -> int | None:
    """How many bits the values of images use, where their files have more and the description does not state it.

    Args:
        images: a few of them, spread evenly, are checked.

    Returns:
        8, 10, 12 or 14 of 16; None where they use all, have 8, or the model's description gives their range.
    """
    if not images or images[0].pixels.range is not None:
        return None
    used = 0
    for image in images[:: max(1, len(images) // _SAMPLED)][:_SAMPLED]:
        try:
            depth = image.depth()
        except BldaError:  # reading will say it
            continue
        if depth is None:
            return None
        used = max(used, depth[1])
    return next((bits for bits in _DEPTHS if 0 < used <= bits), None)


def left_out(source: str | Path, images: Sequence[ImageSource]) -> str | None:
    """The other files of a folder of images, for a remark.

    Args:
        source: the argument of `find_images`.
        images: the images it found.

    Returns:
        The number of files by suffix; None where there are none, or no folder was searched.
    """
    if not Path(source).is_dir():
        return None
    taken = {image.path for image in images}
    rest = Counter(path.suffix.lower() or "without suffix" for path in _walk(Path(source)) if path not in taken)
    if not rest:
        return None
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in rest.most_common(6))
    total = sum(rest.values())
    return f"{total} file{'' if total == 1 else 's'} in {source} left out, as no images: {kinds}"


def find_files(source: str | Path, suffixes: Iterable[str], what: str) -> tuple[Path, list[Path]]:
    """Find the files with one of some suffixes in a folder, a glob or a list.

    Args:
        source: as for `find_images`.
        suffixes: lower-case suffixes to search for; compared without regard to case. A file named outright or in a list
            is taken whatever its suffix.
        what: name of the files searched for, for messages.

    Returns:
        The folder the files' names are relative to, and their paths, sorted.

    Raises:
        BldaError: nothing was found, or a listed file does not exist.
    """
    source = Path(source)
    suffixes = frozenset(suffixes)
    if source.is_dir():
        root, paths = source, [path for path in _walk(source) if path.suffix.lower() in suffixes]
    elif source.is_file() and source.suffix.lower() == ".txt":
        paths = _listed(source)
        root = Path(os.path.commonpath([path.parent for path in paths])) if paths else source.parent
    elif source.is_file():
        root, paths = source.parent, [source]
    elif glob.has_magic(str(source)):
        parts = source.parts
        plain = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:plain])
        try:
            matches = list(root.glob(str(Path(*parts[plain:]))))
        except ValueError as error:
            raise BldaError(f"{source}: ** stands for whole folders, as in {root}/**/*.png ({error})") from error
        shown = (path for path in matches if not any(part.startswith(".") for part in path.relative_to(root).parts))
        paths = [path for path in shown if path.suffix.lower() in suffixes and path.is_file()]
    else:
        raise BldaError(f"{source} does not exist: give a folder of {what}, a glob or a .txt list")
    if not paths:
        raise BldaError(f"{source} holds no {what} ({', '.join(sorted(suffixes))})")
    return root, sorted(set(paths))


def refuse_among(output: Path, source: str | Path, files: Iterable[Path]) -> None:
    """Refuse an output folder whose pictures the next search for images would find.

    Beside a single file that is named outright, e.g. a video, outputs are safe.

    Args:
        output: the output folder.
        source: the argument of `find_images` or `find_files`.
        files: the files that were found.

    Raises:
        BldaError: the folder lies within one of the images' folders, or where ``source`` searches for images.
    """
    if Path(source).is_file() and Path(source).suffix.lower() != ".txt":
        return
    place = real(output)
    folders = {real(file.parent) for file in files}
    within = any(place.is_relative_to(folder) for folder in folders)
    if not within and glob.has_magic(str(source)) and not Path(source).exists():
        parts = Path(os.path.normpath(Path(source).absolute())).parts[:-1]
        pairs = zip(parts, place.parts, strict=False)
        agreeing = list(takewhile(lambda pair: "**" not in pair[0] and fnmatch(pair[1], pair[0]), pairs))
        within = len(agreeing) == len(parts) or "**" in parts[len(agreeing)]
    elif not within and Path(source).is_dir():
        within = place.is_relative_to(real(Path(source)))
    if within:
        raise BldaError(f"{output} lies in {source}, where its pictures would be taken for images: give another folder")


def _walk(folder: Path) -> Iterator[Path]:
    """All files under a folder, through links too, hidden ones left out."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back up would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _listed(list_file: Path) -> list[Path]:
    paths = []
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BldaError(f"{list_file} cannot be read as a list of paths: {error}") from error
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        # A remark, unless a file is called so.
        if not name or (name.startswith("#") and not (list_file.absolute().parent / name).is_file()):
            continue
        # normpath, because a ".." left in would end up in the keys
        path = Path(os.path.normpath(list_file.absolute().parent / name))
        if not path.is_file():
            raise BldaError(f"{list_file}, line {number}: {path} does not exist")
        paths.append(path)
    return paths
