"""Enumerations of values that users choose between. No torch here, so that the command line can offer them at once."""

from enum import StrEnum


class Shift(StrEnum):
    """The form of BLDA's shift."""

    NEGATIVE = "negative"
    """A constant per class: the level of its channel at pixels of other classes."""
    QUANTILE = "quantile"
    """A function of the logit: quantile of the cell to quantile of the anchor, as published."""
    LOCATION = "location"
    """A constant per cell: mean of the cell to mean of the anchor."""
    BALANCED = "balanced"
    """A constant per class: the location form averaged over the hypotheses."""
    TWO_PASS = "two-pass"
    """Labels from the balanced form, then half location form, half balanced form from those."""


class Favour(StrEnum):
    """The score that the label-free strength is chosen for, where scores want different strengths."""

    MIOU = "miou"
    ACCURACY = "accuracy"
    """Mean accuracy of the classes: 1.3 times the strength."""
    PIXELS = "pixels"
    """Share of the pixels that are right: 0.7 times the strength."""


class Density(StrEnum):
    """How the distribution of a cell is described in the quantile form."""

    EMPIRICAL = "empirical"
    MIXTURE = "mixture"


class Tails(StrEnum):
    """What the quantile form does with logits in a cell's outermost hundredths."""

    CLAMP = "clamp"
    """All go to the anchor's outermost value, as published; their order within the tail is lost."""
    CONSTANT = "constant"
    """All are shifted by as much as the outermost quantile; their order is kept."""


class LabelSource(StrEnum):
    """Where the label comes from that a pixel is counted under."""

    GROUND_TRUTH = "ground_truth"
    PSEUDO = "pseudo"
    """The network's own argmax."""
    SOFT = "soft"
    """Every class, weighted by its softmax probability."""


class NormSource(StrEnum):
    """The norm source: where the norm statistics come from."""

    SOURCE = "source"
    """Those that the network was trained with."""
    TARGET = "target"
    """Those of the images, blended with the source's."""
    INSTANCE = "instance"
    """The source's, mixed with each image's own."""
    AUTO = "auto"
    """The source's, mixed with each image's own by a weight that is chosen without labels."""


class LogitSpace(StrEnum):
    """How a pixel's free constant is fixed before its logits are counted or shifted."""

    RAW = "raw"
    """As the network gives them, as the paper counts them."""
    CENTRED = "centred"
    """Minus the pixel's mean over the classes."""
    LOG_SOFTMAX = "log-softmax"
    """Log-probabilities."""
