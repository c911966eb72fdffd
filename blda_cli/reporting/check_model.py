"""The findings of ``blda check``, as data that all its renderers share."""

from dataclasses import dataclass, field

import numpy as np

from blda_cli.core.class_order import Match
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.data.classes import ClassSet
from blda_cli.segmenters.descriptions import Comparison
from blda_cli.segmenters.inspection import Inspection


@dataclass(frozen=True)
class LabelFindings:
    """How predictions and labels agree.

    Attributes:
        encoding: of the label files.
        confusion: of the checked images.
        ignored: share of the label pixels that have no class.
        unmatched: classes of the encoding that are none of the network's.
        remarks: problems of the labels themselves.
        moved: label classes that seem to be other channels.
        other: an encoding that agrees far better, and the share of all pixels predicted as labelled with it and with
            the one used; None where there is none.
    """

    encoding: str
    confusion: ConfusionMatrix
    ignored: float
    unmatched: tuple[str, ...]
    remarks: tuple[str, ...]
    moved: tuple[Match, ...]
    other: tuple[str, float, float] | None


@dataclass(frozen=True)
class Remark:
    """A remark for the user.

    Attributes:
        finding: its kind, for programs.
        grave: results are worthless until it is fixed.
        text: one sentence, with the way out.
    """

    finding: str
    grave: bool
    text: str


@dataclass(frozen=True)
class Check:
    """The findings of ``blda check``.

    Attributes:
        kind: of the model.
        classes: its classes.
        outputs: channels that are kept, before groups.
        grouped: whether the classes are groups of channels.
        inspection: facts about the network from one image; None for stored logits.
        size: (height, width) of that image.
        comparison: how the common descriptions fit; None where they cannot be tried.
        multiple: what the network's sides need to be multiples of, where its description does not say so; else None.
        images: how many were checked.
        shares: share of the pixels predicted as each class, float64 ``[C]``.
        frames: key, uint8 picture ``[H, W, 3]`` and class ids ``[H, W]`` of the images, small.
        labels: None where there are no labels.
        remarks: the gravest first.
    """

    kind: str
    classes: ClassSet
    outputs: int
    grouped: bool
    inspection: Inspection | None
    size: tuple[int, int]
    comparison: Comparison | None
    multiple: int | None
    images: int
    shares: np.ndarray
    frames: list[tuple[str, np.ndarray, np.ndarray]] = field(repr=False)
    labels: LabelFindings | None = None
    remarks: tuple[Remark, ...] = ()
