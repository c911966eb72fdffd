"""Verification of an export: loaded anew in its own runtime, it predicts what ``blda align`` predicts."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blda_cli.core.corrections import Correction
from blda_cli.core.kernels import argmax
from blda_cli.errors import BldaError
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.outputs import named_outputs
from blda_cli.segmenters.preprocessing import resize_images

IMAGES = 4
"""Images that are compared, spread evenly."""

AGREEMENT = 0.9999
"""Share of the pixels that must be equal or ties."""

_ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2}
"""How much logits may differ between two runtimes, as a share of the largest: scores closer than this are a tie."""


@dataclass(frozen=True)
class Agreement:
    """How an export's predictions agree with those of ``blda align``.

    Attributes:
        images: images compared.
        pixels: their pixels.
        equal: pixels of the same class.
        ties: pixels of another class whose score is the highest but for rounding.
    """

    images: int
    pixels: int
    equal: int
    ties: int

    @property
    def holds(self) -> bool:
        """Whether enough pixels are equal or ties."""
        return self.equal + self.ties >= AGREEMENT * self.pixels

    def describe(self) -> str:
        """The agreement in a few words."""
        of = f"{self.pixels:,} pixels of {self.images} image{'s' * (self.images > 1)}"
        if self.equal == self.pixels:
            return f"equal on all {of}"
        rest = self.pixels - self.equal
        tied = "all" if self.ties == rest else f"{self.ties:,}"
        return f"equal on {self.equal / self.pixels:.4%} of {of}; of the other {rest:,} {tied} are ties"


def verify(
    segmenter: NetworkSegmenter,
    correction: Correction,
    exported: NetworkSegmenter,
    images: Iterable[np.ndarray],
    *,
    ids: bool,
    half: bool,
) -> Agreement:
    """Compare the predictions of an export with those of a segmenter and a correction.

    Args:
        segmenter: the original segmenter.
        correction: the correction that ``blda align`` would apply to its logits, on its device.
        exported: the export.
        images: as ``segmenter.read`` gives them.
        ids: the export gives class ids.
        half: it computes in float16.

    Raises:
        BldaError: the export cannot be run.
    """
    count = pixels = equal = ties = 0
    for array in images:
        arrays = torch.from_numpy(array)[None]
        size = exported.preprocessor.section.size
        if ids and size is not None:  # ids cannot be resized: those of images of that size are compared
            resized = resize_images(arrays.permute(0, 3, 1, 2).float(), size)
            arrays = resized.permute(0, 2, 3, 1)
        logits = segmenter.logits(arrays)
        found = _ids(exported, arrays) if ids else argmax(exported.logits(arrays)).long()
        expected = correction.predict(logits).to(found.device)
        if found.shape != expected.shape:
            raise BldaError(f"the export gives predictions of shape {list(found.shape)}, not {list(expected.shape)}")
        differ = found != expected
        count, pixels = count + 1, pixels + found.numel()
        equal += int((~differ).sum())
        if bool(differ.any()):
            scores = correction.scores(logits).float().movedim(1, -1)[differ]
            rounding = _ROUNDING[torch.float16 if half else torch.float32] * float(logits.abs().max())
            behind = scores.amax(dim=1) - scores.gather(1, found[differ][:, None])[:, 0]
            ties += int((behind <= rounding).sum())
    return Agreement(count, pixels, equal, ties)


def _ids(exported: NetworkSegmenter, arrays: Tensor) -> Tensor:
    """Class ids of an export that gives them, of one image at its size."""
    images = exported.network_input(arrays.to(exported.device).permute(0, 3, 1, 2).float())
    with torch.no_grad():  # not by way of `network_scores`, which refuses ids
        output = exported.network(images.expand(exported.port.batch or 1, -1, -1, -1))
    (ids,) = named_outputs(output).values()
    return ids[:1, : arrays.shape[1], : arrays.shape[2]] if ids.ndim == 3 else ids[:1]
