"""A segmenter that runs a network: image -> input -> output -> scores -> logits of the classes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blda_cli.data.classes import ClassSet, class_set, numbered_classes
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.grouping import Grouping, resolve_classes
from blda_cli.segmenters.inference import average_views, blended, slide
from blda_cli.segmenters.instance_norms import InstanceNorms, Recorded, norm_layers
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.outputs import (
    check_meaning,
    check_scores,
    first_tensor,
    fit_scores,
    log_probabilities,
    padded_size,
)
from blda_cli.segmenters.preprocessing import Preprocessor, pad_to_multiple
from blda_cli.segmenters.reasons import LESS_MEMORY, is_out_of_memory, reason
from blda_cli.segmenters.spec import PreprocessingSection, SegmenterSpec

Network = Callable[[Tensor], Any]

_WHOLE_PIXELS = 1 << 24
"""The network runs once over a whole image of at most so many pixels for the norm statistics of its windows."""

CORRECTION = "blda_correction"
"""Key under which a model's own metadata say how ``blda export`` corrected it."""


@dataclass(frozen=True)
class Port:
    """How a network takes images and gives scores, beyond what the user says.

    Attributes:
        read: finds the scores ``[N, C, h, w]`` or ``[N, C]`` in what the network returns.
        probabilities: the scores are probabilities, whatever ``[preprocessing] output`` says.
        batch: the network takes exactly so many images at a time.
    """

    read: Callable[[Any], Tensor] = first_tensor
    probabilities: bool = False
    batch: int | None = None


@dataclass(kw_only=True)
class NetworkSegmenter(Segmenter):
    """A segmenter that runs a network.

    Attributes:
        network: takes float ``[N, 3, h, w]`` on ``device``. An ``nn.Module`` for the kinds that can be trained.
        preprocessor: makes its input.
        port: how it takes images and gives scores.
        outputs: how many of its channels are used: the first ones.
        cut: whether it may give more than those.
        norm_weight: λ of :class:`blda_cli.segmenters.instance_norms.InstanceNorms`; 1: the network's own norms.
        grouping: makes the classes' logits from those of the outputs; None where they are the same.
    """

    network: Network
    preprocessor: Preprocessor
    outputs: int
    cut: bool = False
    grouping: Grouping | None = None
    port: Port = Port()
    norm_weight: float = 1.0
    _meaning_checked: bool = False

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
            norms: that network's, where they are at work: they leave padding out.

        Returns:
            ``[N, C, h, w]``, or ``[N, C]`` of a classifier.

        Raises:
            BldaError: what the network returns cannot be scores of the classes.
        """
        return self._logits(self._scores(images, size, network or self.network, norms))

    def read(self, file: ImageSource) -> np.ndarray:
        """See `Segmenter.read`: uint8 ``[H, W, 3]``, RGB."""
        return file.read()

    def logits(self, arrays: Tensor, options: InferenceOptions = InferenceOptions()) -> Tensor:  # noqa: B008  # frozen
        """See `Segmenter.logits`; by default whole images, once."""
        pixels = arrays.to(self.device).permute(0, 3, 1, 2).float()
        size = (pixels.shape[2], pixels.shape[3])
        if options.core is not None:
            return self._logits_of_core(pixels, options)

        norms = None if self.norm_weight == 1 else InstanceNorms(self.module, self.norm_weight)

        def of_view(view: Tensor) -> Tensor:
            window, stride = options.slide, options.stride
            if window is None or stride is None:
                return self._logits(self._scores(view, size, self.network, norms))
            with nullcontext() if norms is None else norms.held(self._whole_statistics(view, window, norms)):
                scores = slide(lambda part: self._scores(part, part.shape[2:], self.network), view, window, stride)
            whole = (view.shape[2], view.shape[3])
            return self._logits(fit_scores(scores, whole, whole, size))

        # no_grad and not inference_mode: its tensors may not be worked on in place by those who get them.
        amp = torch.autocast(self.device.type, _half(self.device), enabled=options.amp)
        with torch.no_grad(), amp, norms or nullcontext():
            return average_views(of_view, pixels, options.scales, options.flip).detach()

    def _logits_of_core(self, pixels: Tensor, options: InferenceOptions) -> Tensor:
        """Logits of a part of a map, from all windows that touch it."""
        assert options.slide is not None
        assert options.stride is not None
        assert options.core is not None
        if self.norm_weight != 1:
            raise BldaError("norms mixed with each image's own are not for maps, which are run in parts")
        with torch.no_grad(), torch.autocast(self.device.type, _half(self.device), enabled=options.amp):
            scores = blended(
                lambda part: self._scores(part, part.shape[2:], self.network),
                pixels,
                options.slide,
                options.stride,
                options.core,
            )
            return self._logits(scores).detach()

    def check(self, files: Sequence[ImageSource], options: InferenceOptions) -> None:  # noqa: ARG002
        """See `Segmenter.check`; here there is but a remark."""
        if options.amp and not isinstance(self.network, nn.Module):
            self._note("--amp makes no difference: the network is not run by PyTorch")

    def network_input(self, images: Tensor) -> Tensor:
        """What the network is given of images, float ``[N, 3, H, W]`` RGB in 0..255: ``[N, 3, h, w]``."""
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

    def _padded(self, images: Tensor) -> Tensor:
        return pad_to_multiple(images, self.preprocessor.section.multiple_of or 1)

    def _whole_statistics(self, view: Tensor, window: tuple[int, int], norms: InstanceNorms) -> list[Recorded]:
        """What its batch norms see of whole images, for the windows of these."""
        height, width = window
        if self.preprocessor.section.size is None and view.shape[2] * view.shape[3] <= _WHOLE_PIXELS:
            height, width = view.shape[2], view.shape[3]
        with norms.recorded() as passes:  # window after window where the image is too large, or each is resized
            slide(lambda part: self._scores(part, part.shape[2:], self.network, norms), view, *[(height, width)] * 2)
        return passes

    def _scores(
        self, images: Tensor, size: Sequence[int] | None, network: Network, norms: InstanceNorms | None = None
    ) -> Tensor:
        """Scores of the outputs that are kept, resized to ``size`` where it is given.

        Args:
            images: see `forward_logits`.
            size: (height, width), or None.
            network: runs on them.
            norms: those of the network that are at work, which are told what is padding.
        """
        resized = self.preprocessor(images)
        padded = self._padded(resized)
        with nullcontext() if norms is None else norms.content((resized.shape[2], resized.shape[3])):
            scores = self._run(network, padded)
        check_scores(scores, len(padded), self.outputs, self.cut)
        scores = scores[:, : self.outputs]
        if not self._meaning_checked:  # once, as it waits for the device
            check_meaning(scores.detach(), self.gives_probabilities)
            self._meaning_checked = True
        if size is None or scores.ndim == 2:
            return scores
        covered = (padded.shape[2], padded.shape[3])
        if self.preprocessor.section.multiple_of is None:
            covered = padded_size((scores.shape[2], scores.shape[3]), covered)
            if covered != tuple(padded.shape[2:]):
                self._note(
                    f"the network's output still holds the padding of its input to {covered[0]}x{covered[1]}; it is "
                    "cut off below and on the right"
                )
        return fit_scores(scores, covered, (resized.shape[2], resized.shape[3]), (size[0], size[1]))

    def _logits(self, scores: Tensor) -> Tensor:
        logits = log_probabilities(scores) if self.gives_probabilities else scores
        return logits if self.grouping is None else self.grouping(logits)

    def _run(self, network: Network, images: Tensor) -> Tensor:
        try:
            if self.port.batch is None:
                return self.port.read(network(images))
            # A network of a fixed batch: as many full ones as it takes, the last filled up with black.
            count = images.shape[0]
            parts = []
            for part in images.split(self.port.batch):
                full = torch.cat([part, part.new_zeros(self.port.batch - part.shape[0], *part.shape[1:])])
                parts.append(self.port.read(network(full)))
            return torch.cat(parts)[:count]
        except BldaError:
            raise
        except (Exception, SystemExit) as error:  # a network may raise anything
            if is_out_of_memory(error):
                raise BldaError(
                    f"the memory does not suffice for an input of shape {list(images.shape)}: {LESS_MEMORY}"
                ) from error
            raise BldaError(
                f"the network fails on an input of shape {list(images.shape)}: {reason(error)} "
                "(if it takes one size only, give it as size under [preprocessing])"
            ) from error

    @property
    def gives_probabilities(self) -> bool:
        """Whether the network gives probabilities, of which the logarithm is taken."""
        return self.port.probabilities or self.preprocessor.section.output == "probabilities"

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def network_segmenter(
    spec: SegmenterSpec,
    network: Network,
    device: torch.device,
    identity: Mapping[str, Any],
    *,
    port: Port | None = None,
    preprocessing: PreprocessingSection | None = None,
    own: ClassSet | None = None,
    outputs: int | None = None,
    notes: Sequence[str] = (),
    corrected: str | None = None,
) -> NetworkSegmenter:
    """Put a loaded network and its description together.

    Args:
        spec: the description.
        network: the network, on ``device``.
        device: where it is.
        identity: what tells its weights from others'; preprocessing, classes and groups are added here.
        port: how it takes images and gives scores.
        preprocessing: in place of the description's, where the kind knows more.
        own: the classes the model itself names, used where the description names none.
        outputs: number of the network's channels, where the kind knows it.
        notes: remarks for the user.
        corrected: what the model itself says of how its predictions were corrected.

    Returns:
        The segmenter. Where nobody names the classes, the network is run on a grey image to count its channels.

    Raises:
        BldaError: the classes do not fit, or the network cannot be run.
    """
    preprocessing = preprocessing or spec.preprocessing
    _check_bands(network, preprocessing)
    channels = spec.segmenter.channels
    segmenter = NetworkSegmenter(
        classes=ClassSet((), (), ()),
        identity={"kind": spec.segmenter.kind},
        device=device,
        notes=list(notes),
        adapted_norms=spec.segmenter.adapted_norms,
        corrected=spec.segmenter.corrected or corrected,
        network=network,
        preprocessor=Preprocessor(preprocessing, device),
        outputs=0,
        cut=channels is not None,
        port=port or Port(),
    )
    if spec.classes.names is not None:
        own = class_set(spec.classes.names)
    elif own is None:
        own = numbered_classes(channels or outputs or _count_channels(segmenter))
        segmenter.notes.append("the classes have no names: they are numbered; [classes] names gives them names")
    if segmenter.corrected:
        segmenter.notes.append(f"the model is corrected already ({segmenter.corrected})")
    if channels is not None and channels != len(own):
        raise BldaError(f"channels = {channels}, but {len(own)} classes are named; make them agree")
    segmenter.outputs = len(own)
    segmenter.classes, segmenter.grouping = resolve_classes(spec.classes, own)
    segmenter.identity = {
        **identity,
        "preprocessing": _as_json(preprocessing),
        "classes": list(own.names),
        "groups": {name: list(members) for name, members in spec.classes.groups.items()},
        **({"corrected": segmenter.corrected} if segmenter.corrected else {}),
    }
    return segmenter


def with_size(section: PreprocessingSection, size: tuple[int, int], why: str) -> tuple[PreprocessingSection, list[str]]:
    """Resize to the one size that a network takes.

    Args:
        section: the preprocessing.
        size: (height, width).
        why: what wants it, to begin a sentence with.

    Returns:
        The preprocessing, and a note that says so.

    Raises:
        BldaError: the user asks for another size.
    """
    if section.size not in (None, size):
        raise BldaError(f"{why} takes {size[0]}x{size[1]} images only; remove size from [preprocessing]")
    note = f"{why} takes {size[0]}x{size[1]} images only: images are resized to that, logits are resized back"
    return replace(section, size=size), [note]


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


def _count_channels(segmenter: NetworkSegmenter) -> int:
    grey = torch.full((1, segmenter.preprocessor.section.channels, 256, 256), 127.0, device=segmenter.device)
    try:
        with torch.no_grad():
            scores = segmenter._run(segmenter.network, segmenter.network_input(grey))
    except BldaError as error:
        raise BldaError(f"cannot count the classes: {error}; or name them under [classes]") from error
    check_scores(scores, 1, None, cut=True)
    return scores.shape[1]


def _as_json(section: PreprocessingSection) -> dict[str, Any]:
    """A preprocessing as it is recorded; what came with later versions only where it is given."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(section).items()}
    return {key: value for key, value in values.items() if value is not None or key not in _LATER}


_LATER = ("bands", "range", "layout")


def _half(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cpu" else torch.float16
