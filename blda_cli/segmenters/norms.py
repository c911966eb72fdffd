"""Norm statistics of the target images (Li et al., "Adaptive Batch Normalization", Pattern Recognition 2018).

Nothing is trained: only the means and variances that the layers normalise by are replaced.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from blda_cli.core.norms import ChannelMoments, MixedNorms, Norms, blend, hellinger
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.instance_norms import BUFFERS, NormHooks, norm_layers
from blda_cli.segmenters.options import InferenceOptions

IMAGES = 32
"""Images that norm statistics are measured on, spread evenly; eight did as well."""

FEW_IMAGES = 8
"""Images that the norm distance is measured on."""

_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, without their whole part, are spread evenly over 0 to 1 whichever of them are taken."""

_ROWS = 16
"""Of a feature map with more rows, at least this many are read, and fewer than twice as many."""


def has_norms(segmenter: Segmenter) -> bool:
    """Whether a segmenter has norms whose statistics can be replaced."""
    try:
        return bool(norm_layers(segmenter.module))
    except BldaError:
        return False


def enough_for_norms(files: Sequence[ImageSource], count: int = IMAGES) -> Sequence[ImageSource]:
    """``count`` images spread evenly, enough for norm statistics; of these those that hold data, if any."""
    chosen = _turned(files)[:: -(-len(files) // count)]
    return [file for file in chosen if _holds_data(file)] or chosen


def _turned(files: Sequence[ImageSource]) -> Sequence[ImageSource]:
    """The files, the parts of large images each beginning at another one: at equal steps not all are, say, sky."""
    images: dict[str, list[ImageSource]] = {}
    for file in files:
        images.setdefault(file.labelled_as, []).append(file)
    first = [int(_GOLDEN * number % 1 * len(parts)) for number, parts in enumerate(images.values())]
    return [one for parts, at in zip(images.values(), first, strict=True) for one in (*parts[at:], *parts[:at])]


def _holds_data(file: ImageSource) -> bool:
    try:
        valid = file.valid()
    except BldaError:  # which reading will say
        return True
    return valid is None or bool(valid.any())


def take_norms(
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    options: InferenceOptions,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> Norms | None:
    """Measure norm statistics on images and blend them with the network's own.

    The network's own count as as many images as are given, or as eight where there are fewer: mixed evenly, scores rose
    most and fell least, both for networks as they were published and for networks after fine-tuning.

    The images are run one by one, as in later passes. Meanwhile every norm normalises by the image's own statistics, so
    that the norms behind it get the input that they will get once all are replaced. A norm that the images do not
    reach, or that gets a single value, keeps its own statistics.

    Args:
        segmenter: its network is as before afterwards.
        files: the images; :func:`enough_for_norms` chooses some of many.
        options: how they are run.
        advance: called after every image.

    Returns:
        The norm statistics; None where the network has no batch norms.

    Raises:
        BldaError: the network's norms cannot be changed, or an image cannot be read.
    """
    if not norm_layers(segmenter.module):
        segmenter.notes.append("the network has no batch norms that could take the target's statistics")
        return None
    images = 0
    replaced = _ReplacedNorms(segmenter.module)
    with segmenter.observed_by(replaced):
        for batch in segmenter.stream(files, replace(options, batch_size=1), skipped=[]):
            images += len(batch.files)
            advance(len(batch.files))
    if images == 0:
        raise BldaError("no image could be read, so there is nothing to average")
    source_images = max(8, images)
    averages = {
        f"{name}.{kind}".lstrip("."): blend(one, other, source_images, images).float()
        for name, (source, target) in replaced.averages().items()
        for kind, one, other in zip(BUFFERS, source, target, strict=True)
    }
    return Norms(averages, images, source_images)


class ObservedNorms(NormHooks):
    """Records the statistics of the input of a network's batch norms within ``with``, without changing the network.

    It costs little: some twenty rows of each feature map are read.

    Example:
        >>> import torch
        >>> from blda_cli import ObservedNorms
        >>> network = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).eval()
        >>> images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> with ObservedNorms(network) as norms:
        ...     _ = network(images)
        >>> norms.distance < 0.01  # as in training: mean 0, variance 1
        True
        >>> with ObservedNorms(network) as norms:
        ...     _ = network(images + 2)
        >>> norms.distance > 0.1
        True

    Raises:
        BldaError: on entry, where a batch norm is in training mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._norms = norm_layers(network)
        self._own = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in self._norms.items()}
        self._moments = {name: ChannelMoments() for name in self._norms}

    def __enter__(self) -> Self:
        learning = [name for name, norm in self._norms.items() if isinstance(norm, _BatchNorm) and norm.training]
        if learning:
            raise BldaError(f"the batch norm {learning[0]!r} is in training mode: call network.eval() first")

        def observer(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _, inputs: self._see(name, inputs[0])

        self._hooks = [norm.register_forward_pre_hook(observer(name)) for name, norm in self._norms.items()]
        self._hooks.append(self._network.register_forward_pre_hook(self._begin))
        return self

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Forget what is seen within ``with`` if that raises: a network that fails has reached a part of its norms."""
        before = {name: replace(seen) for name, seen in self._moments.items()}
        try:
            yield
        except BaseException:
            self._moments = before
            raise

    def _counted(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """What lies over the image in the input of a norm, and which positions of it count; None: all.

        Without a mask padding counts, too.
        """
        return (values, None) if self._content.mask is None else self._content.within(values, self._input)

    def _see(self, name: str, values: Tensor) -> None:
        values, counted = self._counted(values.detach())  # the graph of a loop with gradients is not kept
        # Neighbouring rows are nearly redundant. Not from the border, which padding affects.
        step = max(1, values.shape[2] // _ROWS) if values.ndim == 4 else 1
        rows = slice(step // 2, None, step)
        if counted is not None:
            values = values[:, :, rows].movedim(1, -1)[counted[:, rows]]
        elif step > 1:
            values = values[:, :, rows]
        if len(values):
            self._moments[name].update(values)

    def averages(self) -> dict[str, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
        """Means and variances, float64 ``[channels]``, the network's own and the measured ones, of every norm that
        ran."""
        return {
            name: (
                (self._own[name][0].cpu().double(), self._own[name][1].cpu().double()),
                (torch.as_tensor(seen.mean), seen.variance),
            )
            for name, seen in self._moments.items()
            if seen.count > 1
        }

    @property
    def shift(self) -> float:
        """Former name of :attr:`distance`."""
        warnings.warn("ObservedNorms.shift is called distance now", DeprecationWarning, stacklevel=2)
        return self.distance

    @property
    def distance(self) -> float:
        """The norm distance: how far the measured statistics lie from the network's own; 0 where no norm ran.

        The mean of :func:`blda_cli.core.norms.hellinger` over all channels of all norms; from
        :data:`blda_cli.core.norms.SHIFTED` on the images are out of domain.
        """
        distances = [hellinger(*source, *target) for source, target in self.averages().values()]
        return float(torch.cat(distances).mean()) if distances else 0.0


class _ReplacedNorms(ObservedNorms):
    """Within ``with`` every norm normalises each batch by the batch's statistics; afterwards the network is as
    before."""

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for name, norm in self._norms.items():
            _put(norm, *self._own[name])

    def _see(self, name: str, values: Tensor) -> None:
        values, counted = self._counted(values)
        if counted is not None:
            values = values.movedim(1, -1)[counted]
        mean, variance = self._moments[name].update(values) if len(values) else self._own[name]
        if values.numel() > values.shape[1] or not len(values):
            _put(self._norms[name], mean, variance)


def use_norms(segmenter: Segmenter, norms: Norms | MixedNorms | None) -> None:
    """Put norm statistics into a network, or let it mix its norms; its identity includes this from then on.

    Args:
        segmenter: is changed.
        norms: from :func:`take_norms` or :func:`blda_cli.segmenters.norm_choice.choose_weight` for the same network;
            None changes nothing.

    Raises:
        BldaError: they are of another network, or the network cannot mix its norms.
    """
    if norms is None:
        return
    if isinstance(norms, MixedNorms):
        segmenter.mix_norms(norms.weight)
        if norms.identity is not None:
            segmenter.identity = {**segmenter.identity, "norms": norms.identity}
        if norms.identity is not None or norms.agreements:
            segmenter.note(f"batch norms: {norms}")
        return
    put_norms(segmenter.module, norms)
    segmenter.identity = {**segmenter.identity, "norms": norms.identity}
    segmenter.note(
        f"batch norms: statistics of {norms.images} target images, the network's own counting as {norms.source_images}",
    )


def put_norms(network: nn.Module, norms: Norms) -> None:
    """Put norm statistics into a network's batch norms.

    Args:
        network: is changed.
        norms: from :func:`take_norms` for the same network.

    Raises:
        BldaError: they are of another network.
    """
    own = {
        f"{name}.{kind}".lstrip("."): getattr(norm, kind)
        for name, norm in norm_layers(network).items()
        for kind in BUFFERS
    }
    foreign = [name for name, values in norms.averages.items() if name not in own or own[name].shape != values.shape]
    if foreign:
        raise BldaError(f"the norms of the statistics do not fit the network: it has no {foreign[0]} of that size")
    for name, values in norms.averages.items():
        own[name].copy_(values)


def hold_norms(network: nn.Module) -> None:
    """Freeze the norm statistics of a network that is otherwise in training mode: norms normalise by them,
    unchanged."""
    for norm in norm_layers(network).values():
        norm.eval()


def _put(norm: Any, mean: Tensor, variance: Tensor) -> None:
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
