"""What the pixel values of label files mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from blda_cli.data.classes import Color


@dataclass(frozen=True)
class LabelEncoding:
    """The meaning of pixel values.

    Attributes:
        name: what the user calls it.
        values: class name (or the segmenter's class id) of each pixel value of a single-channel file.
        colors: the same of each colour of an RGB file.
    """

    name: str
    values: Mapping[int, str | int] = field(default_factory=dict)
    colors: Mapping[Color, str | int] = field(default_factory=dict)
