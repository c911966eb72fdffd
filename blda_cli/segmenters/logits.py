"""Kind ``logits``: ready-made logits on disk, from any framework."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blda_cli.data.classes import ClassSet, class_set, numbered_classes
from blda_cli.data.images import IMAGE_SUFFIXES, ImageFile, image_size
from blda_cli.errors import BldaError
from blda_cli.files import check_regular
from blda_cli.segmenters.base import InferenceOptions, Segmenter
from blda_cli.segmenters.grouping import Grouping, resolve_classes
from blda_cli.segmenters.outputs import (
    check_meaning,
    check_scores,
    fit_scores,
    log_probabilities,
    padded_size,
)
from blda_cli.segmenters.spec import SegmenterSpec

SUFFIXES = (".npy", ".npz")

_FIRST_ARRAYS = 3

_MOST_PER_PIXEL = 64
"""Scores per class that an archive may declare for a pixel of its image."""


@dataclass(kw_only=True)
class StoredSegmenter(Segmenter):
    """A segmenter that reads its logits: ``KEY.npy`` or ``KEY.npz`` for the image ``KEY``.

    Attributes:
        paths: where each key's logits are.
        outputs: how many channels are used: the first ones.
        cut: whether there may be more.
        probabilities: whether the arrays hold probabilities.
        grouping: makes the classes' logits from those of the channels; None where they are the same.
    """

    paths: dict[str, Path]
    outputs: int
    cut: bool
    probabilities: bool
    grouping: Grouping | None

    def read(self, file: ImageFile) -> np.ndarray:
        """See `Segmenter.read`: float32 ``[C, H, W]`` or ``[C]``; a map is resized to its image, if the file is one."""
        path = self.origin(file)
        size = image_size(file.path) if file.path.suffix.lower() in IMAGE_SUFFIXES else None
        scores = torch.from_numpy(read_array(path, size and _MOST_PER_PIXEL * size[0] * size[1]))[None]
        try:
            check_scores(scores, 1, self.outputs, self.cut)
            scores = scores[:, : self.outputs].float()
            check_meaning(scores, self.probabilities)
        except BldaError as error:
            raise BldaError(f"{path}: {error}") from error
        if scores.ndim == 4 and size is not None:
            scores = self._fit(scores, size)
        return np.asarray(scores[0].numpy())

    def logits(self, arrays: Tensor, options: InferenceOptions) -> Tensor:  # noqa: ARG002  # used as they are
        """See `Segmenter.logits`."""
        logits = log_probabilities(arrays) if self.probabilities else arrays
        return logits if self.grouping is None else self.grouping(logits)

    def check(self, files: Sequence[ImageFile], options: InferenceOptions) -> None:
        """See `Segmenter.check`."""
        if options.slide is not None or options.flip or options.scales != (1.0,):
            raise BldaError("--slide, --scales and --flip need a network; ready-made logits are used as they are")
        users: dict[Path, ImageFile] = {}
        for file in files:
            path = self._find(file)
            if path is not None and path in users:
                raise BldaError(
                    f"{path} would be the logits of {users[path].path} and of {file.path}: put them into folders as "
                    "the images are"
                )
            if path is not None:
                users[path] = file

    def origin(self, file: ImageFile) -> Path:
        """See `Segmenter.origin`: the array."""
        path = self._find(file)
        if path is None:
            raise BldaError(f"there are no logits for {file.path}: {file.key}.npy or .npz is looked for")
        return path

    def _find(self, file: ImageFile) -> Path | None:
        """The array with the image's key, or with its name alone: many programs write all into one folder."""
        return self.paths.get(file.key) or self.paths.get(file.path.stem)

    def _fit(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        covered = padded_size((scores.shape[2], scores.shape[3]), size)
        if covered != size:
            note = f"the logits still hold padding to {covered[0]}x{covered[1]}; it is cut off below and on the right"
            if note not in self.notes:
                self.notes.append(note)
        return fit_scores(scores, covered, size, size)


def load(spec: SegmenterSpec, device: torch.device) -> StoredSegmenter:
    """Find the arrays and look at one of them.

    The identity holds no digest of the arrays: statistics from one folder are meant for the logits of other images by
    the same model, and nothing in the files says which model that is.

    Args:
        spec: a description with ``path``, the folder.
        device: where the logits are to be.

    Returns:
        The segmenter.

    Raises:
        BldaError: there are none, or they do not fit the classes.
    """
    assert spec.segmenter.path is not None
    files = find_logits(spec.segmenter.path)
    channels, notes = spec.segmenter.channels, []
    if spec.classes.names is not None:
        own: ClassSet = class_set(spec.classes.names)
    else:
        own = numbered_classes(channels or _count_channels(files))
        notes.append("the classes have no names: they are numbered; [classes] names gives them names")
    if channels is not None and channels != len(own):
        raise BldaError(f"channels = {channels}, but {len(own)} classes are named; make them agree")
    classes, grouping = resolve_classes(spec.classes, own)
    return StoredSegmenter(
        classes=classes,
        identity={
            "kind": "logits",
            "output": spec.preprocessing.output,
            "classes": list(own.names),
            "groups": {name: list(members) for name, members in spec.classes.groups.items()},
        },
        device=device,
        notes=notes,
        paths={file.key: file.path for file in files},
        outputs=len(own),
        cut=channels is not None,
        probabilities=spec.preprocessing.output == "probabilities",
        grouping=grouping,
    )


def _count_channels(files: Sequence[ImageFile]) -> int:
    """The number of channels that most of the first arrays have, so that an odd one is the one to be named.

    Raises:
        BldaError: none can be read.
    """
    counts: list[int] = []
    failed: BldaError | None = None
    for file in files:
        try:
            counts.append(read_array(file.path).shape[0])
        except BldaError as error:
            failed = failed or error
        if len(counts) == _FIRST_ARRAYS:
            break
    if not counts:
        assert failed is not None  # there are files
        raise failed
    return Counter(counts).most_common(1)[0][0]


def find_logits(folder: str | Path) -> list[ImageFile]:
    """The arrays of a folder in place of images, so that ``--images`` may be the folder of logits itself.

    Args:
        folder: searched through for ``.npy`` and ``.npz`` files.

    Returns:
        The files, sorted by key.

    Raises:
        BldaError: there is none, or two have the same key.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BldaError(f"{folder}: no such folder of logits")
    found: dict[str, ImageFile] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in found:
                raise BldaError(f"{found[key].path} and {path} are logits of the same image; remove one")
            found[key] = ImageFile(path, key)
    if not found:
        raise BldaError(f"{folder} holds no logits (.npy or .npz files)")
    return [found[key] for key in sorted(found)]


def read_array(path: Path, most: int | None = None) -> np.ndarray:
    """Read one image's scores, without unpickling.

    Args:
        path: ``.npy``, or ``.npz`` with one array or one called ``logits``.
        most: scores of a class; an archive that declares more is refused before it is unpacked. None: any number.

    Returns:
        ``[C, H, W]`` or ``[C]``, float32 (int64 where it holds integers), a leading axis of length 1 dropped.

    Raises:
        BldaError: it cannot be read, is pickled, holds no numbers, or has another number of dimensions.
    """
    try:
        check_regular(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                if len(archive.files) != 1 and "logits" not in archive.files:
                    raise BldaError(f"{path} holds {', '.join(archive.files) or 'no array'}: call the one meant logits")
                name = "logits" if "logits" in archive.files else archive.files[0]
                _check_declared(archive, name, most)
                array = archive[name]
        else:
            array = loaded
    except BldaError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own
        if "allow_pickle" in str(error):
            raise BldaError(
                f"{path} is pickled, which could run code when read: save a plain array of numbers"
            ) from error
        raise BldaError(f"{path}: cannot be read as an array: {error}") from error
    if array.ndim in (2, 4) and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (1, 3):
        raise BldaError(f"{path} is of shape {list(array.shape)}; [C, H, W] is needed, or [C] of a classifier")
    if array.dtype.kind not in "fiub":
        raise BldaError(f"{path} holds {array.dtype} values; floating-point numbers are needed")
    # In this machine's byte order, and a type that PyTorch has; integers are refused later, as class ids.
    with np.errstate(over="ignore"):  # infinities are refused later, too
        return array.astype(np.float32 if array.dtype.kind == "f" else np.int64, copy=False)


def _check_declared(archive: np.lib.npyio.NpzFile, name: str, most: int | None) -> None:
    """Refuse an array that is far larger than its image: what is packed well may take all memory.

    Raises:
        ValueError: it is; or no plain array.
    """
    assert archive.zip is not None
    with archive.zip.open(f"{name}.npy") as stream:
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(stream)]
        shape = read(stream)[0]
    if most is not None and math.prod(shape[-2:]) > most:
        raise ValueError(f"it declares shape {list(shape)}, far larger than the image")
