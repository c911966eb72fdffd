"""A mergeable random sample of pixels with all their logits, as histograms of single channels lose their joint
values."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.counting import count_values

SAMPLE_SIZE = 1 << 16
_SMALLEST_STRATUM = 256
_MANY = 1 << 21
_FEW = 1 << 16  # whose logits are copied before it is known which of them enter

# A priority is 31 bits of the position and 18 of the image, which tell apart equal ones of two images.
_TIE_BITS = 18
_PRIORITY_BITS = 31 + _TIE_BITS
MOST_PRIORITY = (1 << _PRIORITY_BITS) - 1
"""The highest priority a pixel can have."""


@dataclass
class PixelSample:
    """Up to ``capacity`` random pixels of every predicted class.

    Every pixel has a random priority that depends on its image's key and its position alone; the pixels with the
    lowest priorities of each class are kept (a bottom-k sample). The kept pixels therefore depend on neither the order
    of the images nor their division over processes, and samples add up as counts do. Rare classes are kept whole where
    frequent ones are thinned; :meth:`weights` gives the number of pixels that each kept one represents.

    Attributes:
        capacity: pixels kept per predicted class.
        seen: int64 ``[C]``, pixels predicted as each class.
        logits: float32 ``[S, C]``, raw.
        predicted: int64 ``[S]``, argmax.
        labels: int64 ``[S]``, :data:`IGNORE_INDEX` where there is none.
        images: int64 ``[S]``, a digest of the image's key.
        positions: float32 ``[S, 2]``, row and column of the pixel's centre as shares of the image's height and width;
            a classifier's image is one pixel. NaN in statistics that did not keep them.
        priorities: int64 ``[S]``.
    """

    capacity: int
    seen: Tensor
    logits: Tensor
    predicted: Tensor
    labels: Tensor
    images: Tensor
    positions: Tensor
    priorities: Tensor

    @classmethod
    def empty(cls, num_classes: int, size: int = SAMPLE_SIZE) -> "PixelSample":
        """Start a sample of about ``size`` pixels of ``num_classes`` classes."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(
            capacity=max(_SMALLEST_STRATUM, size // num_classes),
            seen=torch.zeros(num_classes, dtype=torch.int64),
            logits=torch.zeros(0, num_classes),
            predicted=none,
            labels=none,
            images=none,
            positions=torch.zeros(0, 2),
            priorities=none,
        )

    def __len__(self) -> int:
        """S."""
        return self.logits.shape[0]

    def draw(
        self,
        logits: Tensor,
        predicted: Tensor,
        labels: Tensor | None,
        keys: Sequence[str],
        mask: Tensor | None = None,
    ) -> "PixelSample":
        """Sample a batch; ``self + result`` samples both data sets.

        Args:
            logits: ``[N, C, *spatial]``.
            predicted: ``[N, *spatial]``, their argmax.
            labels: ``[N, *spatial]`` integers, those outside ``[0, C)`` mean none; or None.
            keys: N names, one per image, unique over all batches.
            mask: bool ``[H, W]``, where in one image the pixels lie that are given as ``[1, C, K]``; None: whole images
                are given.
        """
        num_classes, digests = len(self.seen), [image_digest(key) for key in keys]
        # All pixels are examined on their device; only those that may enter are copied from it.
        pixels = predicted.flatten()
        each = len(pixels) // len(keys)
        mixed = _mixed(digests, each if mask is None else mask.numel(), logits.device).flatten()
        mixed = mixed if mask is None else mixed[mask.flatten()]
        seen = count_values(pixels, num_classes)
        entering = _entering(mixed, pixels, seen, self._ceilings(logits.device), self.capacity)
        numbers = [entering, pixels[entering], mixed[entering]]
        if labels is not None:
            numbers.append(_labels(labels.flatten()[entering], num_classes))
        of_entering = torch.stack([one.int() for one in numbers])
        flat = logits.reshape(len(keys), num_classes, each)
        few = logits.device.type != "cpu" and len(entering) <= _FEW
        (where, classes, low, *truth), seen, values = _copied(of_entering, seen, _rows(flat, entering) if few else None)
        images = torch.tensor(digests)[where // each]
        priorities = (low << _TIE_BITS) | (images & ((1 << _TIE_BITS) - 1))
        chosen = _lowest(classes, priorities, num_classes, self.capacity)
        place = where[chosen] % each
        return PixelSample(
            capacity=self.capacity,
            seen=seen,
            logits=_rows(flat, entering[chosen.to(logits.device)]).cpu() if values is None else values[chosen],
            predicted=classes[chosen],
            labels=truth[0][chosen] if truth else torch.full_like(chosen, IGNORE_INDEX),
            images=images[chosen],
            positions=_positions(place, predicted.shape[1:])
            if mask is None
            else _positions(mask.flatten().nonzero().squeeze(1).cpu()[place], mask.shape),
            priorities=priorities[chosen],
        )

    def __add__(self, other: "PixelSample") -> "PixelSample":
        """The sample of both data sets."""
        return join([self, other])

    def among(self, wanted: Tensor) -> "PixelSample":
        """The sample of some of the pixels, e.g. those with a label.

        Args:
            wanted: bool ``[S]``.
        """
        predicted = self.predicted[wanted]
        left = torch.bincount(predicted, minlength=len(self.seen)) / torch.bincount(
            self.predicted, minlength=len(self.seen)
        ).clamp(min=1)
        return PixelSample(
            capacity=self.capacity,
            seen=(self.seen.double() * left).round().long(),
            logits=self.logits[wanted],
            predicted=predicted,
            labels=self.labels[wanted],
            images=self.images[wanted],
            positions=self.positions[wanted],
            priorities=self.priorities[wanted],
        )

    def weights(self) -> Tensor:
        """Number of pixels that each kept one represents, float64 ``[S]``."""
        kept = torch.bincount(self.predicted, minlength=len(self.seen))
        return (self.seen.double() / kept.clamp(min=1))[self.predicted]

    def _ceilings(self, device: torch.device) -> Tensor:
        """Per class, the highest of a position's 31 bits with which a pixel may enter; int32 ``[C]``."""
        if device not in self._ceilings_there:  # brought there once, not for every batch
            full = torch.bincount(self.predicted, minlength=len(self.seen)) >= self.capacity
            highest = torch.zeros_like(self.seen).scatter_reduce(0, self.predicted, self.priorities, "amax")
            ceilings = (torch.where(full, highest, (1 << _PRIORITY_BITS) - 1) >> _TIE_BITS).int()
            self._ceilings_there[device] = ceilings.to(device)
        return self._ceilings_there[device]

    @cached_property
    def _ceilings_there(self) -> dict[torch.device, Tensor]:
        return {}


def join(parts: Sequence[PixelSample]) -> PixelSample:
    """The sample of several disjoint data sets."""
    first = parts[0]
    predicted = torch.cat([part.predicted for part in parts])
    priorities = torch.cat([part.priorities for part in parts])
    chosen = _lowest(predicted, priorities, len(first.seen), first.capacity)
    return PixelSample(
        capacity=first.capacity,
        seen=torch.stack([part.seen for part in parts]).sum(dim=0),
        logits=torch.cat([part.logits for part in parts]).index_select(0, chosen),
        predicted=predicted.index_select(0, chosen),
        labels=torch.cat([part.labels for part in parts]).index_select(0, chosen),
        images=torch.cat([part.images for part in parts]).index_select(0, chosen),
        positions=torch.cat([part.positions for part in parts]).index_select(0, chosen),
        priorities=priorities.index_select(0, chosen),
    )


def _positions(pixels: Tensor, shape: Sequence[int]) -> Tensor:
    """Where pixels, numbered row by row, lie in an image ``[H, W]``; of any other shape as in one row; ``[S, 2]``."""
    height, width = shape if len(shape) == 2 else (1, math.prod(shape))
    rows_columns = torch.stack([pixels // width, pixels % width], dim=1)
    return (rows_columns + 0.5) / torch.tensor([height, width])


def _entering(mixed: Tensor, pixels: Tensor, counts: Tensor, ceiling: Tensor, capacity: int) -> Tensor:
    """Indices of the pixels that may enter: those with numbers up to their class's ceiling, int32 ``[C]``.

    Of very many pixels only so many of each class that the lowest ``capacity`` are among them, to save memory.
    """
    if len(pixels) > _MANY:
        lower = (4 * capacity / counts.clamp(min=1).double() * (1 << 31)).clamp(max=(1 << 31) - 1).int()
        found = (mixed <= torch.minimum(ceiling, lower).index_select(0, pixels.int())).nonzero().squeeze(1)
        if bool(((lower >= ceiling) | (count_values(pixels[found], len(ceiling)) >= capacity)).all()):
            return found
    return (mixed <= ceiling.index_select(0, pixels.int())).nonzero().squeeze(1)


def _lowest(classes: Tensor, priorities: Tensor, num_classes: int, capacity: int) -> Tensor:
    """Indices of the ``capacity`` lowest priorities of every class, sorted by class and priority."""
    # One key for both; numpy's stable sort is quick on runs that are sorted already, as samples are.
    keys = (classes << _PRIORITY_BITS) | priorities
    order = torch.from_numpy(np.argsort(keys.numpy(), kind="stable"))
    counts = torch.bincount(classes, minlength=num_classes)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - starts.repeat_interleave(counts)
    return order[rank < capacity]


def _labels(values: Tensor, num_classes: int) -> Tensor:
    return torch.where((values >= 0) & (values < num_classes), values, IGNORE_INDEX)


def image_digest(key: str) -> int:
    """Digest of an image's key, in [0, 2⁶³), which names a pixel's image in :attr:`PixelSample.images`."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> 1


def _rows(logits: Tensor, pixels: Tensor) -> Tensor:
    """The logits of some pixels, counted through the images ``[N, C, P]``: float32 ``[K, C]``."""
    each = logits.shape[2]
    return logits[pixels.div(each, rounding_mode="floor"), :, pixels % each].float()


def _copied(numbers: Tensor, seen: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Copies on the CPU, made by one copy so that it waits for the device once.

    Args:
        numbers: int32 ``[R, K]``.
        seen: int64 ``[C]``, below 2³¹.
        logits: float32 ``[K, C]``; None: none.

    Returns:
        The same, the numbers as int64.
    """
    if numbers.device.type == "cpu":
        return numbers.long(), seen, logits
    rows, found = numbers.shape
    words = [seen.int(), numbers.flatten(), *([] if logits is None else [logits.flatten().view(torch.int32)])]
    copied = torch.cat(words).cpu()
    seen, numbers, values = copied.split([len(seen), rows * found, len(copied) - len(seen) - rows * found])
    own = None if logits is None else values.view(torch.float32).view(logits.shape)
    return numbers.view(rows, found).long(), seen.long(), own


def _mixed(images: Sequence[int], pixels: int, device: torch.device) -> Tensor:
    """Random numbers of the positions in images of these digests, int32 ``[N, P]`` in [0, 2³¹): the same everywhere.

    The finaliser of MurmurHash3 (Appleby, 2011), on the position counted from a number of the image's own.
    """
    positions = torch.arange(pixels, dtype=torch.int32, device=device)
    rows = [positions + (image >> _TIE_BITS) % (1 << 31) for image in images]
    values = rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)
    values.bitwise_xor_((values >> 16) & 0xFFFF).mul_(-0x7A143595)
    values.bitwise_xor_((values >> 13) & 0x7FFFF).mul_(-0x3D4D51CB)
    return values.bitwise_xor_((values >> 16) & 0xFFFF).bitwise_and_(0x7FFFFFFF)
