"""A segmenter whose logits pass through a calibrator that fiducio fitted and saved."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from blda_cli.data.divided_images import DividedImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError, require_extra
from blda_cli.files import file_digest
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.norms import ObservedNorms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.outputs import log_probabilities
from blda_cli.segmenters.reasons import reason


@dataclass(kw_only=True)
class CalibratedSegmenter(Segmenter):
    """Gives the log of the calibrated probabilities in the place of a segmenter's logits.

    Attributes:
        inner: the segmenter.
        calibrator: a fitted ``fiducio`` calibrator.
    """

    inner: Segmenter
    calibrator: Any

    @property
    def module(self) -> nn.Module:
        """See `Segmenter.module`."""
        return self.inner.module

    def mix_norms(self, weight: float) -> None:
        """See `Segmenter.mix_norms`."""
        self.inner.mix_norms(weight)

    @contextmanager
    def observed_by(self, norms: ObservedNorms) -> Iterator[None]:
        """See `Segmenter.observed_by`."""
        with self.inner.observed_by(norms):
            yield

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """See `Segmenter.repeating`."""
        with self.inner.repeating():
            yield

    def read(self, file: ImageSource) -> np.ndarray:
        """See `Segmenter.read`."""
        return self.inner.read(file)

    def logits(
        self,
        arrays: Tensor,
        options: InferenceOptions,
        valid: Tensor | None = None,
        part: DividedImage | None = None,
    ) -> Tensor:
        """See `Segmenter.logits`."""
        values = self.inner.logits(arrays, options, valid, part).float()
        if self.calibrator.input_type == "probs":
            values = values.softmax(dim=1)
        return log_probabilities(self.calibrator.transform(values).to(values.device))

    def check(self, files: Sequence[ImageSource], options: InferenceOptions) -> None:
        """See `Segmenter.check`."""
        self.inner.check(files, options)

    def origin(self, file: ImageSource) -> ImageSource:
        """See `Segmenter.origin`."""
        return self.inner.origin(file)


def calibrated(segmenter: Segmenter, path: Path) -> CalibratedSegmenter:
    """Put a saved calibrator behind a segmenter.

    Args:
        segmenter: gives logits.
        path: what ``fiducio.save_calibrator`` wrote; read without unpickling.

    Returns:
        The calibrated segmenter; its identity holds the file's digest.

    Raises:
        BldaError: the file cannot be read, or was fitted to another number of classes.
    """
    fiducio = require_extra("fiducio", "calibrators", "to apply a calibrator")
    if not path.is_file():
        raise BldaError(f"{path}: no such calibrator; fiducio.save_calibrator writes one")
    try:
        calibrator = fiducio.load_calibrator(path, map_location=segmenter.device)
    except Exception as error:  # torch and fiducio each raise their own
        raise BldaError(f"{path} cannot be read as a calibrator of fiducio: {reason(error)}") from error
    if calibrator.num_classes not in (None, len(segmenter.classes)):
        raise BldaError(
            f"{path} calibrates {calibrator.num_classes} classes, the model has {len(segmenter.classes)}: "
            "fit it to this model's logits"
        )
    return CalibratedSegmenter(
        classes=segmenter.classes,
        identity={**segmenter.identity, "calibrator": file_digest(path)},
        adapted_norms=segmenter.adapted_norms,
        device=segmenter.device,
        notes=segmenter.notes,
        corrected=segmenter.corrected,
        inner=segmenter,
        calibrator=calibrator,
    )
