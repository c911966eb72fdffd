"""The weight of instance norms, chosen without labels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from blda_cli.core.agreement import agreement, count_pairs, information_gain, mutual_information
from blda_cli.core.choices import LabelSource
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.fitting import Evidence, fit_correction
from blda_cli.core.float64 import float64_device
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.norms import MixedNorms
from blda_cli.core.statistics import LogitStatistics
from blda_cli.data.labels import LabelReader
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters.base import Segmenter, for_pass, valid_pixels, within_core
from blda_cli.segmenters.norms import ObservedNorms, enough_for_norms
from blda_cli.segmenters.options import InferenceOptions

WEIGHTS = (1.0, 0.9, 0.85, 0.8, 0.7, 0.5)
"""The weights that are compared; 0.95 was nowhere better than 0.9 by more than 0.2 mIoU, and worse by up to 4."""

CHOICE_IMAGES = 8
"""Images that they are compared on, spread evenly."""

_SMALLER = 0.75
"""The scale of the copy whose prediction is compared with the image's."""

_COST = 0.05
"""The gain that a weight needs to be chosen, in nats of mutual information per unit below 1. On 21 pairs of a network
and images the weight so chosen was never worse than 1, and at most 2.2 mIoU below the best; see
``tests/benchmarks/README.md``."""

VIEW_IMAGES = 16
"""Images that the weight for averaged views is found on. Of eight drawn images the standard error held ESPNet at dusk
below the better 0.9 in 37 % of the draws; on sixteen it does not, and holds the drawn streets at 0.5 in all draws."""

_TELLING = 0.9
"""Share of the most telling scale's information that a scale above 1 needs: those that lower the scores of averaged
views have 0.76 to 0.88, all others 0.92 and more; see ``tests/benchmarks/README.md``."""

_COMPARED_PIXELS = 1 << 15
"""Most pixels of an image on which the halves of the views are compared."""


def images_for_choice(files: Sequence[ImageSource]) -> tuple[Sequence[ImageSource], Sequence[ImageSource]]:
    """The images, spread evenly, that `choose_weight` is called with: ``files`` and ``more``."""
    chosen = enough_for_norms(files, CHOICE_IMAGES)
    others = [file for file in files if file not in chosen]
    return chosen, enough_for_norms(others, VIEW_IMAGES - CHOICE_IMAGES) if others else ()


def choose_weight(
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    options: InferenceOptions,
    *,
    given: float | None = None,
    labels: LabelReader | None = None,
    advance: Callable[[int], None] = lambda _: None,
    observed: ObservedNorms | None = None,
    more: Sequence[ImageSource] = (),
    choose_scales: bool = False,
) -> MixedNorms:
    """Find the weight with which a network predicts the same for an image and for its smaller copy.

    For every weight each image is run at its size and at three quarters of it. The weight whose two predictions share
    most information (`blda_cli.core.agreement.mutual_information`, over the pixels of all images) is chosen, but the
    weight goes below 1 only for a clear gain: 0.05 nats per unit of the weight.

    Averaged views, of several scales and mirrored, want a weight at least as large. From that weight up, the next one
    is taken as long as two halves of the views share no less information, within one standard error: the plain and the
    mirrored ones, each averaged and aligned by itself.

    Args:
        segmenter: can mix its norms; it is as before afterwards.
        files: the images; `images_for_choice` chooses some of many.
        options: how images are run.
        given: a weight that is taken whatever the comparison, with 1 alone, says.
        labels: reads the images' labels, for the confusion matrices; they have no part in the choice.
        advance: called after every image.
        observed: records the norm statistics of the images at weight 1.
        more: further images, on which averaged views choose their weight, too.
        choose_scales: drop scales above 1 that tell clearly less than the most telling one: whose plain and mirrored
            views share less than nine tenths of its information.

    Raises:
        BldaError: an image or its label cannot be read.
    """
    classes = len(segmenter.classes)
    weights = WEIGHTS if given is None else (1.0, given)
    whole = replace(options, scales=(1.0,), flip=False)
    smaller = replace(whole, scales=(_SMALLER,))
    pairs = {weight: torch.zeros(classes, classes, dtype=torch.int64) for weight in weights}
    confusions = {weight: ConfusionMatrix(classes) for weight in weights}
    moved = dict.fromkeys(weights, 0)
    read: list[ImageSource] = []
    scales: tuple[float, ...] = ()
    maps = False
    try:
        for file, array, around in _read(segmenter, for_pass(files, options), options):
            try:
                truth = None if labels is None else torch.from_numpy(labels(file))[None].to(segmenter.device)
            except BldaError:
                if options.on_error == "stop":
                    raise
                continue
            valid = within_core(file, around)
            if truth is not None and valid is not None and truth.ndim == 3:
                truth = truth[valid]
            own: Tensor | None = None  # the classes as trained: 1 is the first of the weights
            for weight in weights:
                segmenter.mix_norms(weight)
                with segmenter.observed_by(observed) if observed is not None and weight == 1 else nullcontext():
                    one = _classes(segmenter, file, array, whole, around)
                other = _classes(segmenter, file, array, smaller, around)
                pairs[weight] += count_pairs(one, other, classes).cpu()
                own = one if own is None else own
                moved[weight] += int((one != own).sum())
                if truth is not None:
                    confusions[weight].update(truth, one)
                maps = maps or len(one) > 1
            read.append(file)
            advance(1)
        if not read:
            raise BldaError("no image with data could be read, so there is nothing to choose the norms by")
        shared = {weight: mutual_information(table) for weight, table in pairs.items()}
        found = given
        if found is None:
            found = max(weights, key=lambda weight: shared[weight] - _COST * (1 - weight))
        if maps and options.flip and len(options.scales) > 1:
            if choose_scales:
                segmenter.mix_norms(found)
                telling = _telling_scales(segmenter, read, options, advance)
                scales, options = (telling if telling != options.scales else ()), replace(options, scales=telling)
            if given is None:
                found = _raised(segmenter, [*read, *for_pass(more, options)], options, found, advance)
    finally:
        segmenter.mix_norms(1.0)
    agreements = {weight: agreement(table) for weight, table in pairs.items()}
    reported = dict.fromkeys((1.0, found))
    shares = {weight: (pairs[weight].sum(dim=1) / pairs[weight].sum()).tolist() for weight in reported}
    scored = {} if labels is None else {weight: confusions[weight] for weight in reported}
    changed = {weight: count / int(pairs[weight].sum()) for weight, count in moved.items()}
    return MixedNorms(found, len(read), agreements, shared, shares, scored, changed, scales)


def _telling_scales(
    segmenter: Segmenter, files: Sequence[ImageSource], options: InferenceOptions, advance: Callable[[int], None]
) -> tuple[float, ...]:
    """The scales without the enlarging ones whose plain and mirrored views share clearly less than those of another."""
    classes = len(segmenter.classes)
    pairs = {scale: torch.zeros(classes, classes, dtype=torch.int64) for scale in options.scales}
    for file, array, around in _read(segmenter, files, options):
        for scale, table in pairs.items():
            one, other = (
                _half(segmenter, file, array, replace(options, scales=(scale,)), around, mirrored).argmax(dim=1)
                for mirrored in (False, True)
            )
            table += count_pairs(one, other, classes).cpu()
        advance(0)
    shared = {scale: mutual_information(table) for scale, table in pairs.items()}
    least = _TELLING * max(shared.values())
    return tuple(scale for scale in options.scales if scale <= 1 or shared[scale] >= least)


def _raised(
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    options: InferenceOptions,
    weight: float,
    advance: Callable[[int], None],
) -> float:
    """The weight, or a larger one below 1 under which the two halves of the views do not share clearly less."""
    larger_ones = sorted(one for one in WEIGHTS if weight < one < 1)
    if not larger_ones:
        return weight
    best, best_weight = _shared_by_halves(segmenter, files, options, weight, advance), weight
    for larger in larger_ones:
        pairs = _shared_by_halves(segmenter, files, options, larger, advance)
        gain, error = information_gain(pairs, best)
        gain += _COST * (larger - best_weight)
        if gain < -error:
            break
        weight = larger
        if gain > 0:
            best, best_weight = pairs, larger
    return weight


def _shared_by_halves(
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    options: InferenceOptions,
    weight: float,
    advance: Callable[[int], None],
) -> Tensor:
    """Pairs of classes by the plain and by the mirrored views, each averaged and aligned: a table of each image."""
    segmenter.mix_norms(weight)
    classes, device = len(segmenter.classes), float64_device(segmenter.device)
    halves = [LogitStatistics(classes, device=device) for _ in range(2)]
    kept: list[list[Tensor]] = [[], []]
    for file, array, around in _read(segmenter, files, options):
        for mirrored, half, pixels in zip((False, True), halves, kept, strict=True):
            logits = _half(segmenter, file, array, options, around, mirrored).to(device)
            half.update(logits, keys=[file.key])
            pixels.append(logits[..., :: -(-logits.shape[2] // _COMPARED_PIXELS)])
        advance(0)
    settings, predicted = AlignmentSettings(), []
    for half, pixels in zip(halves, kept, strict=True):
        evidence = Evidence(half, half.cells[LabelSource.PSEUDO], norms_adapted=True)
        correction = fit_correction(settings, evidence).to(device)
        predicted.append([correction.predict(logits) for logits in pixels])
    return torch.stack([count_pairs(one, other, classes).cpu() for one, other in zip(*predicted, strict=True)])


def _read(
    segmenter: Segmenter, files: Sequence[ImageSource], options: InferenceOptions
) -> Iterator[tuple[ImageSource, Tensor, Tensor | None]]:
    """Read images that hold data: their arrays ``[1, ...]``, and where these hold data."""
    for file in files:
        try:
            array = torch.from_numpy(segmenter.read(file))[None].to(segmenter.device)
        except BldaError:
            if options.on_error == "stop":
                raise
            continue
        around = valid_pixels([file], segmenter.device)
        valid = within_core(file, around)
        if valid is None or bool(valid.any()):
            yield file, array, around


def _half(
    segmenter: Segmenter,
    file: ImageSource,
    array: Tensor,
    options: InferenceOptions,
    around: Tensor | None,
    mirrored: bool,
) -> Tensor:
    """Logits ``[1, C, K]`` of the pixels that hold data, by the plain views alone or by the mirrored ones."""
    views = replace(options, flip=False, mirrored=mirrored)
    logits, valid = segmenter.file_logits([file], array, views, around)
    return logits.flatten(2) if valid is None else logits[:, :, valid[0]]


def _classes(
    segmenter: Segmenter, file: ImageSource, array: Tensor, options: InferenceOptions, around: Tensor | None
) -> Tensor:
    """Class ids of the pixels that hold data; of a classifier, of the image."""
    logits, valid = segmenter.file_logits([file], array, options, around)
    classes = logits.argmax(dim=1)
    return classes.flatten() if valid is None else classes[valid]
