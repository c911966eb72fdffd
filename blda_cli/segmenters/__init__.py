"""Pretrained segmenters of every kind, behind one interface: image files in, logits out."""

import importlib
from typing import TYPE_CHECKING

from blda_cli.segmenters.kinds import KINDS

if TYPE_CHECKING:  # these import torch, which the options of a command do without
    import torch

    from blda_cli.segmenters.base import Segmenter
    from blda_cli.segmenters.spec import SegmenterSpec

__all__ = ["KINDS", "load_segmenter"]


def load_segmenter(spec: "SegmenterSpec", device: "torch.device") -> "Segmenter":
    """Load the segmenter that a description names. Kinds ``python`` and ``torchscript`` run code from the model.

    Args:
        spec: made by ``parse_model``.
        device: where to run it.

    Returns:
        The segmenter, ready to ``stream``.

    Raises:
        BldaError: it cannot be loaded, or does not fit its description.
    """
    # Imported here, as each kind brings its own, partly optional, library.
    module = importlib.import_module(f"blda_cli.segmenters.{KINDS[spec.segmenter.kind].module}")
    segmenter: Segmenter = module.load(spec, device)
    return segmenter
