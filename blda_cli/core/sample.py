"""A mergeable random sample of pixels with all their logits, for what histograms of single channels cannot tell."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX

SAMPLE_SIZE = 1 << 16
_SMALLEST_STRATUM = 256


@dataclass
class PixelSample:
    """Up to ``capacity`` random pixels of every predicted class.

    Every pixel has a random priority that depends on its image's key and its position alone; the pixels with the
    lowest priorities of each class are kept (a bottom-k sample). What is kept therefore depends on neither the
    order of the images nor how they were divided over processes, and samples add up like counts do. Rare classes
    are kept whole where frequent ones are thinned; :meth:`weights` says how many pixels each kept one stands for.

    Attributes:
        capacity: pixels kept per predicted class.
        seen: int64 ``[C]``, pixels predicted as each class.
        logits: float32 ``[S, C]``, raw.
        predicted: int64 ``[S]``, argmax.
        labels: int64 ``[S]``, :data:`IGNORE_INDEX` where there is none.
        images: int64 ``[S]``, a digest of the image's key.
        priorities: int64 ``[S]``.
    """

    capacity: int
    seen: Tensor
    logits: Tensor
    predicted: Tensor
    labels: Tensor
    images: Tensor
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
            priorities=none,
        )

    def __len__(self) -> int:
        """S."""
        return self.logits.shape[0]

    def update(self, logits: Tensor, predicted: Tensor, labels: Tensor | None, keys: Sequence[str]) -> None:
        """Consider the pixels of a batch.

        Args:
            logits: ``[N, C, *spatial]``.
            predicted: ``[N, *spatial]``, their argmax.
            labels: ``[N, *spatial]`` or None.
            keys: N names, one per image, unique over all updates.
        """
        num_classes = len(self.seen)
        ceiling = self._ceilings()
        parts = [self]
        for index, key in enumerate(keys):
            pixels = predicted[index].reshape(-1).cpu().long()
            generator, image = _image_generator(key)
            priorities = torch.from_numpy(generator.integers(0, 1 << 62, size=len(pixels), dtype=np.int64))
            chosen = (priorities < ceiling[pixels]).nonzero().squeeze(1)
            chosen = chosen[_lowest(pixels[chosen], priorities[chosen], num_classes, self.capacity)]
            where = chosen.to(logits.device)
            parts.append(
                PixelSample(
                    capacity=self.capacity,
                    seen=torch.bincount(pixels, minlength=num_classes),
                    logits=logits[index].reshape(num_classes, -1)[:, where].T.float().cpu(),
                    predicted=pixels[chosen],
                    labels=torch.full_like(chosen, IGNORE_INDEX)
                    if labels is None
                    else labels[index].reshape(-1)[where].long().cpu(),
                    images=torch.full_like(chosen, image),
                    priorities=priorities[chosen],
                )
            )
        self.__dict__.update(_joined(parts).__dict__)

    def __add__(self, other: "PixelSample") -> "PixelSample":
        """The sample of both data sets."""
        return _joined([self, other])

    def weights(self) -> Tensor:
        """Pixels each kept one stands for, float64 ``[S]``."""
        kept = torch.bincount(self.predicted, minlength=len(self.seen))
        return (self.seen.double() / kept.clamp(min=1))[self.predicted]

    def _ceilings(self) -> Tensor:
        """Per class, the priority a pixel must stay below to enter; int64 ``[C]``."""
        full = torch.bincount(self.predicted, minlength=len(self.seen)) >= self.capacity
        highest = torch.zeros_like(self.seen).scatter_reduce(0, self.predicted, self.priorities, "amax")
        return torch.where(full, highest, torch.iinfo(torch.int64).max)


def _joined(parts: Sequence[PixelSample]) -> PixelSample:
    """The sample of several disjoint data sets."""
    first = parts[0]
    predicted = torch.cat([part.predicted for part in parts])
    priorities = torch.cat([part.priorities for part in parts])
    chosen = _lowest(predicted, priorities, len(first.seen), first.capacity)
    return PixelSample(
        capacity=first.capacity,
        seen=torch.stack([part.seen for part in parts]).sum(dim=0),
        logits=torch.cat([part.logits for part in parts])[chosen],
        predicted=predicted[chosen],
        labels=torch.cat([part.labels for part in parts])[chosen],
        images=torch.cat([part.images for part in parts])[chosen],
        priorities=priorities[chosen],
    )


def _lowest(classes: Tensor, priorities: Tensor, num_classes: int, capacity: int) -> Tensor:
    """Indices of the ``capacity`` lowest priorities of every class, sorted by class and priority."""
    by_priority = priorities.argsort()
    order = by_priority[classes[by_priority].argsort(stable=True)]
    counts = torch.bincount(classes, minlength=num_classes)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(order)) - starts[classes[order]]
    return order[rank < capacity]


def _image_generator(key: str) -> tuple[np.random.Generator, int]:
    """An image's random numbers and its digest."""
    digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1
    return np.random.default_rng(digest), digest
