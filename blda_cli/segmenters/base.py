"""The segmenter interface: image files in, logits out, whatever the kind of model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.classes import ClassSet
from blda_cli.data.divided_images import DividedImage, in_windows
from blda_cli.data.labels import LabelReader
from blda_cli.data.loader import SkippedFile, load_batches
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.runtime.device import SideStream
from blda_cli.runtime.memory import available_memory
from blda_cli.runtime.read_ahead import one_behind
from blda_cli.segmenters.inference import upload
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.outputs import check_range
from blda_cli.segmenters.reasons import LESS_MEMORY, InputRefusedError, MemoryShortError, is_out_of_memory

if TYPE_CHECKING:
    from blda_cli.segmenters.norms import ObservedNorms  # which imports this module

PART_WINDOW = (512, 512)
"""Height and width of the windows that parts of large images are run by where ``--slide`` gives none."""

_MANY = 16
"""From this many images on, preparing to run them faster pays."""


@dataclass
class LogitBatch:
    """Logits of a few images of one size.

    Attributes:
        files: the N images.
        logits: ``[N, C, H, W]`` float32 (float16/bfloat16 under amp) on the segmenter's device, at the images'
            own size, one channel per class of the segmenter's ``classes`` (groups already applied); ``[N, C]``
            for a classifier.
        labels: ``[N, H, W]`` int16 class ids on the same device, ``IGNORE_INDEX`` where there is none
            (``[N]`` for a classifier); None where no labels are read.
        valid: bool ``[N, H, W]`` on the same device, where there is data; None: everywhere, or a classifier's.
        largest: the largest absolute logit, as float32; None where it is not known.
        aside: context manager; work on the batch within it does not wait for the network, which runs on the next batch.
    """

    files: list[ImageSource]
    logits: Tensor
    labels: Tensor | None = None
    valid: Tensor | None = None
    largest: float | None = None
    aside: Callable[[], AbstractContextManager[None]] = nullcontext

    def known(self, labels: Tensor) -> Tensor:
        """Integers ``[N, H, W]`` of the batch's pixels, ``IGNORE_INDEX`` where there is no data."""
        return labels if self.valid is None else labels.masked_fill(~self.valid, IGNORE_INDEX)


@dataclass
class Segmenter(ABC):
    """A pretrained segmenter, whatever its kind.

    Attributes:
        classes: the classes of the logits it gives, after grouping.
        identity: all that determines its logits, as JSON: kind, path or factory, digest of the weights, preprocessing,
            classes' groups. Two segmenters with equal identities give the same logits.
        device: where its logits live.
        notes: one-line remarks for the user (a fixed input size is handled by resizing, ...).
        adapted_norms: the batch norms hold norm statistics of the target images already.
        corrected: how its predictions were corrected already, in a few words; None: they were not.
        label_encoding: the label encoding that the model's own files name; None where they name none.
    """

    classes: ClassSet
    identity: dict[str, Any]
    device: torch.device
    notes: list[str] = field(default_factory=list)
    adapted_norms: bool = False
    corrected: str | None = None
    label_encoding: str | None = None

    @property
    def module(self) -> nn.Module:
        """The network as a module whose parameters and norms can be changed.

        Raises:
            BldaError: a model of this kind is not one.
        """
        raise self._unchangeable()

    def mix_norms(self, weight: float) -> None:
        """Let every batch norm normalise by ``weight · running + (1 − weight) · each image's own`` statistics.

        See :class:`blda_cli.segmenters.instance_norms.InstanceNorms`. A weight of 1 undoes it.

        Raises:
            BldaError: the network has no batch norms, or a model of this kind cannot change them.
        """
        if weight != 1:
            raise self._unchangeable()

    @contextmanager
    def observed_by(self, norms: "ObservedNorms") -> Iterator[None]:
        """Let norms within ``with`` observe the network; pixels without data do not count.

        Args:
            norms: of its network.
        """
        with norms:
            yield

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Within ``with`` many images are run, and memory may be kept to run those of one size faster."""
        yield

    def note(self, remark: str) -> None:
        """Add a remark for the user, once."""
        if remark not in self.notes:
            self.notes.append(remark)

    def stream(
        self,
        files: Sequence[ImageSource],
        options: InferenceOptions,
        labels: LabelReader | None = None,
        skipped: list[SkippedFile] | None = None,
        *,
        ahead: bool = False,
    ) -> Iterator[LogitBatch]:
        """Run over image files in their order, reading ahead while the network works.

        Args:
            files: the images.
            options: how to run them.
            labels: reads each image's label where given.
            skipped: files passed over under ``options.on_error == "skip"`` are appended here.
            ahead: on CUDA, start the network on the next batch before a batch is yielded; two more batches take memory.
                The consumer works on a batch within its ``aside``. No effect on other devices.

        Yields:
            Batches in the order of ``files``; memory is bounded by one batch and what is read ahead.

        Raises:
            BldaError: an image or label cannot be read, or the network's output is not valid logits (wrong number of
                channels, non-finite, probabilities, class ids).
        """
        self.check(files, options)
        if any(file.is_part for file in files):
            if options.slide is None:
                self.note(
                    f"images of more than 16 million pixels are run in windows of {PART_WINDOW[0]}x{PART_WINDOW[1]}: "
                    "--slide HxW sets another size"
                )
            files = for_pass(files, options)
            # A part is large, and its network takes far longer than its reading: one ahead is enough.
            options = replace(options, workers=1, batch_size=1)
        batches = load_batches(
            files,
            partial(self._read_if_it_fits, options),
            labels,
            batch_size=options.batch_size,
            workers=options.workers,
            on_error=options.on_error,
            skipped=skipped,
        )
        side = SideStream(self.device)
        started = (
            (
                *self.file_logits(batch_files, arrays, options, valid_pixels(batch_files, self.device)),
                *(batch_files, batch_labels, side.mark()),
            )
            for batch_files, arrays, batch_labels in upload(batches, self.device)
        )
        dimensions = 0
        with self.repeating() if len(files) >= _MANY else nullcontext():
            batches_run = one_behind(started) if ahead and side.there else started
            for logits, valid, batch_files, batch_labels, mark in batches_run:
                aside = partial(side.after, mark)
                names = [self.origin(file).location for file in batch_files]
                with aside():
                    largest = check_range(logits, names)
                if dimensions not in (0, logits.ndim):
                    kind = "of a whole image" if logits.ndim == 2 else "per pixel"
                    raise BldaError(f"{names[0]}: its logits are {kind}, unlike those of the images before")
                dimensions = logits.ndim
                _refuse_other_labels(names[0], logits, batch_labels)
                yield LogitBatch(batch_files, logits, batch_labels, valid, largest, aside)

    def _read_if_it_fits(self, options: InferenceOptions, file: ImageSource) -> np.ndarray:
        """Read an image, unless its pixels and logits do not fit into the memory that is left."""
        if not file.is_part:
            size = (0, 0)
            with suppress(BldaError):  # reading will say it
                size = file.size()
            _refuse_too_large(file.location, size, len(self.classes), options)
        return self.read(file)

    def file_logits(
        self, files: Sequence[ImageSource], arrays: Tensor, options: InferenceOptions, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of what was read of images.

        Args:
            files: images of one size, or one part of a large image; see `for_pass`.
            arrays: see `logits`.
            options: see `logits`.
            valid: see `logits`.

        Returns:
            The logits, of a part those of itself alone; and where these pixels hold data, bool ``[N, H, W]``, None:
            everywhere, or a classifier's.

        Raises:
            BldaError: they cannot be computed; the message names the first image.
        """
        name = self.origin(files[0]).location
        try:
            if isinstance(files[0], DividedImage) and files[0].is_part:
                logits = self.logits(arrays, options, valid, files[0])
            else:
                logits = self.logits(arrays, options, valid)
        except BldaError as error:
            kinds = (MemoryShortError, InputRefusedError, BldaError)
            raise next(kind for kind in kinds if isinstance(error, kind))(f"{name}: {error}") from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryShortError(f"{name}: the memory does not suffice: {LESS_MEMORY}") from error
        if logits.ndim == 2:  # of a whole image, whatever pixels of it are there
            return logits, None
        return logits, within_core(files[0], valid)

    @abstractmethod
    def read(self, file: ImageSource) -> np.ndarray:
        """Read the array of an image that :meth:`logits` takes; called from several threads.

        Raises:
            BldaError: it cannot be read.
        """

    @abstractmethod
    def logits(
        self,
        arrays: Tensor,
        options: InferenceOptions,
        valid: Tensor | None = None,
        part: DividedImage | None = None,
    ) -> Tensor:
        """Logits of the classes at the images' own size, without gradients.

        Args:
            arrays: those of :meth:`read` for N images of one size, ``[N, ...]`` on the segmenter's device.
            options: how to run them.
            valid: bool ``[N, H, W]`` of the arrays' size, see `valid_pixels`; other pixels do not count in norm
                statistics.
            part: the part of a large image, with its context, that they are of; None: they are whole images.

        Returns:
            ``[N, C, H, W]``, or ``[N, C]`` of a classifier; of a part, those of the part without its surroundings.

        Raises:
            BldaError: they cannot be computed, or are no logits of the classes.
        """

    def check(self, files: Sequence[ImageSource], options: InferenceOptions) -> None:  # noqa: B027  # most serve all
        """Refuse images or options that this segmenter does not support, before any image is read.

        Raises:
            BldaError: there are some.
        """

    def origin(self, file: ImageSource) -> ImageSource:
        """The file that an image's logits come from: the image itself, or stored logits.

        Raises:
            BldaError: there is none.
        """
        return file

    def _unchangeable(self) -> BldaError:
        return BldaError(
            f"a model of kind {self.identity['kind']} cannot be trained, nor its norms changed: give the network as "
            "module:factory (of a torch.nn.Module) --weights FILE, or a Hugging Face model"
        )


def model_identity(segmenter: Segmenter, inference: InferenceOptions) -> dict[str, Any]:
    """Identity of the logits: the segmenter and the inference options that change them."""
    return {
        **segmenter.identity,
        "inference": {
            "slide": list(inference.slide) if inference.slide else None,
            "stride": list(inference.stride) if inference.stride else None,
            "scales": list(inference.scales),
            "flip": inference.flip,
        },
    }


def for_pass(files: Sequence[ImageSource], options: InferenceOptions) -> Sequence[ImageSource]:
    """The files for a pass over them with these options; whole images are run as they are without large ones beside."""
    if options.slide is None:
        options = replace(options, slide=PART_WINDOW)
    assert options.slide is not None
    assert options.stride is not None
    return in_windows(files, options.slide, options.stride)


def within_core(file: ImageSource, valid: Tensor | None) -> Tensor | None:
    """The image itself of what is read of it, bool ``[N, H, W]``, see `valid_pixels`; None: all of it holds data."""
    if valid is None or file.core is None:
        return valid
    top, left, height, width = file.core
    inner = valid[:, top : top + height, left : left + width]
    return None if bool(inner.all()) else inner


def _refuse_other_labels(name: str, logits: Tensor, labels: Tensor | None) -> None:
    """Refuse labels of pixels for logits of a whole image, and the other way round.

    Raises:
        BldaError: they are such.
    """
    if labels is None or (labels.ndim == 3) == (logits.ndim == 4):
        return
    raise BldaError(
        f"{name}: the model gives one answer for a whole image, but its label is a picture: give a table of key,class "
        "as --labels"
        if logits.ndim == 2
        else f"{name}: the model gives an answer for each pixel, but its label is one class for all: give label "
        "pictures as --labels"
    )


def valid_pixels(files: Sequence[ImageSource], device: torch.device) -> Tensor | None:
    """Where what is read of images holds data, bool ``[N, H, W]``; None: everywhere."""
    masks = [file.valid_around() for file in files]
    if all(mask is None for mask in masks):
        return None
    places = [file.area() for file in files]
    sizes = [(bottom - top, right - left) for (top, bottom), (left, right) in places]
    whole = [np.ones(size, dtype=bool) if mask is None else mask for mask, size in zip(masks, sizes, strict=True)]
    return torch.from_numpy(np.stack(whole)).to(device)


_LARGE = 1 << 22
"""From this many pixels on, whether an image fits into memory is checked."""

_FEATURES = 64
"""Channels at full resolution that a network is assumed to hold in memory while it runs on a whole image."""


def _refuse_too_large(location: str, size: tuple[int, int], classes: int, options: InferenceOptions) -> None:
    """Refuse an image that needs more memory than there is.

    Raises:
        BldaError: it does; the message states its size, the memory it needs and the way out.
    """
    pixels = size[0] * size[1]
    left = available_memory() if pixels >= _LARGE else None
    if left is None:
        return
    needed = pixels * (12 + 8 * classes)  # float32 pixels; logits, and a copy of them
    whole = needed if options.slide else needed + 4 * _FEATURES * pixels
    if whole <= left:
        return
    way = (
        "--slide 1024x1024 runs the network window by window, for which that suffices"
        if needed <= left
        else "cut it into smaller images"
    )
    raise BldaError(
        f"{location} is {size[1]}x{size[0]} (width x height): with the logits of {classes} classes it needs about "
        f"{whole / 2**30:.1f} GiB, and {left / 2**30:.1f} GiB are left; {way}"
    )
