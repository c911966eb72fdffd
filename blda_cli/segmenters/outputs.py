"""From a network's output to logits of the classes: choice of the tensor, kind of values, layout.

*Scores* are the network's output per channel: logits or probabilities. Both are resized as they are, and only then are
probabilities turned into logits, as the networks' own code does.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.errors import BldaError

Output = Literal["logits", "probabilities", "sigmoid"]
"""Kinds of network output: ``[preprocessing] output``."""

# Below 2⁻²⁴ a probability computed in single precision as one minus the others is not known; it is also the smallest
# one that half precision holds.
SMALLEST_PROBABILITY = 2.0**-24

_MAIN_NAMES = ("out", "logits")
"""Names that frameworks give to a network's main output: torchvision's, and those of transformers and exporters."""

_DEEPEST = 4
"""How deep outputs may be nested in one another."""

_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types that everything after the network computes with."""


def named_outputs(output: object) -> dict[str, Tensor]:
    """The values that a network returned, by name.

    Args:
        output: a tensor; or mappings, sequences, data classes and named tuples of tensors, in one another.

    Returns:
        Every tensor under its key, position or field; of nested ones, the names joined by dots (``"out.0"``). A lone
        tensor is called ``"output"``. Other values are left out.
    """
    return {".".join(path) or "output": value for path, value in _walk(output, ())}


def _walk(output: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(output, Tensor):
        yield path, output
    elif len(path) < _DEEPEST:
        for name, value in _entries(output):
            yield from _walk(value, (*path, name))


def _entries(output: object) -> list[tuple[str, Any]]:
    """The entries of a container with their names; none where it is no container."""
    if isinstance(output, Mapping):
        return [(str(key), value) for key, value in output.items()]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, Sequence) and not isinstance(output, str | bytes):
        return [(str(place), value) for place, value in enumerate(output)]
    if is_dataclass(output) and not isinstance(output, type):
        return [(one.name, getattr(output, one.name)) for one in fields(output)]
    return [(name, value) for name, value in getattr(output, "__dict__", {}).items() if not name.startswith("_")]


def find_scores(output: object, head: str | int | None = None, channels: int | None = None) -> Tensor:
    """Find the scores in a network's return value.

    Without ``head``: the one called ``out`` or ``logits``; else, of the outputs that have the channels wanted and are
    not called auxiliary, the one of the largest size.

    Args:
        output: the network's return value, as for `named_outputs`.
        head: name or position of the one that is meant; it may be a container, which is then searched.
        channels: how many the scores have; None where that is not known.

    Returns:
        The tensor.

    Raises:
        BldaError: there is none, none is called so, or several could be meant; the message lists them.
    """
    found = named_outputs(output)
    if not found:
        raise BldaError(
            f"the network returns {type(output).__name__}, not a tensor, a dict with one or a tuple of them"
        )
    if isinstance(output, Tensor):
        return output  # there is no choice, whatever the head is called where the network has several
    if head is not None:
        found = _called(output, found, head)
    if len(found) == 1:
        return next(iter(found.values()))
    return _main_output(found, channels)


def _called(output: object, found: dict[str, Tensor], head: str | int) -> dict[str, Tensor]:
    """The outputs under a name, or else at a position."""
    entries = _entries(output)
    name = str(head)
    if not any(key == name or key.startswith(f"{name}.") for key in found):
        try:
            name = entries[int(head)][0]
        except (ValueError, IndexError):
            name = ""
    chosen = {key: value for key, value in found.items() if name and (key == name or key.startswith(f"{name}."))}
    if not chosen:
        raise BldaError(f"head = {head!r} is none of the network's outputs: {_listing(found)}")
    return chosen


def _main_output(found: dict[str, Tensor], channels: int | None) -> Tensor:
    """The main output of several, by the frameworks' conventions."""
    candidates = {name: value for name, value in found.items() if _may_be_scores(value)} or found
    for convention in _MAIN_NAMES:
        named = {name: value for name, value in candidates.items() if convention in name.split(".")}
        if named:
            candidates = named
            break
    else:
        main = {name: value for name, value in candidates.items() if "aux" not in name.lower()}
        candidates = main or candidates
    maps = {name: value for name, value in candidates.items() if value.ndim == 4}
    candidates = maps or candidates
    if channels is not None:
        for wanted in (channels, 1):  # one channel decides between two classes
            fitting = {name: one for name, one in candidates.items() if wanted in (one.shape[1], one.shape[-1])}
            if fitting or channels != 2:
                break
        candidates = fitting or candidates
    elif len({value.shape[1] for value in candidates.values() if value.ndim > 1}) > 1:
        raise _several(candidates)  # the number of classes would decide
    sizes = {
        name: value.numel() // max(1, value.shape[1] if value.ndim > 1 else 1) for name, value in candidates.items()
    }
    largest = max(sizes.values())
    candidates = {name: value for name, value in candidates.items() if sizes[name] == largest}
    first = next(iter(candidates.values()))
    if not all(value is first for value in candidates.values()):
        raise _several(candidates)
    return first


def _may_be_scores(value: Tensor) -> bool:
    """Whether a tensor can be scores of images by type and dimensions: no loss, no class ids."""
    return value.ndim >= 2 and (value.is_floating_point() or value.is_quantized or value.is_complex())


def _several(found: Mapping[str, Tensor]) -> BldaError:
    return BldaError(
        f"the network returns several outputs that could be meant: {_listing(found)}; say which under [segmenter], "
        f"e.g. head = {next(iter(found))!r}"
    )


def _listing(found: Mapping[str, Tensor]) -> str:
    """Names and shapes, for a message."""
    shown = [f"{name} {list(value.shape)}" for name, value in list(found.items())[:12]]
    return ", ".join(shown) + (f" and {len(found) - 12} more" if len(found) > 12 else "")


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


def log_odds(probabilities: Tensor) -> Tensor:
    """Logits from sigmoids, each channel a probability of its own.

    Args:
        probabilities: in 0..1, of any shape.

    Returns:
        ``log(p / (1 - p))``, ``p`` clamped to 2⁻²⁴ .. 1 − 2⁻²⁴; float32.
    """
    clamped = probabilities.float().clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return clamped.log() - torch.log1p(-clamped)


@dataclass(frozen=True)
class OutputMeaning:
    """The meaning of the channels of a network's output.

    Attributes:
        classes: how many classes there are.
        output: kind of the values: logits, probabilities or sigmoids.
        background: the class that no channel stands for: it wins where none of the others is above ½. None: every
            class has a channel, unless there is but one channel, which then decides between two classes.
        cut: the network may have more channels; the first ones are used.
        quantised: scale and zero point of scores that are whole numbers.
        normalised: probabilities sum to 1 over the classes.
        declared: the description states ``output``; else the values are assumed to be logits.
    """

    classes: int
    output: Output = "logits"
    background: int | None = None
    cut: bool = False
    quantised: tuple[float, float] | None = None
    normalised: bool = True
    declared: bool = False

    @property
    def channels(self) -> int:
        """How many channels of the output are used, unless it has but one."""
        return self.classes - (self.background is not None)

    def used(self, scores: Tensor) -> Tensor:
        """The channels that are used, ``[N, channels or 1, *spatial]``."""
        return scores[:, : self.channels]

    def logits(self, scores: Tensor) -> Tensor:
        """Logits of the classes.

        Args:
            scores: ``[N, channels, *spatial]``, or one channel for two classes.

        Returns:
            ``[N, classes, *spatial]``.
        """
        if self.output == "probabilities":
            return log_probabilities(scores)
        if self.output == "sigmoid":
            scores = log_odds(scores)
        place = self.background
        if place is None and scores.shape[1] < self.classes:
            place = 0
        if place is None:
            return scores
        # The log-odds of ½: a pixel is background unless one of the others is more likely than not.
        return torch.cat([scores[:, :place], torch.zeros_like(scores[:, :1]), scores[:, place:]], dim=1)


def plain_scores(scores: Tensor, quantised: tuple[float, float] | None) -> Tensor:
    """Scores as plain floating-point numbers; quantised ones with a known scale are converted.

    Args:
        scores: what the network gave.
        quantised: scale and zero point of scores that are whole numbers: ``scale · (stored − zero point)``.

    Raises:
        BldaError: they are complex, sparse, without values, of an unusual precision, or class ids.
    """
    shape = list(scores.shape)
    if scores.is_quantized:
        return scores.dequantize()
    strange = "complex" if scores.is_complex() else "meta" if scores.is_meta else ""
    strange = "sparse" if scores.layout is not torch.strided else strange
    if strange:
        raise BldaError(f"the model gives a {strange} tensor {shape}: plain floating-point numbers are needed")
    kind = str(scores.dtype).removeprefix("torch.")
    if scores.is_floating_point():
        if scores.dtype not in _COMPUTED:
            raise BldaError(f"the model gives {kind} values {shape}: return float32, as scores.float() does")
        return scores
    if quantised is not None:
        scale, zero = quantised
        return (scores.float() - zero) * scale
    if scores.dtype is torch.bool or scores.ndim < 4 or 1 in (scores.shape[1], scores.shape[3]):
        raise BldaError(
            f"the model gives {kind} values {shape}: class ids, not logits; return what its argmax or threshold is "
            "taken of"
        )
    raise BldaError(
        f"the model gives {kind} values {shape}: class ids, not logits, or quantised scores; return floating-point "
        "scores, or give quantised = [scale, zero point] under [preprocessing]"
    )


class AmbiguousLayoutError(BldaError):
    """Scores may be ``[N, C, h, w]`` or ``[N, h, w, C]``."""


def channels_first(scores: Tensor, meaning: OutputMeaning | None, size: Sequence[int] | None) -> tuple[Tensor, bool]:
    """Move the channels of scores to the front where they come last.

    Args:
        scores: ``[N, C, h, w]`` or ``[N, h, w, C]``; others pass through.
        meaning: how many channels there should be; None where that is not known.
        size: (height, width) of the network's input; None where that is not known.

    Returns:
        ``[N, C, h, w]``, and whether the channels were moved.

    Raises:
        AmbiguousLayoutError: it could be either.
    """
    if scores.ndim != 4:
        return scores, False
    first, last = _counts(scores.shape[1], meaning), _counts(scores.shape[3], meaning)
    if meaning is not None and first != last:
        maps = (scores.shape[1:3], scores.shape[2:]) if last else (scores.shape[2:], scores.shape[1:3])
        doubtful = size is not None and not _fits(maps[0], size) and _fits(maps[1], size)
        if not doubtful:
            return (scores.permute(0, 3, 1, 2), True) if last else (scores, False)
    elif meaning is not None and not first:
        return scores, False
    if size is None:
        return scores, False
    for fits in (_covers, _fits):
        as_first, as_last = fits(scores.shape[2:], size), fits(scores.shape[1:3], size)
        if as_first and as_last:
            break
        if as_first or as_last:
            return (scores.permute(0, 3, 1, 2), True) if as_last else (scores, False)
    else:
        return scores, False
    raise AmbiguousLayoutError(
        f"the model gives {list(scores.shape)} for an input of {size[0]}x{size[1]}: [N, C, H, W] or [N, H, W, C]?; "
        "[N, C, H, W] is needed: run it on images of another shape, or return scores.permute(0, 3, 1, 2) if the "
        "channels come last"
    )


def _counts(channels: int, meaning: OutputMeaning | None) -> bool:
    """Whether a number of channels fits the classes."""
    if meaning is None:
        return False
    one = channels == 1 and meaning.classes == 2
    return channels == meaning.channels or one or (meaning.cut and channels > meaning.channels)


def _covers(scores: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a map has the size of the network's input or a fraction of it, but for rounding and padding."""
    return coverage((scores[0], scores[1]), (size[0], size[1])) is not None


def _fits(scores: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a map has the shape of the network's input, or lacks an equal margin of it."""
    (height, width), (h, w) = size, scores
    return height - h == width - w >= 0 or abs(h * width - w * height) <= max(height, width)


def check_scores(scores: Tensor, images: int, meaning: OutputMeaning | None) -> None:
    """Refuse tensors that cannot be scores of the classes, by shape alone.

    Args:
        scores: what the network gave, channels first.
        images: how many the network was given.
        meaning: the channels expected; None where that is not known.

    Raises:
        BldaError: they have another number of images, dimensions or channels.
    """
    shape = list(scores.shape)
    if scores.ndim not in (2, 4):
        raise BldaError(
            f"the model gives an output of shape {shape}; [N, C, H, W] is needed, or [N, C] of a classifier"
        )
    if scores.shape[0] != images:
        way = "; does it take one number of images only? --batch-size 1 runs them one by one" if images > 1 else ""
        raise BldaError(f"the model gives {scores.shape[0]} images for {images}, as an output of shape {shape}{way}")
    if 0 in shape:
        raise BldaError(f"the model gives an output of shape {shape}: there is nothing in it")
    if meaning is None or _counts(shape[1], meaning):
        return
    if shape[1] == 1:
        raise BldaError(
            f"the model gives one channel, {shape}, but {meaning.classes} classes are named: one channel decides "
            "between two classes (name both, or the other one as background under [classes]); class ids need their "
            "argmax taken out of the model"
        )
    apart = " besides the background" if meaning.background is not None else ""
    raise BldaError(
        f"the model gives {shape[1]} channels, but {meaning.channels} classes are named{apart}: name what each of its "
        "channels stands for, in their order, under [classes]"
    )


def check_meaning(scores: Tensor, meaning: OutputMeaning) -> str | None:
    """Refuse values that are not of the declared kind. Waits for the device.

    Args:
        scores: ``[N, C, *spatial]``, all channels.
        meaning: states the declared kind.

    Returns:
        A remark on doubtful values, `DOUBTFUL` or `UNNORMALISED`; None where there is none.

    Raises:
        BldaError: they look like probabilities, sigmoids, logits or class ids instead; the message says what to set.
    """
    scores = scores.detach().float()
    lowest, highest = (float(value) for value in scores.aminmax())
    whole = bool((scores == scores.round()).all())
    single = scores.shape[1] == 1
    within = lowest >= 0 and highest <= 1
    total = scores.sum(dim=1)
    # Half precision's and a softmax's own rounding stay well below a hundredth, logits that happen to sum to 1
    # everywhere do not exist.
    sums_to_one = not single and bool(((total - 1).abs() < 1e-2).all())
    a_mask = within and lowest < highest and (single or sums_to_one)
    if whole and (a_mask or (single and meaning.output != "sigmoid")):
        raise BldaError(
            f"the model gives whole numbers, {lowest:.0f} to {highest:.0f}: class ids or a mask, not scores; return "
            "what its argmax or threshold is taken of"
        )
    if meaning.output == "sigmoid":
        if not within:
            raise BldaError(
                f"the model's output is said to be sigmoids but goes from {lowest:.3g} to {highest:.3g}: set output = "
                '"logits"'
            )
        if sums_to_one and meaning.background is None and scores.shape[1] > 1:
            raise BldaError(
                "the model's output is said to be sigmoids but sums to 1 over the classes, as a softmax does: set "
                'output = "probabilities"'
            )
    elif meaning.output == "probabilities":
        if lowest < 0:
            raise BldaError(
                f'the model\'s output is said to be probabilities but goes down to {lowest:.3g}: set output = "logits"'
            )
        if meaning.normalised and float((total - 1).abs().mean()) > _FAR_FROM_ONE:
            return UNNORMALISED
    elif sums_to_one and within:
        raise BldaError(
            'the model gives probabilities (they sum to 1), not logits: set output = "probabilities" under '
            "[preprocessing], or better, take its softmax out"
        )
    elif within and lowest < highest and not meaning.declared and scores.numel() >= _MANY:
        if highest <= 1 / 2:
            return DOUBTFUL
        raise BldaError(
            f"the model gives values from {lowest:.3g} to {highest:.3g}, which look like sigmoids, not logits: set "
            'output = "sigmoid" under [preprocessing], or "logits" if they are that all the same'
        )
    return None


DOUBTFUL = (
    'the model gives values within 0 and one half: if they are sigmoids, set output = "sigmoid" under [preprocessing]'
)
"""A remark on values that `check_meaning` leaves open, as of an image without any of the classes."""

UNNORMALISED = (
    "the model's probabilities do not sum to 1 over the classes, and are divided by their sum: set output = "
    '"sigmoid" under [preprocessing] if each channel is a probability of its own'
)
"""A remark on probabilities whose sums lie far from 1."""

_MANY = 256
"""From this many values on, logits do not all lie within 0..1 by chance; a classifier's few per image may."""

_FAR_FROM_ONE = 0.05
"""How far the sums of probabilities may lie from 1 on average; the rounding error of 8 bits stays below it."""

LARGEST_LOGIT = 2.0**64
"""Larger values are refused as logits: their squares and sums leave the range of single precision."""


def check_range(logits: Tensor, names: Sequence[str]) -> float:
    """Refuse NaN, infinity and values too large for logits. Waits for the device once.

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


_PADDED_TO = (2, 4, 8, 14, 16, 32, 64, 128)
_OUTPUT_STRIDES = (1, 2, 4, 8, 14, 16, 32)


def coverage(
    scores: tuple[int, int], network_input: tuple[int, int], stride: float | None = None
) -> tuple[int, int] | None:
    """The size of the area that the scores cover: the network's input, with any padding that the network added.

    The scores cover the input where their size is a common fraction (1, ½, ¼, ...) of it, rounded either way, or one
    more than that, as layers with aligned corners give. Padding is taken to be there where the output is such a
    fraction of the input rounded up to a multiple (of 2, 4, 8, 14, 16, 32, 64 or 128); and to be below and on the
    right, where every common framework puts it.

    Args:
        scores: (height, width) of the output.
        network_input: (height, width) of the input.
        stride: of the output, where it is known; None: any common one.

    Returns:
        (height, width) of the input or the padded input; None where the size has neither explanation.
    """
    strides = _OUTPUT_STRIDES if stride is None else [one for one in _OUTPUT_STRIDES if one == stride]
    for one in strides:
        if all(got in (size // one, -(-size // one)) for got, size in zip(scores, network_input, strict=True)):
            return network_input
    for multiple in _PADDED_TO:
        height, width = (-(-size // multiple) * multiple for size in network_input)
        if any(scores == (height // one, width // one) for one in strides if multiple % one == 0):
            return height, width
    for one in strides:
        pairs = zip(scores, network_input, strict=True)
        if one > 1 and all(size // one <= got <= -(-size // one) + 1 for got, size in pairs):
            return network_input
    return None


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
        scores = resize_scores(scores, covered)[..., : content[0], : content[1]]
    return resize_scores(scores, size)


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize scores ``[N, C, h, w]`` to (height, width), bilinear, ``align_corners=False``."""
    if tuple(scores.shape[-2:]) == size:
        return scores
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)
