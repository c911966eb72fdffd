"""Where a network's scores lie in its input: whether they cover it, are padded, lack a margin, or are of one size.

The size of one output mostly decides it. Where it does not, the network is run on two grey images of other sizes, whose
sides are multiples of 64, so that rounding does not matter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.errors import BldaError
from blda_cli.segmenters.outputs import coverage, fit_scores, resize_scores
from blda_cli.segmenters.reasons import InputRefusedError

Size = tuple[int, int]

PROBE_SIZES: tuple[Size, Size] = ((256, 320), (384, 448))
"""(height, width) of the grey images: four different sides."""

MULTIPLES = (2, 4, 8, 14, 16, 32, 64, 128)
"""Multiples that a network may require of its input's sides, in the order in which they are tried."""


class SidesError(InputRefusedError):
    """The network takes sides that are multiples of ``multiple`` only."""

    def __init__(self, message: str, multiple: int) -> None:
        super().__init__(message)
        self.multiple = multiple


@dataclass(frozen=True)
class Scaling:
    """How a network's output size follows from its input size: ``output = (input - margin) / stride``.

    Attributes:
        constant: the output has one size whatever the input's is.
        stride: of the output; 0 where the sizes follow no such rule.
        margin: how much of each side of the input the output lacks, in all; 0 or less where it lacks nothing.
    """

    constant: bool = False
    stride: float = 0.0
    margin: int = 0

    @property
    def unpadded(self) -> bool:
        """Whether the network's convolutions are not padded, so that its output lacks a margin all round."""
        return self.stride > 0 and self.margin > 0


def scaling_of(outputs: tuple[Size, Size], inputs: tuple[Size, Size] = PROBE_SIZES) -> Scaling:
    """Derive the rule from two sizes of input and output."""
    if outputs[0] == outputs[1]:
        return Scaling(constant=True)
    pairs = [(inputs[k][axis], outputs[k][axis]) for k in (0, 1) for axis in (0, 1)]
    (first_in, first_out), (last_in, last_out) = min(pairs), max(pairs)
    if last_out == first_out:
        return Scaling()
    stride = (last_in - first_in) / (last_out - first_out)
    margins = [size - stride * got for size, got in pairs]
    if stride <= 0 or max(margins) - min(margins) > 1e-6:
        return Scaling()
    return Scaling(stride=stride, margin=math.ceil(margins[0]))


def shared_margin(scores: Size, network_input: Size) -> Scaling | None:
    """The margin that an output at the input's resolution lacks, from one pair of sizes; None: there is none."""
    height, width = (size - got for size, got in zip(network_input, scores, strict=True))
    if height == width and 0 < height < min(network_input) // 2:
        return Scaling(stride=1.0, margin=height)
    return None


def extend(images: Tensor, margin: int) -> Tensor:
    """Mirror ``[N, 3, H, W]`` beyond its borders by half the margin on each side.

    As U-Net's authors do (Ronneberger et al., MICCAI 2015). Where an image is smaller than that, its outermost pixels
    are repeated.
    """
    before, after = margin // 2, margin - margin // 2
    mode = "reflect" if after < min(images.shape[2:]) else "replicate"
    return F.pad(images, (before, after, before, after), mode=mode)


def place(scores: Tensor, scaling: Scaling, network_input: Size, content: Size, size: Size) -> Tensor:
    """Place scores that lack a margin: their middle is the input's middle.

    Args:
        scores: ``[N, C, h, w]``.
        scaling: the network's.
        network_input: (height, width) of the input.
        content: (height, width) of the part at its upper left that was the image.
        size: (height, width) wanted.

    Returns:
        ``[N, C, *size]``; within the margin the nearest scores.
    """
    height, width = (round(scaling.stride * side) for side in scores.shape[2:])
    scores = resize_scores(scores, (height, width))
    beyond = []
    for got, whole in ((width, network_input[1]), (height, network_input[0])):
        before = (whole - got) // 2
        beyond += [before, whole - got - before]
    return fit_scores(F.pad(scores, beyond, mode="replicate"), network_input, content, size)


def covered(scores: Size, network_input: Size, scaling: Scaling | None) -> Size:
    """The size of the area that the scores cover: more than the input where the network padded it.

    Args:
        scores: (height, width) of the output.
        network_input: (height, width) of the input.
        scaling: the network's, where that is known.

    Raises:
        SidesError: the output lacks what is left over of a side.
        BldaError: the output is of one size only, or its size cannot be explained.
    """
    if scaling is not None and scaling.constant and scores != network_input:
        raise BldaError(
            f"the network's output is {scores[0]}x{scores[1]} whatever the size of its input: give the size that it "
            f"was made for under [preprocessing], e.g. size = [{scores[0]}, {scores[1]}]"
        )
    stride = scaling.stride if scaling is not None and scaling.stride else None
    explained = coverage(scores, network_input, stride)
    if explained is not None:
        return explained
    sizes = f"the network's output is {scores[0]}x{scores[1]} for an input of {network_input[0]}x{network_input[1]}"
    for multiple in reversed(MULTIPLES):
        kept = (network_input[0] // multiple * multiple, network_input[1] // multiple * multiple)
        if kept != network_input and min(kept) > 0 and coverage(scores, kept, stride) == kept:
            raise SidesError(
                f"{sizes}: it drops what is left over of a side; multiple_of = {multiple} under [preprocessing] "
                f"(--set multiple_of={multiple}) pads the sides and cuts the scores",
                multiple,
            )
    raise BldaError(
        f"{sizes}, which is neither a fraction of that nor padded: resize the scores to the input in the network"
    )


def multiple_that_runs(run: Callable[[Tensor], object], images: Tensor) -> int | None:
    """The first multiple to which the sides of an input that the network fails on can be padded so that it runs.

    Args:
        run: the network.
        images: the input ``[N, 3, H, W]``.

    Returns:
        The multiple; None where none helps.
    """
    for multiple in MULTIPLES:
        # Odd numbers of times the multiple, so that it is not one of twice as much that the network takes.
        height, width = ((-(-side // multiple) | 1) * multiple for side in images.shape[2:])
        try:
            with torch.no_grad():
                run(images.new_zeros(images.shape[0], images.shape[1], height, width))
        except (Exception, SystemExit):  # a network may raise anything
            continue
        return multiple
    return None
