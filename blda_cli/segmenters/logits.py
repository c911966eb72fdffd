"""Kind ``logits``: stored logits, from any framework."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from blda_cli.data.classes import ClassSet, class_set, numbered_classes
from blda_cli.data.logit_arrays import LogitArray, find_logits, read_array
from blda_cli.data.source import ImageSource, refuse_parts
from blda_cli.errors import BldaError
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.grouping import Grouping, check_channels, resolve_classes, with_background
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.outputs import (
    OutputMeaning,
    channels_first,
    check_meaning,
    check_scores,
    fit_scores,
    plain_scores,
)
from blda_cli.segmenters.placement import covered
from blda_cli.segmenters.spec import SegmenterSpec

_FIRST_ARRAYS = 3

_MOST_PER_PIXEL = 64
"""Scores per class that an archive may declare for a pixel of its image."""


@dataclass(kw_only=True)
class StoredSegmenter(Segmenter):
    """A segmenter that reads its logits: ``KEY.npy`` or ``KEY.npz`` for the image ``KEY``.

    Attributes:
        arrays: each key's logits.
        meaning: what their channels stand for.
        grouping: makes the classes' logits from those of the channels; None where they are the same.
    """

    arrays: dict[str, LogitArray]
    meaning: OutputMeaning
    grouping: Grouping | None

    def read(self, file: ImageSource) -> np.ndarray:
        """See `Segmenter.read`: float32 ``[C, H, W]`` or ``[C]``; a map is resized to its image, if there is one."""
        array = self.origin(file)
        size = None if isinstance(file, LogitArray) else file.size()
        scores = torch.from_numpy(read_array(array.path, size and _MOST_PER_PIXEL * size[0] * size[1]))[None]
        try:
            scores = plain_scores(scores, self.meaning.quantised)
            scores, turned = channels_first(scores, self.meaning, size)
            if turned:
                self.note("the arrays are [H, W, C]: they are turned round to [C, H, W]")
            check_scores(scores, 1, self.meaning)
            remark = check_meaning(scores, self.meaning)
            if remark is not None:
                self.note(remark)
            scores = self.meaning.used(scores).float()
            if scores.ndim == 4 and size is not None:
                scores = self._fit(scores, size)
        except BldaError as error:
            raise BldaError(f"{array.path}: {error}") from error
        return np.asarray(scores[0].numpy())

    def logits(self, arrays: Tensor, *_: object) -> Tensor:  # used as they are
        """See `Segmenter.logits`."""
        logits = self.meaning.logits(arrays)
        return logits if self.grouping is None else self.grouping(logits)

    def check(self, files: Sequence[ImageSource], options: InferenceOptions) -> None:
        """See `Segmenter.check`."""
        if options.slide is not None or options.flip or options.scales != (1.0,):
            raise BldaError("--slide, --scales and --flip need a network; ready-made logits are used as they are")
        refuse_parts(files, "--model logits:DIR", "give the network, which runs in parts, too")
        users: dict[LogitArray, ImageSource] = {}
        for file in files:
            array = self._find(file)
            if array is None:
                continue
            other = users.setdefault(array, file)
            if other is not file:
                raise BldaError(
                    f"{array.path} would be the logits of {other.location} and of {file.location}: put them into "
                    "folders as the images are"
                )

    def origin(self, file: ImageSource) -> ImageSource:
        """See `Segmenter.origin`: the array."""
        array = self._find(file)
        if array is None:
            raise BldaError(f"there are no logits for {file.location}: {file.key}.npy or .npz is looked for")
        return array

    def _find(self, file: ImageSource) -> LogitArray | None:
        """The array with the image's key, or with its name alone: many programs write all into one folder."""
        return self.arrays.get(file.key) or self.arrays.get(PurePosixPath(file.key).name)

    def _fit(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        whole = covered((scores.shape[2], scores.shape[3]), size, None)
        if whole != size:
            self.note(f"the logits still hold padding to {whole[0]}x{whole[1]}; it is cut off below and on the right")
        return fit_scores(scores, whole, size, size)


def load(spec: SegmenterSpec, device: torch.device) -> StoredSegmenter:
    """Find the arrays and read one of them to count its channels.

    The identity holds no digest of the arrays: statistics from one folder are meant for the logits of other images by
    the same model, and nothing in the files says which model that is.

    Args:
        spec: a description with ``path``, the folder.
        device: where to put the logits.

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
        own = numbered_classes(channels or max(2, _count_channels(files)))
        notes.append("the classes have no names: they are numbered; [classes] names gives them names")
    own, background = with_background(own, spec.classes.background)
    preprocessing = spec.preprocessing
    meaning = OutputMeaning(
        len(own),
        preprocessing.output or "logits",
        background,
        cut=channels is not None,
        quantised=preprocessing.quantised,
        declared=preprocessing.output is not None,
    )
    check_channels(spec, meaning)
    classes, grouping = resolve_classes(spec.classes, own)
    return StoredSegmenter(
        classes=classes,
        identity={
            "kind": "logits",
            "output": meaning.output,
            "classes": list(own.names),
            "groups": {name: list(members) for name, members in spec.classes.groups.items()},
        },
        device=device,
        notes=notes,
        arrays={file.key: file for file in files},
        meaning=meaning,
        grouping=grouping,
    )


def _count_channels(files: Sequence[LogitArray]) -> int:
    """The number of channels that most of the first arrays have, so that an odd one is the one to be named.

    Raises:
        BldaError: none can be read.
    """
    counts: list[int] = []
    failed: BldaError | None = None
    for file in files:
        try:
            shape = read_array(file.path).shape
            last = len(shape) == 3 and shape[2] < min(shape[:2])  # channels last: more pixels than classes
            counts.append(shape[2] if last else shape[0])
        except BldaError as error:
            failed = failed or error
        if len(counts) == _FIRST_ARRAYS:
            break
    if not counts:
        assert failed is not None  # there are files
        raise failed
    return Counter(counts).most_common(1)[0][0]
