"""Detection of label maps among images."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from blda_cli.data.classes import preset, preset_names
from blda_cli.data.divided_images import LARGE
from blda_cli.data.label_files import LABEL_SUFFIXES, read_label_file
from blda_cli.data.pairing import label_mark, strip_image, strip_label
from blda_cli.data.pillow_images import image_size
from blda_cli.errors import BldaError

_LABEL_FOLDERS = frozenset(
    {"annotation", "annotations", "gt", "gtcoarse", "gtfine", "ground_truth", "groundtruth", "label", "labels", "mask"}
    | {"masks", "segmentationclass"}
)
"""Names of folders that hold labels."""

_MOST_IDS = 64
"""A label map has at most this many different values, none of them larger except 255."""

_PLAIN = 0.8
"""Share of neighbouring pixels that are equal in a label map."""

_LOOKED_INTO = 2
"""Files of each folder and suffix that are read."""


def without_label_maps(source: str | Path, root: Path, paths: Sequence[Path]) -> tuple[list[Path], int]:
    """Leave out label maps that lie beside their images, by their names.

    Args:
        source: the user's argument, for messages.
        root: the folder that was searched.
        paths: the files found there.

    Returns:
        The images, and how many label maps are left out.

    Raises:
        BldaError: a folder of images and one of labels lie side by side.
    """
    keys = {path: path.relative_to(root).with_suffix("").as_posix() for path in paths}
    stems = defaultdict(set)
    for path, key in keys.items():
        stems[strip_image(PurePosixPath(key).name)].add(path)

    def beside(path: Path) -> Path | None:
        """An image that a path is named as the label of."""
        names = {PurePosixPath(keys[path]).name, strip_label(PurePosixPath(keys[path]).name)}
        return next((other for name in names for other in sorted(stems[name] - {path})), None)

    for path in paths:
        folder = next((part for part in path.relative_to(root).parts[:-1] if part.lower() in _LABEL_FOLDERS), None)
        image = None if folder is None else beside(path)
        if image is not None and folder not in image.relative_to(root).parts:
            raise BldaError(
                f"{source} holds images and labels side by side ({image} and {path}): give the folder of the images "
                "alone"
            )
    labels = {
        path
        for path in paths
        if label_mark(path)
        and (image := beside(path)) is not None
        and image.parent == path.parent
        and not label_mark(image)
    }
    suffixes = defaultdict(set)
    for path, key in keys.items():
        suffixes[key].add(path)
    for twins in suffixes.values():  # a.jpg and a.png
        if len(twins) > 1:
            labels |= {path for path in twins if is_label_map(path)}
    return [path for path in paths if path not in labels], len(labels)


def refuse_label_maps(paths: Iterable[Path]) -> None:
    """Refuse pictures where all those that are read are label maps.

    Args:
        paths: the files.

    Raises:
        BldaError: all that are read of a folder and suffix are label maps.
    """
    groups = defaultdict(list)
    for path in paths:
        groups[path.parent, path.suffix.lower()].append(path)
    for (folder, suffix), members in sorted(groups.items())[:8]:
        if suffix not in LABEL_SUFFIXES:
            continue
        some = members[:: max(1, len(members) // _LOOKED_INTO)][:_LOOKED_INTO]
        if all(map(is_label_map, some)):
            raise BldaError(
                f"{folder} holds label maps ({suffix}), not images ({some[0]} has {_few(some[0])} values): give the "
                "folder of the images, or a glob that has them alone"
            )


def is_label_map(path: Path) -> bool:
    """Whether a picture is plainly a label map: ids in plain areas, or a palette of one of the data sets."""
    if path.suffix.lower() not in LABEL_SUFFIXES:
        return False
    try:
        height, width = image_size(path)
        if height * width > LARGE:  # to decode it would take long
            return False
        raw = read_label_file(path)
    except BldaError:
        return False
    if raw.values is None or raw.colors is not None or raw.values.size < 2:
        return False
    values = np.unique(raw.values)
    ids = values[values != 255]
    if len(values) < 2 or len(values) > _MOST_IDS or (len(ids) and ids.max() >= _MOST_IDS):
        return False
    if raw.palette is not None and not _known_palette(raw.palette, ids):
        return False
    rows = raw.values[:, 1:] == raw.values[:, :-1]
    return bool(rows.mean() > _PLAIN) if rows.size else False


def _known_palette(palette: np.ndarray, ids: np.ndarray) -> bool:
    """Whether a palette is that of a data set, or none but greys."""
    shown = palette[ids[ids < len(palette)]]
    if (shown == shown[:, :1]).all():
        return True
    tables = [np.array(preset(name).palette) for name in preset_names()]
    return any(len(table) > ids.max() and (table[ids] == shown).all() for table in tables)


def _few(path: Path) -> int:
    values = read_label_file(path).values
    assert values is not None
    return len(np.unique(values))
