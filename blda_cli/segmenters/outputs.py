"""From a network's output to scores per class: which tensor, what its values mean, its size.

*Scores* are what the network gives per class: logits, or probabilities. Both are resized as they are, and only then
are probabilities turned into logits, as the networks' own code does it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.errors import BldaError

# Below 2⁻²⁴ a probability computed in single precision as one minus the others is not known; it is also the smallest
# one that half precision holds.
SMALLEST_PROBABILITY = 2.0**-24

_PADDED_TO = (8, 14, 16, 32, 64, 128)
_OUTPUT_STRIDES = (1, 2, 4, 8, 14, 16, 32)


def first_tensor(output: Any) -> Tensor:
    """The scores among what a network returned.

    Args:
        output: a tensor; a mapping (also of the Hugging Face kind), whose ``"out"``, ``"logits"`` or else first
            entry counts; an object with ``.logits``; a sequence, whose first entry counts.

    Returns:
        The tensor.

    Raises:
        BldaError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and output:
        named = [output[key] for key in ("out", "logits") if key in output]
        return first_tensor(named[0] if named else next(iter(output.values())))
    if hasattr(output, "logits"):
        return first_tensor(output.logits)
    if isinstance(output, Sequence) and not isinstance(output, str) and output:
        return first_tensor(output[0])
    raise BldaError(f"the network returns {type(output).__name__}, not a tensor, a dict with one or a tuple of them")


def mask_class_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Per-pixel class scores of a mask-classification network.

    ``Σ_q softmax(class_logits)[q, c] · sigmoid(mask_logits)[q, h, w]`` over the queries ``q``, the last class ("no
    object") left out of the sum after the softmax (Cheng et al., "Per-Pixel Classification is Not All You Need for
    Semantic Segmentation", NeurIPS 2021, eq. of semantic inference).

    Args:
        class_logits: ``[N, Q, C + 1]``.
        mask_logits: ``[N, Q, h, w]``.

    Returns:
        ``[N, C, h, w]``, not negative, not normalised over the classes.
    """
    return torch.einsum("nqc,nqhw->nchw", class_logits.softmax(dim=-1)[..., :-1], mask_logits.sigmoid())


def log_probabilities(scores: Tensor) -> Tensor:
    """Logits from scores that are probabilities but for a factor per pixel.

    Args:
        scores: ``[N, C, *spatial]``, not negative.

    Returns:
        ``log(p)``, ``p`` the scores normalised over the classes and clamped to at least 2⁻²⁴; float32.
    """
    scores = scores.float()
    total = scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (scores / total).clamp_min(SMALLEST_PROBABILITY).log()


def check_scores(scores: Tensor, images: int, outputs: int | None, cut: bool) -> None:
    """Refuse what cannot be scores of the classes, by its type and shape alone.

    Args:
        scores: what the network gave.
        images: how many it was given.
        outputs: how many channels there should be; None where that is not known.
        cut: whether more would do, as the first ``outputs`` are kept.

    Raises:
        BldaError: they are class ids or not plain numbers, or have another number of images, dimensions or channels.
    """
    shape = list(scores.shape)
    strange = "sparse" if scores.layout is not torch.strided else "quantised" if scores.is_quantized else ""
    strange = "complex" if scores.is_complex() else "meta" if scores.is_meta else strange
    if strange:
        raise BldaError(f"the model gives a {strange} tensor {shape}: plain floating-point numbers are needed")
    if not scores.is_floating_point():
        raise BldaError(
            f"the model gives {str(scores.dtype).removeprefix('torch.')} values {shape}: class ids, not logits; "
            "take the argmax out of it"
        )
    if scores.ndim not in (2, 4):
        raise BldaError(
            f"the model gives an output of shape {shape}; [N, C, H, W] is needed, or [N, C] of a classifier"
        )
    if scores.shape[0] != images:
        raise BldaError(f"the model gives {scores.shape[0]} images for {images}, as an output of shape {shape}")
    if 0 in shape:
        raise BldaError(f"the model gives an output of shape {shape}: there is nothing in it")
    if outputs is not None and scores.ndim == 4 and scores.shape[3] == outputs != scores.shape[1]:
        raise BldaError(
            f"the model gives {shape}, channels last ([N, H, W, C]); [N, C, H, W] is needed: scores.permute(0, 3, 1, 2)"
        )
    if scores.shape[1] == 1 and outputs != 1:
        raise BldaError(
            f"the model gives one channel, {shape}: class ids, or one score of two classes; give it one logit per "
            "class (for a score x of the second: torch.cat([torch.zeros_like(x), x], dim=1))"
        )
    if outputs is not None and (scores.shape[1] < outputs or (scores.shape[1] > outputs and not cut)):
        way_out = (
            f"channels = {outputs} keeps the first {outputs}" if scores.shape[1] > outputs else "name its own classes"
        )
        raise BldaError(f"the model gives {scores.shape[1]} channels, but {outputs} classes are named: {way_out}")


def check_meaning(scores: Tensor, probabilities: bool) -> None:
    """Refuse probabilities where logits are said to be given, and the reverse. Waits for the device.

    Args:
        scores: ``[N, C, *spatial]``.
        probabilities: what they are said to be.

    Raises:
        BldaError: they are the other; the message says what to set.
    """
    lowest, highest = (float(value) for value in scores.aminmax())
    if probabilities:
        if lowest < 0:
            raise BldaError(
                f'the model\'s output is said to be probabilities but goes down to {lowest:.3g}: set output = "logits"'
            )
        return
    # Half precision's and a softmax's own rounding stay well below a hundredth, logits that happen to sum to 1
    # everywhere do not exist.
    if lowest >= 0 and highest <= 1 and bool(((scores.sum(dim=1, dtype=torch.float32) - 1).abs() < 1e-2).all()):
        raise BldaError(
            'the model gives probabilities (they sum to 1), not logits: set output = "probabilities" under '
            "[preprocessing], or better, take its softmax out"
        )


LARGEST_LOGIT = 2.0**64
"""What is larger is no logit: its square and its sums leave the range of single precision."""


def check_range(logits: Tensor, names: Sequence[str]) -> float:
    """Refuse NaN, infinity and numbers that no logit is. Waits for the device once.

    Args:
        logits: ``[N, C, *spatial]``.
        names: of the N images.

    Returns:
        The largest absolute value, as float32.

    Raises:
        BldaError: there are some; the message names the first such image.
    """
    if logits.is_contiguous():  # one reading; several times slower than two where values lie apart
        lowest, highest = (torch.stack(ends) for ends in zip(*map(torch.aminmax, logits), strict=True))
    else:
        over = tuple(range(1, logits.ndim))
        lowest, highest = logits.amin(dim=over), logits.amax(dim=over)
    largest: list[float] = torch.maximum(highest, -lowest).float().tolist()  # NaN is passed on
    for name, value in zip(names, largest, strict=True):
        if not math.isfinite(value):
            raise BldaError(
                f"{name}: the logits are not finite (NaN or infinity); look at the image and the weights, or leave "
                "out --amp"
            )
        if value > LARGEST_LOGIT:
            raise BldaError(f"{name}: the logits reach {value:.3g}, which no network's do: look at the weights")
    return max(largest)


def padded_size(scores: tuple[int, int], network_input: tuple[int, int]) -> tuple[int, int]:
    """The size of what the scores cover, where a network padded its input and left the padding in its output.

    Padding is taken to be there where the output is not a common fraction (1, ½, ¼, ...) of the input but is one of
    the input rounded up to a multiple (of 8, 14, 16, 32, 64 or 128); and to be below and on the right, where every
    common framework puts it.

    Args:
        scores: (height, width) of the output.
        network_input: (height, width) of the input.

    Returns:
        (height, width) of the padded input; ``network_input`` itself where nothing speaks for padding.
    """
    for stride in _OUTPUT_STRIDES:
        if all(got in (size // stride, -(-size // stride)) for got, size in zip(scores, network_input, strict=True)):
            return network_input
    for multiple in _PADDED_TO:
        height, width = (-(-size // multiple) * multiple for size in network_input)
        if any(scores == (height // stride, width // stride) for stride in _OUTPUT_STRIDES if multiple % stride == 0):
            return height, width
    return network_input


def fit_scores(scores: Tensor, covered: tuple[int, int], content: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Resize scores to the image, without the padding (bilinear, ``align_corners=False``).

    Args:
        scores: ``[N, C, h, w]``; ``[N, C]`` passes through.
        covered: (height, width) of the network's padded input, all of which the scores cover.
        content: (height, width) of the part at its upper left that was the image.
        size: (height, width) wanted.

    Returns:
        ``[N, C, *size]``.
    """
    if scores.ndim == 2:
        return scores
    if covered != content:
        scores = _resize(scores, covered)[..., : content[0], : content[1]]
    return _resize(scores, size)


def _resize(scores: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(scores.shape[-2:]) == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)
