"""Try common preprocessing descriptions on a network and measure how well each fits; see `core.description`."""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blda_cli.core.agreement import count_pairs, kappa
from blda_cli.core.description import CLEAR, COLOUR, TIED, Fit, ranked, times
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.runtime.monitor import Monitor, SilentMonitor, advancing
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.calibrated import CalibratedSegmenter
from blda_cli.segmenters.instance_norms import InstanceNorms, norm_layers
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.norms import ObservedNorms
from blda_cli.segmenters.preprocessing import Preprocessor, resize_images
from blda_cli.segmenters.spec import PreprocessingSection

NORM_WEIGHT = 0.9
"""Weight of the running statistics in the mixed norms under which descriptions are compared. With the network's own
norms the agreement carries no information, and the distances of a wrong and the right description lie 10 to 15 %
closer."""

_SMALLER = 0.75
"""The smaller copy's sides over the image's."""

_MULTIPLE = 32
"""Sides of crops and of smaller copies are multiples of this, which nearly every network takes."""

SCREENING = (2, 82_000)
"""Images, and pixels of each, of the screening, which rules out descriptions that are far off."""

FINAL = (4, 345_000)
"""Images, and pixels of each, that the remaining descriptions are compared on: with a quarter of the pixels the colour
order was wrong for one network in four."""

LATE = 0.5
"""Batch norms behind a larger share of the parameters, as in decoders of transformers, say little about the input."""

_RULED_OUT = 2.5
"""A description is dropped at the screening when its norm distance is this many times the smallest."""

_FINALISTS = 3
"""Descriptions beside the given one that are compared further."""

_SUSPICIOUS = 1.5
"""`glance` measures on larger cut-outs only from this ratio of norm distances at the screening on."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CAFFE = (123.68, 116.78, 103.94)
_CITYSCAPES = ((73.158, 82.909, 72.392), (44.915, 46.153, 45.319))
_COMMON: dict[str, PreprocessingSection] = {
    "ImageNet mean and deviation": PreprocessingSection(mean=_IMAGENET[0], std=_IMAGENET[1]),
    "0..1, not normalised": PreprocessingSection(),
    "0..255, not normalised": PreprocessingSection(scale=1.0),
    "-1..1 (mean and deviation 0.5)": PreprocessingSection(mean=(0.5,) * 3, std=(0.5,) * 3),
    "0..255 minus the ImageNet mean (Caffe)": PreprocessingSection(mean=_CAFFE, scale=1.0),
    "0..255 minus the Cityscapes mean": PreprocessingSection(mean=_CITYSCAPES[0], scale=1.0),
    "Cityscapes mean and deviation": PreprocessingSection(mean=_CITYSCAPES[0], std=_CITYSCAPES[1], scale=1.0),
    "Cityscapes mean and deviation, then / 255": PreprocessingSection(
        mean=_CITYSCAPES[0], std=_CITYSCAPES[1], scale=255.0
    ),
}
"""Normalisations that published networks were trained with, for RGB."""

_SAME = 0.02
"""Two normalisations whose results differ by less, relative to their range, are the same one."""


@dataclass(frozen=True)
class Description:
    """A way to make a network's input.

    Attributes:
        name: of the normalisation, for people.
        section: its ``[preprocessing]`` section.
    """

    name: str
    section: PreprocessingSection

    def __str__(self) -> str:
        return f"{self.name}, {self.section.color.upper()}"

    @property
    def swapped(self) -> "Description":
        """The same with the other colour order; each colour keeps its own mean and deviation."""
        section = self.section
        return replace(
            self,
            section=replace(
                section,
                color="bgr" if section.color == "rgb" else "rgb",
                mean=_reversed(section.mean),
                std=_reversed(section.std),
            ),
        )

    def in_place_of(self, other: "Description") -> str:
        """The way from another description of the same network to this one, in words that a message ends with."""
        keys, unset = [], []
        for name in ("color", "mean", "std", "scale"):
            value = getattr(self.section, name)
            if value is None:
                unset += [name] * (getattr(other.section, name) is not None)
            elif value != getattr(other.section, name):
                numbers = f"[{', '.join(f'{one:g}' for one in value)}]" if isinstance(value, tuple) else value
                keys.append(f"--set {shlex.quote(f'{name}={numbers}')}")
        given = [f"give {' '.join(keys)}, or these keys under [preprocessing] in the model's TOML file"] if keys else []
        return ", and ".join([*given, *([f"leave out {' and '.join(unset)}"] if unset else [])])

    def same_normalisation(self, other: "Description") -> bool:
        """Whether both give every colour nearly the same values, whatever the order of the colours."""
        one, two = (_end_points(entry.section) for entry in (self, other))
        return bool(((one - two).abs() <= _SAME * (one[1] - one[0]).abs().max()).all())


def common_descriptions(given: PreprocessingSection) -> list[Description]:
    """The given description first, then the other common normalisations in the same colour order.

    Size, padding and kind of output are the given ones'. A given description that is a common one has its name.
    """
    own = Description("as described", given)
    others = []
    for name, section in _COMMON.items():
        entry = Description(
            name,
            replace(given, color="rgb", mean=section.mean, std=section.std, scale=section.scale),
        )
        entry = entry.swapped if given.color == "bgr" else entry
        if own.same_normalisation(entry):
            own = replace(own, name=name)
        else:
            others.append(entry)
    return [own, *others]


def described_network(segmenter: Segmenter) -> NetworkSegmenter | None:
    """The part of a segmenter whose description can be tried: one that runs a network on three colours; else None."""
    inner = segmenter.inner if isinstance(segmenter, CalibratedSegmenter) else segmenter
    if not isinstance(inner, NetworkSegmenter) or inner.preprocessor.section.bands is not None:
        return None
    return inner


def reachable_network(segmenter: NetworkSegmenter) -> nn.Module | None:
    """The network where its layers can be reached; None for TorchScript, ONNX and exported files."""
    try:
        return segmenter.module
    except BldaError:
        return None


def pictures(segmenter: NetworkSegmenter, files: Sequence[ImageSource], pixels: int | None = None) -> list[Tensor]:
    """Read images at the size at which the network gets them.

    Args:
        segmenter: reads them.
        files: the images; those that cannot be read, or hold no data, are left out. Pixels without data become the mean
            of the image's others.
        pixels: cut out the middle where an image has more pixels; cutting keeps the scale, shrinking would not.

    Returns:
        float ``[1, 3, H, W]`` each, RGB in 0..255, on the segmenter's device.
    """
    found = []
    for file in files:
        try:
            array, valid = segmenter.read(file), file.valid_around()
        except BldaError:
            continue
        if valid is not None:
            if not valid.any():
                continue
            array = array.copy()
            array[~valid] = array[valid].mean(axis=0)
        image = torch.from_numpy(array).to(segmenter.device).permute(2, 0, 1)[None].float()
        size = segmenter.preprocessor.section.size
        image = image if size is None else resize_images(image, size)
        found.append(image if pixels is None else _middle(image, pixels))
    return found


def try_description(
    segmenter: NetworkSegmenter, section: PreprocessingSection, images: Sequence[Tensor], *, copies: bool
) -> Fit:
    """Run images with a description, the norms mixed with each image's own statistics.

    Args:
        segmenter: its network is run, and left as it was.
        section: how its input is made; its size is that of the images already.
        images: from `pictures`.
        copies: also run a smaller and a mirrored copy of each image, for the agreement.

    Returns:
        Norm distance and agreement, over all images. Values that are not finite count as the largest distance.

    Raises:
        BldaError: the network cannot be run on images of this size.
    """
    changed = replace(
        segmenter,
        preprocessor=Preprocessor(replace(section, size=None), segmenter.device),
        notes=[],
        found=replace(segmenter.found, meaning_checked=True),
    )
    network = reachable_network(segmenter)
    observed: ObservedNorms | nullcontext[None] = nullcontext()
    mixed: InstanceNorms | nullcontext[None] = nullcontext()
    if network is not None and norm_layers(network):
        observed, mixed = ObservedNorms(network), InstanceNorms(network, NORM_WEIGHT)
    counts = torch.zeros(len(segmenter.classes), len(segmenter.classes), dtype=torch.int64)
    with torch.no_grad():
        with observed, mixed:  # in this order: a norm's input is recorded before it is changed
            classes = [_classes(changed, image) for image in images]
        with mixed:
            for image, own in zip(images, classes if copies else [], strict=False):
                for other in _copies(changed, image, own):
                    counts += count_pairs(own, other, len(counts)).cpu()
    distance = observed.distance if isinstance(observed, ObservedNorms) else None
    if distance is not None and not math.isfinite(distance):
        distance = 1.0
    return Fit(distance, kappa(counts) if bool(counts.any()) else None)


def untrained_norms(network: nn.Module) -> tuple[int, int]:
    """How many of a network's norm layers still hold their initial values, and how many there are.

    A batch norm is initialised with mean 0 and variance 1, every norm with weight 1 and bias 0; training changes them.
    """
    fresh = total = 0
    for layer in network.modules():
        tensors = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
        kept = "running_mean" in tensors and "running_var" in tensors
        if not kept and not ("norm" in type(layer).__name__.lower() and "weight" in tensors and "bias" in tensors):
            continue
        initial = {"running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}
        total += 1
        fresh += all(bool((tensors[name] == value).all()) for name, value in initial.items() if name in tensors)
    return fresh, total


def _copies(segmenter: NetworkSegmenter, image: Tensor, own: Tensor) -> Iterator[Tensor]:
    """Classes ``[h, w]`` predicted on the mirrored and on the smaller copy, as they lie in the image."""
    if own.ndim != 2:
        return
    yield _classes(segmenter, image.flip(-1)).flip(-1)
    sides = [max(_MULTIPLE, round(side * _SMALLER / _MULTIPLE) * _MULTIPLE) for side in image.shape[-2:]]
    try:
        smaller = _classes(segmenter, resize_images(image, (sides[0], sides[1])))
    except BldaError:  # it takes one size only
        return
    yield F.interpolate(smaller[None, None].float(), size=tuple(own.shape), mode="nearest-exact")[0, 0].long()


def _classes(segmenter: NetworkSegmenter, image: Tensor) -> Tensor:
    """Classes ``[h, w]`` (of a classifier ``[]``) at the size of the network's output."""
    return segmenter.forward_logits(image).argmax(dim=1)[0]


def _middle(image: Tensor, pixels: int) -> Tensor:
    height, width = image.shape[-2:]
    shrink = (pixels / (height * width)) ** 0.5
    if shrink >= 1:
        return image
    sides = [min(side, max(_MULTIPLE, round(side * shrink / _MULTIPLE) * _MULTIPLE)) for side in (height, width)]
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
    return image[..., top : top + sides[0], left : left + sides[1]]


def _end_points(section: PreprocessingSection) -> Tensor:
    """What black and white become, ``[2, 3]``, in the order red, green, blue."""
    ends = torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    values = Preprocessor(replace(section, size=None), torch.device("cpu"))(ends)[..., 0, 0]
    return values.flip(1) if section.color == "bgr" else values


def _reversed(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return None if values is None else values[::-1]


@dataclass(frozen=True)
class Tried:
    """A description and how it fits.

    Attributes:
        description: the description.
        fit: how it fits.
        screened: it was measured on the small cut-outs of the screening alone, which ruled it out.
    """

    description: Description
    fit: Fit
    screened: bool = False


@dataclass(frozen=True)
class Comparison:
    """How the common descriptions fit a network.

    Attributes:
        given: the model's own description.
        tried: all, the one that fits best first, those ruled out by the screening last.
        norms: how many batch norms the distance is taken over; 0 where there are none or they cannot be reached.
        late: share of the parameters that stand before the first batch norm.
    """

    given: Description
    tried: tuple[Tried, ...]
    norms: int
    late: float

    @property
    def best(self) -> Tried:
        """The one that fits best."""
        return self.tried[0]

    @property
    def own(self) -> Tried:
        """The given one."""
        return next(entry for entry in self.tried if entry.description.section == self.given.section)

    @property
    def chosen(self) -> Tried:
        """The one to use: the given one where it fits as well as the best or nothing can be decided; else the best."""
        own = self.own
        as_good = self.norms == 0 or (not own.screened and times(own.fit, self.best.fit) <= TIED)
        return own if as_good else self.best

    @property
    def rival(self) -> Tried | None:
        """The best one of another normalisation; None where the screening ruled all of them out."""
        best = self.best.description
        return next(
            (one for one in self.tried if not one.screened and not one.description.same_normalisation(best)), None
        )

    @property
    def told(self) -> bool:
        """Whether the best normalisation can be told apart from the others: another is `CLEAR`ly farther."""
        return self.norms > 0 and (self.rival is None or self.rival.fit.farther(self.best.fit) >= CLEAR)

    @property
    def tied(self) -> tuple[Description, ...]:
        """Descriptions of other normalisations that fit as well as the best."""
        best, found = self.best, []
        for one in self.tried[1:]:
            other = not one.description.same_normalisation(best.description)
            if other and not one.screened and times(one.fit, best.fit) <= TIED:
                found.append(one.description)
        return tuple(found)

    @property
    def colour(self) -> float | None:
        """How many times worse the best normalisation fits with the other colour order; None where it was not tried."""
        swapped = self.best.description.swapped
        other = next((one for one in self.tried if one.description.section == swapped.section), None)
        return None if other is None or other.screened else times(other.fit, self.best.fit)

    @property
    def colour_told(self) -> bool:
        """Whether the colour order can be decided."""
        return self.norms > 0 and self.colour is not None and self.colour >= COLOUR

    @property
    def gain(self) -> float:
        """How many times farther the given normalisation is than the best one, with the better colour order of each."""
        own = [one for one in self.tried if one.description.same_normalisation(self.given)]
        nearest = min(own, key=lambda one: one.fit.distance or 0.0)
        return max(1.0, nearest.fit.farther(self.best.fit))


def compare_descriptions(
    segmenter: NetworkSegmenter,
    files: Sequence[ImageSource],
    monitor: Monitor = SilentMonitor(),  # noqa: B008  # it holds nothing
) -> Comparison:
    """Try the common normalisations and both colour orders on a few of the images.

    Cut-outs of two images rule out what is far off; the rest is measured on larger ones of four images.

    Args:
        segmenter: its network is run, and left as it was.
        files: the images, of which a few are taken, spread evenly.
        monitor: receives the progress.

    Raises:
        BldaError: the network cannot be run, or no image can be read.
        Interrupted: the user asked to stop.
    """
    candidates = common_descriptions(segmenter.preprocessor.section)
    norms, late = _norms_of(segmenter)
    if norms == 0:
        monitor.start("comparing descriptions", len(candidates), unit="descriptions")
        tried = _fits(segmenter, candidates, files, SCREENING, copies=True, advance=advancing(monitor))
        tried.sort(key=lambda one: one.fit.misfit)
        return Comparison(candidates[0], tuple(tried), 0, late)
    both = [order for one in candidates for order in (one, one.swapped)]
    monitor.start("comparing descriptions on small cut-outs", len(both), unit="descriptions")
    screening = _fits(segmenter, both, files, SCREENING, copies=False, advance=advancing(monitor))
    # A normalisation is judged by its better colour order.
    pairs = list(zip(screening[::2], screening[1::2], strict=True))
    better = [min(pair, key=lambda one: one.fit.misfit) for pair in pairs]
    nearest = min(better, key=lambda one: one.fit.misfit).fit
    near = sorted(better[1:], key=lambda one: one.fit.misfit)[:_FINALISTS]
    kept = {better.index(one) for one in (better[0], *near) if one.fit.farther(nearest) <= _RULED_OUT}
    finalists = [order for index in sorted(kept) for order in both[2 * index : 2 * index + 2]]
    monitor.start("comparing those that are left", len(finalists), unit="descriptions")
    final = _fits(segmenter, finalists, files, FINAL, copies=True, advance=advancing(monitor))
    if 0 not in kept:  # shown beside the others, as the model's own
        final += _fits(segmenter, candidates[:1], files, FINAL, copies=False)
    best_first = [final[index] for index in ranked([one.fit for one in final])]
    others = [replace(one, screened=True) for index, one in enumerate(better) if index not in {0, *kept}]
    others.sort(key=lambda one: one.fit.misfit)
    return Comparison(candidates[0], (*best_first, *others), norms, late)


def glance(segmenter: NetworkSegmenter, files: Sequence[ImageSource]) -> Comparison | None:
    """A quick check whether another description fits clearly better than the given one, on cut-outs of two images.

    Args:
        segmenter: its network is run, and left as it was.
        files: the images.

    Returns:
        The comparison of the given description with the best other, if that one fits clearly better; None otherwise,
        and where the network has no batch norms or cannot be run on cut-outs.
    """
    norms, late = _norms_of(segmenter)
    if not tells(segmenter):
        return None
    candidates = common_descriptions(segmenter.preprocessor.section)
    try:
        screening = _fits(segmenter, candidates, files, SCREENING, copies=False)
        best = min(screening[1:], key=lambda one: one.fit.misfit)
        if screening[0].fit.farther(best.fit) < _SUSPICIOUS:
            return None
        final = _fits(segmenter, [best.description, candidates[0]], files, (SCREENING[0], FINAL[1]), copies=False)
    except BldaError:  # reading and running the images will say why
        return None
    clear = final[1].fit.farther(final[0].fit) >= CLEAR
    return Comparison(candidates[0], tuple(final), norms, late) if clear else None


def _fits(
    segmenter: NetworkSegmenter,
    descriptions: Sequence[Description],
    files: Sequence[ImageSource],
    frames: tuple[int, int],
    *,
    copies: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Tried]:
    count, pixels = frames
    images = pictures(segmenter, spread(files, count), pixels)
    if not images:
        raise BldaError("none of the images can be read")
    tried = []
    for one in descriptions:
        tried.append(Tried(one, try_description(segmenter, one.section, images, copies=copies)))
        advance(1)
    return tried


def spread(files: Sequence[ImageSource], count: int) -> list[ImageSource]:
    """Some images from all over a sequence: the middles of so many equal parts."""
    count = min(count, len(files))
    return [files[(2 * index + 1) * len(files) // (2 * count)] for index in range(count)]


def tells(segmenter: NetworkSegmenter) -> bool:
    """Whether the network's batch norms lie early enough for the norm distance to tell descriptions apart."""
    norms, late = _norms_of(segmenter)
    return norms > 0 and late <= LATE


def _norms_of(segmenter: NetworkSegmenter) -> tuple[int, float]:
    """How many batch norms the network has, and the share of its parameters that stand before the first."""
    network = reachable_network(segmenter)
    norms = [] if network is None else list(norm_layers(network).values())
    if network is None or not norms:
        return 0, 0.0
    total, before, found = sum(one.numel() for one in network.parameters()), 0, False
    for layer in network.modules():
        found = found or layer is norms[0]
        before += 0 if found else sum(one.numel() for one in layer.parameters(recurse=False))
    return len(norms), before / max(total, 1)
