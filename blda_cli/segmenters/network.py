"""A segmenter that runs a network: image -> input -> output -> scores -> logits of the classes."""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blda_cli.data.classes import ClassSet, class_set, numbered_classes
from blda_cli.data.divided_images import DividedImage
from blda_cli.data.source import ImageSource
from blda_cli.data.windows import spread_windows
from blda_cli.errors import BldaError
from blda_cli.segmenters.base import Segmenter, valid_pixels
from blda_cli.segmenters.graphed_passes import GraphedPasses
from blda_cli.segmenters.grouping import Grouping, check_channels, resolve_classes, with_background
from blda_cli.segmenters.inference import average_views, slide, view_of
from blda_cli.segmenters.instance_norms import InstanceNorms, Recorded, norm_layers, pooled
from blda_cli.segmenters.norms import ObservedNorms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.outputs import (
    DOUBTFUL,
    AmbiguousLayoutError,
    OutputMeaning,
    channels_first,
    check_meaning,
    check_scores,
    coverage,
    find_scores,
    fit_scores,
    plain_scores,
)
from blda_cli.segmenters.placement import (
    MULTIPLES,
    PROBE_SIZES,
    Scaling,
    SidesError,
    covered,
    extend,
    multiple_that_runs,
    place,
    scaling_of,
    shared_margin,
)
from blda_cli.segmenters.preprocessing import Preprocessor, pad_to_multiple, resize_images
from blda_cli.segmenters.reasons import (
    LESS_MEMORY,
    InputRefusedError,
    MemoryShortError,
    is_out_of_memory,
    reason,
)
from blda_cli.segmenters.spec import PreprocessingSection, SegmenterSpec

Network = Callable[[Tensor], Any]

_WHOLE_PIXELS = 1 << 24
"""The network runs once over a whole image of at most so many pixels for the norm statistics of its windows."""

_WINDOWS = 64
"""Windows, spread evenly, that the norm statistics of a larger image are measured on: 16 million pixels of 512x512."""

CORRECTION = "blda_correction"
"""Key under which a model's own metadata say how ``blda export`` corrected it."""


@dataclass(frozen=True)
class Port:
    """How a network takes images and gives scores, as found out when it was loaded.

    Attributes:
        read: extracts the scores ``[N, C, h, w]`` or ``[N, C]`` from the network's return value.
        probabilities: the scores are probabilities, whatever ``[preprocessing] output`` says.
        batch: the network takes exactly so many images at a time.
        traced: the network may be a recording of one run, with sizes of that run in it.
    """

    read: Callable[[Any], Tensor] = find_scores
    probabilities: bool = False
    batch: int | None = None
    traced: bool = False


@dataclass
class Found:
    """What is found out about a network while it runs; see `Port` for what is known before.

    Attributes:
        meaning_checked: its scores have been held against what they are said to be.
        scaling: how its output's size follows from its input's; None: by no rule, or not ``probed``.
        probed: it was run on grey images of two sizes for that.
        one_size: it takes the size of the description only; None: no other has been tried.
        multiple_of_copies: what the sides of resized copies of images are padded to multiples of.
        channels_last: outputs whose shape leaves it open are ``[N, h, w, C]``; None: there were none, or unknown.
        turned: an output was ``[N, h, w, C]``.
    """

    meaning_checked: bool = False
    scaling: Scaling | None = None
    probed: bool = False
    one_size: bool | None = None
    multiple_of_copies: int = 1
    channels_last: bool | None = None
    turned: bool = False


@dataclass(kw_only=True)
class NetworkSegmenter(Segmenter):
    """A segmenter that runs a network.

    Attributes:
        network: takes float ``[N, 3, h, w]`` on ``device``. An ``nn.Module`` for the kinds that can be trained.
        preprocessor: makes the network's input from the images.
        port: how it takes images and gives scores.
        meaning: what its channels stand for; None until that is known.
        norm_weight: λ of :class:`blda_cli.segmenters.instance_norms.InstanceNorms`; 1: the network's own norms.
        grouping: makes the classes' logits from those of the outputs; None where they are the same.
        found: what its runs have shown.
        _observed: records norm statistics, within `observed_by`.
        _norms: mix the norms, within `logits`.
        _graphed: replays passes, within `repeating`.
    """

    network: Network
    preprocessor: Preprocessor
    meaning: OutputMeaning | None = None
    grouping: Grouping | None = None
    port: Port = Port()
    norm_weight: float = 1.0
    found: Found = field(default_factory=Found)
    _observed: ObservedNorms | None = None
    _norms: InstanceNorms | None = None
    _graphed: GraphedPasses | None = None

    @property
    def module(self) -> nn.Module:
        """See `Segmenter.module`: kinds ``python`` and ``huggingface`` have one."""
        if self.identity["kind"] in ("python", "huggingface") and isinstance(self.network, nn.Module):
            return self.network
        return super().module

    def mix_norms(self, weight: float) -> None:
        """See `Segmenter.mix_norms`."""
        if weight != 1 and not norm_layers(self.module):
            raise BldaError("the network has no batch norms whose statistics could be mixed with each image's own")
        self.norm_weight = weight

    def forward_logits(
        self,
        images: Tensor,
        size: tuple[int, int] | None = None,
        network: Network | None = None,
        norms: InstanceNorms | None = None,
    ) -> Tensor:
        """Logits of the classes, with gradients: preprocessing, network, outputs, channels, (resizing,) groups.

        Args:
            images: float ``[N, 3, H, W]``, RGB in 0..255, on the network's device.
            size: (height, width) to resize the scores to; None leaves them as the network gives them (with what
                padding it leaves in).
            network: runs in place of ``self.network``: a copy of it, or a wrapper around it.
            norms: that network's instance norms, where they are active: they leave padding out.

        Returns:
            ``[N, C, h, w]``, or ``[N, C]`` of a classifier.

        Raises:
            BldaError: the network's output cannot be scores of the classes.
        """
        return self._logits(self._scores(images, size, network or self.network, norms))

    def read(self, file: ImageSource) -> np.ndarray:
        """See `Segmenter.read`: uint8 ``[H, W, 3]``, RGB."""
        return file.read()

    def logits(
        self,
        arrays: Tensor,
        options: InferenceOptions = InferenceOptions(),  # noqa: B008  # frozen
        valid: Tensor | None = None,
        part: DividedImage | None = None,
    ) -> Tensor:
        """See `Segmenter.logits`; by default whole images, once."""
        pixels = self._pixels(arrays)
        self._norms = None if self.norm_weight == 1 else InstanceNorms(self.module, self.norm_weight)
        # no_grad and not inference_mode: its tensors may not be worked on in place by those who get them.
        try:
            with torch.no_grad(), torch.autocast(self.device.type, _half(self.device), enabled=options.amp):
                if part is not None:
                    return self._logits_of_part(part, pixels, options, valid).detach()
                return self._logits_of_images(pixels, options, valid).detach()
        finally:
            self._norms = None

    def _pixels(self, arrays: Tensor) -> Tensor:
        """Images ``[N, H, W, B]`` as float ``[N, B, H, W]`` on the device."""
        return arrays.to(self.device).permute(0, 3, 1, 2).float()

    def _logits_of_images(self, pixels: Tensor, options: InferenceOptions, valid: Tensor | None) -> Tensor:
        """Logits of whole images."""
        size = (pixels.shape[2], pixels.shape[3])

        def of_view(scale: float, mirrored: bool) -> Tensor:
            window, stride = options.slide, options.stride
            if window is None or stride is None:
                logits = self._logits(self._scores_of_view(pixels, scale, mirrored, valid))
            else:
                view = view_of(pixels, scale, mirrored)
                mask = valid.flip(-1) if mirrored and valid is not None else valid
                with self._normalised_by(lambda norms: self._whole_statistics(view, window, mask, norms)):
                    images, score = _with_mask(view, None if self._observed is None else mask, self._scores_of_window)
                    scores = slide(score, images, window, stride)
                whole = (view.shape[2], view.shape[3])
                logits = self._logits(fit_scores(scores, whole, whole, size))
            return logits.flip(-1) if mirrored and logits.ndim == 4 else logits

        return average_views(of_view, options)

    def _normalised_by(self, measure: Callable[[InstanceNorms], list[Recorded]]) -> AbstractContextManager[None]:
        """Within it windows are normalised by what is measured for all of them, where norms are mixed at all."""
        return nullcontext() if self._norms is None else self._norms.held(measure(self._norms))

    def _logits_of_part(
        self, part: DividedImage, pixels: Tensor, options: InferenceOptions, valid: Tensor | None
    ) -> Tensor:
        """Logits of a part of a large image, from all windows that touch it; each window is scaled and mirrored, so
        that windows lie as on the whole image."""
        context = part.context
        assert context is not None

        def of_view(scale: float, mirrored: bool) -> Tensor:
            def scores_of(window: Tensor, mask: Tensor | None) -> Tensor:
                scores = self._scores_of_view(window, scale, mirrored, mask)
                return scores.flip(-1) if mirrored else scores

            images, score = _with_mask(pixels, None if self._observed is None else valid, scores_of)
            measure = partial(self._statistics_around, part, scale, mirrored, skip=options.on_error == "skip")
            with self._normalised_by(measure):
                return self._logits(slide(score, images, context.window, context.stride, part.core))

        return average_views(of_view, options)

    def _statistics_around(
        self, part: DividedImage, scale: float, mirrored: bool, norms: InstanceNorms, *, skip: bool
    ) -> list[Recorded]:
        """Norm statistics of the large image that this is a part of, by a view of it; computed once in a pass.

        Windows that cannot be read are left out where ``skip`` says so.
        """
        assert part.context is not None
        known: dict[Hashable, list[Recorded]] = part.context.of_whole.get(part.path, dict)
        view = (norms.weight, scale, mirrored)
        if view not in known:
            with norms.recorded() as passes:
                for window in part.spread_windows(_WINDOWS):
                    try:
                        pixels, mask = self.read(window), valid_pixels([window], self.device)
                    except BldaError:
                        if skip:
                            continue  # its part will be named
                        raise
                    self._scores_of_view(self._pixels(torch.from_numpy(pixels)[None]), scale, mirrored, mask)
            if not passes:
                raise BldaError(f"{part.path} cannot be read for the norm statistics of the whole image")
            known[view] = [pooled(passes)]
        return known[view]

    def _scores_of_view(self, images: Tensor, scale: float, mirrored: bool, mask: Tensor | None) -> Tensor:
        """Scores of a view of whole images, at their size: mirrored as the view is; the mask is of the images."""
        size = (images.shape[2], images.shape[3])
        mask = mask.flip(-1) if mirrored and mask is not None else mask
        if not self._can_scale(size, scale):
            return self._scores(view_of(images, scale, mirrored), size, self.network, mask=mask)
        view = view_of(images, 1.0, mirrored)
        try:
            with nullcontext() if self._observed is None else self._observed.attempt():
                return self._scores(view, size, self.network, scale=scale, mask=mask)
        except SidesError as error:
            if scale == 1 or error.multiple <= self.found.multiple_of_copies or not self._free_sides:
                raise
            height, width = self.preprocessor.fed_size(size, scale)
            self.found.multiple_of_copies = error.multiple
        self.note(
            f"resized copies of the images, which choose the norms' weight or are averaged as views, are padded to "
            f"multiples of {self.found.multiple_of_copies}: the network fails on {height}x{width} (--set "
            f"multiple_of={self.found.multiple_of_copies} says so)"
        )
        return self._scores(view, size, self.network, scale=scale, mask=mask)

    @property
    def _free_sides(self) -> bool:
        """Whether the description leaves the sides of the network's input as they are."""
        return self.preprocessor.section.size is None and self.preprocessor.section.multiple_of is None

    def multiple_needed(self, size: tuple[int, int]) -> int | None:
        """What the sides of the network's input need to be multiples of, which its description leaves open.

        The network is run on a grey image whose sides are one short of a multiple of all candidates.

        Args:
            size: about that of the grey image, (height, width).

        Returns:
            The multiple; None where the description has one or a size, the network takes any sides, or no multiple
            helps.
        """
        if not self._free_sides:
            return None
        height, width = (-(-side // MULTIPLES[-1]) * MULTIPLES[-1] - 1 for side in size)
        grey, network = self._grey((height, width)), self._without_hooks()
        try:  # what the scores mean is left out, for which a grey image is no example
            with torch.no_grad():
                silent = replace(self, notes=[], found=replace(self.found, meaning_checked=True))
                silent._scores(grey, grey.shape[2:], network)
        except SidesError as error:
            return error.multiple
        except BldaError:
            return None
        return None

    @contextmanager
    def observed_by(self, norms: ObservedNorms) -> Iterator[None]:
        """See `Segmenter.observed_by`."""
        self._observed = norms
        try:
            with norms:
                yield
        finally:
            self._observed = None

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """See `Segmenter.repeating`."""
        if self._graphed is not None:
            yield
            return
        self._graphed = GraphedPasses()
        try:
            yield
        finally:
            self._graphed.close()
            self._graphed = None

    def check(self, files: Sequence[ImageSource], options: InferenceOptions) -> None:  # noqa: ARG002
        """See `Segmenter.check`; it refuses nothing, but may add a remark."""
        if options.amp and not isinstance(self.network, nn.Module):
            self.note("--amp makes no difference: the network is not run by PyTorch")

    def network_input(self, images: Tensor) -> Tensor:
        """The network's input ``[N, 3, h, w]`` for images, float ``[N, 3, H, W]`` RGB in 0..255."""
        return self._padded(self.preprocessor(images))

    def network_scores(self, images: Tensor) -> Tensor:
        """The network's scores, without gradients.

        Args:
            images: as `network_input` makes them.

        Returns:
            ``[N, K, h, w]`` or ``[N, K]``: all of its channels.

        Raises:
            BldaError: the network fails.
        """
        with torch.no_grad():
            return self._run(self.network, images)

    def _padded(self, images: Tensor, scale: float = 1.0) -> Tensor:
        copy = scale != 1 and self._free_sides
        return pad_to_multiple(images, self.found.multiple_of_copies if copy else self.preprocessor.multiple(scale))

    def _whole_statistics(
        self, view: Tensor, window: tuple[int, int], mask: Tensor | None, norms: InstanceNorms
    ) -> list[Recorded]:
        """Norm statistics of whole images, to normalise their windows by; those of the pixels of a mask, if any."""
        size = (view.shape[2], view.shape[3])
        if self.preprocessor.section.size is None and size[0] * size[1] <= _WHOLE_PIXELS:
            window = size  # else windows: the image is too large, or each of them is resized
        images, score = _with_mask(view, mask, self._scores_of_window)
        with norms.recorded() as passes:
            for rows, columns in spread_windows(size, window, _WINDOWS):
                score(images[..., slice(*rows), slice(*columns)])
        return passes

    def _scores_of_window(self, window: Tensor, mask: Tensor | None) -> Tensor:
        return self._scores(window, window.shape[2:], self.network, mask=mask)

    def _scores(
        self,
        images: Tensor,
        size: Sequence[int] | None,
        network: Network,
        norms: InstanceNorms | None = None,
        scale: float = 1.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Scores of the outputs that are used, resized to ``size`` where it is given.

        Args:
            images: see `forward_logits`.
            size: (height, width), or None.
            network: runs on them.
            norms: the network's instance norms, for which padding and the mask are marked; None: those of `logits`.
            scale: at which the images are run.
            mask: bool ``[N, H, W]``, the pixels that count in norm statistics; None: all.
        """
        assert self.meaning is not None
        margin = self.preprocessor.section.margin
        resized = self.preprocessor(images, scale)
        padded = self._padded(resized, scale)
        fed = padded if margin is None else extend(padded, margin)
        seen = resized if margin is None else fed
        if mask is not None:
            left_out = _left_out(mask, resized.shape[2:])
            mask = (left_out if margin is None else extend(self._padded(left_out, scale), margin))[:, 0] == 0
        shown = seen.shape[2], seen.shape[3]
        watched = nullcontext() if self._observed is None else self._observed.content(shown, mask)
        norms = norms or self._norms
        with watched, nullcontext() if norms is None else norms.content(shown, mask):
            scores = self._run(network, fed, None if mask is not None else shown)
        check_scores(scores, len(padded), self.meaning)
        if not self.found.meaning_checked:  # once, as it waits for the device
            remark = check_meaning(scores, self.meaning)
            self.found.meaning_checked = remark != DOUBTFUL
            if remark is not None and not self.corrected:  # a correction moves probabilities
                self.note(remark)
        scores = self.meaning.used(scores)
        if size is None or scores.ndim == 2:
            return scores
        whole, content, got = ((one.shape[2], one.shape[3]) for one in (padded, resized, scores))
        scaling = self._scaling_for(got, whole)
        if scaling is not None and scaling.unpadded:
            self.note(
                f"the network's output lacks a margin of {scaling.margin} pixels in all, where the nearest scores are "
                f"taken: margin = {scaling.margin} under [preprocessing] mirrors images beyond their borders instead"
            )
            return place(scores, scaling, whole, content, (size[0], size[1]))
        reached = covered(got, whole, scaling)
        if reached != whole:
            self.note(
                f"the network's output still holds the padding of its input to {reached[0]}x{reached[1]}; it is "
                "cut off below and on the right"
            )
        return fit_scores(scores, reached, content, (size[0], size[1]))

    def _scaling_for(self, scores: tuple[int, int], network_input: tuple[int, int]) -> Scaling | None:
        """How output sizes follow from input sizes, where one pair of sizes is ambiguous; None where it is not."""
        plain = coverage(scores, network_input) == network_input
        if scores == network_input or (plain and not self.port.traced):
            return None
        found = self.found
        if not found.probed:
            found.probed, found.scaling = True, self._probe()
        if found.scaling is None and coverage(scores, network_input) is None:
            return shared_margin(scores, network_input)
        return found.scaling

    def _probe(self) -> Scaling | None:
        """Run the network on two grey images; None where it fails on them."""
        network, sizes = self._without_hooks(), []
        try:
            for size in PROBE_SIZES:
                with torch.no_grad():
                    scores = self._run(network, self.preprocessor.normalise(self._grey(size)))
                sizes.append((scores.shape[2], scores.shape[3]))
        except (BldaError, IndexError):  # it does not take them, or classifies
            return None
        return scaling_of((sizes[0], sizes[1]))

    def _can_scale(self, size: tuple[int, int], scale: float) -> bool:
        """Whether the network takes images of a ``size`` at a scale; always, where the description gives no size."""
        section = self.preprocessor.section
        if section.size is None or scale == 1:
            return True
        if self.found.one_size is None:
            grey = self._padded(self.preprocessor(self._grey(size), scale), scale)
            try:  # not what the scores mean, for which a grey image is no example
                self._run(self._without_hooks(), grey if section.margin is None else extend(grey, section.margin))
                self.found.one_size = False
            except MemoryShortError:  # which says nothing about sizes
                raise
            except BldaError:
                height, width = section.size
                self.note(f"the network takes {height}x{width} only: scales change the detail of what it is shown")
                self.found.one_size = True
        return not self.found.one_size

    def _puts_channels_last(self) -> bool | None:
        """Whether the network's output is ``[N, h, w, C]``, by an image whose sides differ; None: that is not known."""
        images = self.preprocessor.normalise(self._grey(PROBE_SIZES[0]))
        try:
            with torch.no_grad():
                scores = plain_scores(
                    self.port.read(self._without_hooks()(images)), self.preprocessor.section.quantised
                )
            return channels_first(scores, self.meaning, images.shape[2:])[1]
        except Exception:  # it takes images of another size alone, and a network may raise anything
            # What PyTorch runs has its channels first, unless it was made to be like others.
            return False if isinstance(self.network, nn.Module) else None

    def _grey(self, size: tuple[int, int]) -> Tensor:
        return torch.full((1, self.preprocessor.section.channels, *size), 127.0, device=self.device)

    def _without_hooks(self) -> Network:
        """A copy of the network in which nobody watches its runs."""
        try:
            network = copy.deepcopy(self.network)
        except Exception:  # what cannot be copied is no module, and has no hooks
            return self.network
        if isinstance(network, nn.Module):
            network.eval()
            for module in network.modules():
                module._forward_pre_hooks.clear()
                module._forward_hooks.clear()
        return network

    def _logits(self, scores: Tensor) -> Tensor:
        assert self.meaning is not None
        logits = self.meaning.logits(scores)
        return logits if self.grouping is None else self.grouping(logits)

    def _run(self, network: Network, images: Tensor, content: tuple[int, int] | None = None) -> Tensor:
        """Run the network; its scores ``[N, C, h, w]`` or ``[N, C]`` in a plain dtype.

        Args:
            network: runs on the images.
            images: its input.
            content: (height, width) of what is no padding, on which mixed norms depend beside the input; None: they
                depend on more than that.
        """
        own = network is self.network
        norms = self._norms if own else None

        def forward(images: Tensor) -> Tensor:
            with norms or nullcontext():
                return self._forward(network, images)

        try:
            if self._graphed is None or content is None or not own or (norms is not None and not norms.plain):
                return forward(images)
            return self._graphed(network, images, forward, None if norms is None else (norms.weight, content))
        except BldaError:
            raise
        except (Exception, SystemExit) as error:  # a network may raise anything
            if is_out_of_memory(error):
                raise MemoryShortError(
                    f"the memory does not suffice for an input of shape {list(images.shape)}: {LESS_MEMORY}"
                ) from error
            multiple = multiple_that_runs(forward, images)
            failure = f"the network fails on an input of shape {list(images.shape)}: {reason(error)}"
            if multiple is not None:
                raise SidesError(
                    f"{failure} (sides that are multiples of {multiple} work: set multiple_of = {multiple} under "
                    f"[preprocessing], or give --set multiple_of={multiple})",
                    multiple,
                ) from error
            raise InputRefusedError(
                f"{failure} (if it takes one size only, give it as size under [preprocessing]; if one number of images "
                "only, export it for any number)"
            ) from error

    @property
    def outputs(self) -> int:
        """How many of the network's channels are used: the first ones."""
        assert self.meaning is not None
        return self.meaning.channels

    @property
    def cut(self) -> bool:
        """Whether the network may have more channels than those."""
        assert self.meaning is not None
        return self.meaning.cut

    @property
    def gives_probabilities(self) -> bool:
        """Whether the network gives probabilities, of which the logarithm is taken."""
        assert self.meaning is not None
        return self.meaning.output == "probabilities"

    @property
    def is_plain(self) -> bool:
        """Whether the network itself gives one channel of logits or probabilities per class, at its input's place."""
        assert self.meaning is not None
        section = self.preprocessor.section
        as_they_are = section.quantised is None and section.margin is None and not self.found.turned
        return as_they_are and self.meaning.output != "sigmoid" and self.meaning.background is None

    def _forward(self, network: Network, images: Tensor) -> Tensor:
        if self.port.batch is None:
            return self.read_scores(network(images), images)
        # A network of a fixed batch: as many full ones as it takes, the last filled up with black.
        parts = []
        for part in images.split(self.port.batch):
            full = torch.cat([part, part.new_zeros(self.port.batch - part.shape[0], *part.shape[1:])])
            parts.append(self.read_scores(network(full), full))
        return torch.cat(parts)[: images.shape[0]]

    def read_scores(self, output: Any, images: Tensor) -> Tensor:
        """Find the scores ``[N, C, h, w]`` or ``[N, C]`` in the network's output for its input ``images``.

        Raises:
            BldaError: there are none, or several outputs could be meant.
        """
        scores = plain_scores(self.port.read(output), self.preprocessor.section.quantised)
        if scores.ndim == 3:  # one channel whose axis was dropped
            scores = scores.unsqueeze(1)
        try:
            scores, turned = channels_first(scores, self.meaning, images.shape[2:])
        except AmbiguousLayoutError:
            if self.found.channels_last is None:
                self.found.channels_last = self._puts_channels_last()
            if self.found.channels_last is None:
                raise
            turned = self.found.channels_last
            scores = scores.permute(0, 3, 1, 2) if turned else scores
        if turned:
            self.found.turned = True
            self.note("the network's output is [N, H, W, C]: it is turned round to [N, C, H, W]")
        return scores


def network_segmenter(
    spec: SegmenterSpec,
    network: Network,
    device: torch.device,
    identity: Mapping[str, Any],
    *,
    port: Port | None = None,
    preprocessing: PreprocessingSection | None = None,
    own: ClassSet | None = None,
    notes: Sequence[str] = (),
    corrected: str | None = None,
) -> NetworkSegmenter:
    """Put a loaded network and its description together.

    Args:
        spec: the description.
        network: the network, on ``device``.
        device: where it is.
        identity: identifies its weights, e.g. by their digest; preprocessing, classes and groups are added here.
        port: how it takes images and gives scores.
        preprocessing: replaces the description's, where the model's own files have it.
        own: the classes the model itself names, used where the description names none.
        notes: remarks for the user.
        corrected: how its predictions were corrected, according to the model's own files.

    Returns:
        The segmenter. Where neither description nor model names the classes, the network is run on a grey image to
        count its channels.

    Raises:
        BldaError: the classes do not fit, or the network cannot be run.
    """
    preprocessing = preprocessing or spec.preprocessing
    _check_bands(network, preprocessing)
    port = port or Port()
    if port.read is find_scores:
        port = replace(port, read=partial(find_scores, head=spec.segmenter.head))
    output = "probabilities" if port.probabilities else preprocessing.output or "logits"
    segmenter = NetworkSegmenter(
        classes=ClassSet((), (), ()),
        identity={"kind": spec.segmenter.kind},
        device=device,
        notes=list(notes),
        adapted_norms=spec.segmenter.adapted_norms,
        corrected=spec.segmenter.corrected or corrected,
        network=network,
        preprocessor=Preprocessor(preprocessing, device),
        port=port,
    )
    if spec.classes.names is not None:
        own = class_set(spec.classes.names)
    elif own is None:
        own = numbered_classes(spec.segmenter.channels or _count_classes(segmenter))
        segmenter.notes.append("the classes have no names: they are numbered; [classes] names gives them names")
    if segmenter.corrected:
        segmenter.notes.append(f"the model is corrected already ({segmenter.corrected})")
    own, background = with_background(own, spec.classes.background)
    segmenter.meaning = OutputMeaning(
        len(own),
        output,
        background,
        cut=spec.segmenter.channels is not None,
        quantised=preprocessing.quantised,
        normalised=not port.probabilities and preprocessing.normalised is not False,
        declared=preprocessing.output is not None,
    )
    check_channels(spec, segmenter.meaning)
    if isinstance(port.read, partial) and not segmenter.meaning.cut:
        segmenter.port = replace(port, read=partial(port.read, channels=segmenter.meaning.channels))
    segmenter.classes, segmenter.grouping = resolve_classes(spec.classes, own)
    segmenter.identity = {
        **identity,
        "preprocessing": _as_json(preprocessing),
        "classes": list(own.names),
        "groups": {name: list(members) for name, members in spec.classes.groups.items()},
        **({"corrected": segmenter.corrected} if segmenter.corrected else {}),
        **({} if spec.segmenter.head is None else {"head": spec.segmenter.head}),
        **({} if background is None else {"background": background}),
    }
    return segmenter


def with_size(section: PreprocessingSection, size: tuple[int, int], why: str) -> tuple[PreprocessingSection, list[str]]:
    """Resize to the one size that a network takes.

    Args:
        section: the preprocessing.
        size: (height, width).
        why: the reason, which begins the sentence of the note.

    Returns:
        The preprocessing, and a note for the user.

    Raises:
        BldaError: the user asks for another size.
    """
    if section.size not in (None, size):
        raise BldaError(f"{why} takes {size[0]}x{size[1]} images only; remove size from [preprocessing]")
    note = f"{why} takes {size[0]}x{size[1]} images only: images are resized to that, logits are resized back"
    return replace(section, size=size), [note]


def _with_mask(
    images: Tensor, mask: Tensor | None, scores: Callable[[Tensor, Tensor | None], Tensor]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Images that carry their mask as a last channel, and what gives scores of a window of them by both."""
    if mask is None:
        return images, lambda window: scores(window, None)
    carrying = torch.cat([images, _left_out(mask, images.shape[2:])], dim=1)
    return carrying, lambda window: scores(window[:, :-1], window[:, -1] == 0)


def _left_out(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask bool ``[N, H, W]`` as an image ``[N, 1, *size]``: above 0 where a resized pixel sees one that is false."""
    return resize_images((~mask).float().unsqueeze(1), (size[0], size[1]))


def _check_bands(network: Network, section: PreprocessingSection) -> None:
    """Refuse a network whose first convolution takes another number of channels than it would be given."""
    if section.mean is not None and len(section.mean) != section.channels:
        raise BldaError(
            f"the model's own mean has {len(section.mean)} numbers for {section.channels} bands: give mean and std "
            "under [preprocessing]"
        )
    if not isinstance(network, nn.Module):
        return
    layers = {name: module.in_channels for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    # The order in which modules are made is mostly, not always, that in which they run.
    if layers and section.channels not in layers.values():
        name, takes = next(iter(layers.items()))
        raise BldaError(
            f"the network's first layer{f' {name}' if name else ''} takes {takes} channels, but would be given "
            f"{section.channels}: name its {takes} bands under [preprocessing] bands"
        )


def _count_classes(segmenter: NetworkSegmenter) -> int:
    """How many classes the network decides between: as many as its channels, but two where it has one."""
    section = segmenter.preprocessor.section
    grey = torch.full((1, section.channels, *(section.size or PROBE_SIZES[0])), 127.0, device=segmenter.device)
    try:
        with torch.no_grad():
            scores = segmenter._run(segmenter.network, segmenter.network_input(grey))
        check_scores(scores, 1, None)
    except BldaError as error:
        raise BldaError(f"cannot count the classes: {error}; or name them under [classes]") from error
    return max(2, scores.shape[1])


def _as_json(section: PreprocessingSection) -> dict[str, Any]:
    """A preprocessing as it is recorded; keys of later versions are included only where they are set."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(section).items()}
    values["output"] = section.output or "logits"
    return {key: value for key, value in values.items() if value is not None or key not in _LATER}


_LATER = ("bands", "range", "bits", "layout", "quantised", "margin", "normalised")


def _half(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cpu" else torch.float16
