"""Training samples: one source and one target crop with their random draws each, and batches of them."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.finetuning.data.augmentation import Augmentation
from blda_cli.finetuning.data.labelled import Labelled
from blda_cli.finetuning.data.mixing import block_mask, class_masks
from blda_cli.finetuning.data.rare_classes import ImageDraws, crop_with, random_crop
from blda_cli.finetuning.settings import Settings, TrainingSettings
from blda_cli.runtime.monitor import Monitor
from blda_cli.runtime.read_ahead import read_ahead
from blda_cli.runtime.shards import current_shard

_CACHE_BYTES = 1 << 30

_CROP_STEP = 32
"""The default crop is reduced in steps of this many pixels; all common networks take multiples of it."""


@dataclass(frozen=True)
class Crop:
    """Where a training crop lies in its image.

    Attributes:
        file: the image.
        image_size: (height, width) of the whole image.
        top: first row.
        left: first column.
        size: (height, width) of the crop.
        mirrored: it was mirrored left to right after it was cut.
    """

    file: ImageSource
    image_size: tuple[int, int]
    top: int
    left: int
    size: tuple[int, int]
    mirrored: bool

    def cut(self, whole: np.ndarray) -> np.ndarray:
        """Cut the crop out of an array ``[H, W, ...]`` of the image's size."""
        part = whole[self._rows, self._columns]
        return part[:, ::-1] if self.mirrored else part

    def cut_map(self, whole: Tensor) -> Tensor:
        """The same of a tensor ``[..., H, W]``."""
        part = whole[..., self._rows, self._columns]
        return part.flip(-1) if self.mirrored else part

    @property
    def _rows(self) -> slice:
        return slice(self.top, self.top + self.size[0])

    @property
    def _columns(self) -> slice:
        return slice(self.left, self.left + self.size[1])


Sample = dict[str, np.ndarray | Crop | Tensor]
"""The fields of one crop pair's `Batch`, without the batch dimension; ``class_order`` in place of ``pasted``."""


@dataclass
class Batch:
    """N source and N target crops with their random draws, on the device.

    Attributes:
        source_images: float32 ``[N, 3, h, w]``, RGB in 0..255.
        source_labels: int64 ``[N, h, w]``.
        target_images: float32 ``[N, 3, h, w]``.
        target_weighed: float32 ``[N, h, w]``, 0 where pseudo-labels have no weight: rows that are left out, and pixels
            without data.
        pasted: bool ``[N, h, w]``, where ClassMix takes the source.
        tone, color, blur: of the mixed images' augmentation, see `augment`.
        kept: bool ``[N, h, w]``, where masked images stay.
        masked_tone, masked_color, masked_blur: of the masked images' augmentation.
        source_crops: where the N source crops are from.
        target_crops: where the N target crops are from.
        target_wholes: the whole images of the target crops, float32 ``[3, H, W]``; empty where none are wanted.
    """

    source_images: Tensor
    source_labels: Tensor
    target_images: Tensor
    target_weighed: Tensor
    pasted: Tensor
    tone: Tensor
    color: Tensor
    blur: Tensor
    kept: Tensor
    masked_tone: Tensor
    masked_color: Tensor
    masked_blur: Tensor
    source_crops: list[Crop]
    target_crops: list[Crop]
    target_wholes: list[Tensor] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        """The images the crops are from, source and target."""
        return [crop.file.location for crop in self.source_crops + self.target_crops]

    def to(self, device: torch.device) -> "Batch":
        """On the device; from pinned memory without waiting, on CUDA."""

        def move(value: Tensor) -> Tensor:
            return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)

        moved: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                value = move(value)
                if one.name.endswith("_images"):
                    value = value.permute(0, 3, 1, 2).float()
                elif one.name.endswith("_labels"):
                    value = value.long()
            elif one.name == "target_wholes":
                value = [move(whole).permute(2, 0, 1).float() for whole in value]
            moved[one.name] = value
        return Batch(**moved)


class Sampler:
    """Draws samples; each is a function of the seed and its number alone, so a checkpoint needs no state of it.

    Labelled images that fade are drawn at first as often as they are meant to be, and less and less, down to never at
    the run's end; others take their place.

    Attributes:
        source: the labelled images.
    """

    def __init__(
        self,
        source: Labelled,
        target: Sequence[ImageSource],
        class_pixels: np.ndarray,
        settings: Settings,
        *,
        wholes: bool = False,
    ) -> None:
        """Set up the data that samples are drawn from.

        Args:
            source: the labelled images.
            target: images of the target domain.
            class_pixels: pixels of each class in every source image, int64 ``[images, C]``.
            settings: of the run.
            wholes: batches hold the whole target images, too.
        """
        self._wholes = wholes
        self.source = source
        self._target = target
        self._settings = settings
        self._classes = class_pixels.shape[1]
        training, drawn = settings.training, source.drawn
        self._samples = training.iterations * training.accumulate * training.batch_size * current_shard().world
        self._draws = ImageDraws(class_pixels, drawn, settings)
        self._fading = {index for index in drawn if source.files[index].location in source.fading}
        self._lasting = self._draws
        if self._fading:
            self._lasting = ImageDraws(class_pixels, [index for index in drawn if index not in self._fading], settings)
        cache = ReadingCache(_CACHE_BYTES)
        self._image = cache.reading(lambda file: file.read())
        self._labels = cache.reading(source.labels)

        def weighed(file: ImageSource) -> np.ndarray:
            valid = file.valid()
            counted = np.ones(file.size(), dtype=bool) if valid is None else valid.copy()
            first, last = settings.host.ignore_rows
            counted[:first] = counted[len(counted) - last :] = False
            return counted

        self._weighed = cache.reading(weighed)

    def prefer(self, classes: Sequence[Sequence[int]]) -> None:
        """Draw some source images for these classes, those of the first group first; for none, as before."""
        for draws in {self._draws, self._lasting}:  # one where nothing fades
            draws.prefer(classes)

    def draw(self, number: int) -> Sample:
        """The fields of one crop pair's `Batch`, without the batch dimension."""
        settings, host = self._settings, self._settings.host
        generator = np.random.default_rng([settings.training.seed, number])
        crop = settings.training.crop
        index, wanted = self._draws.draw(generator)
        if index in self._fading and generator.random() < number / self._samples:
            index, wanted = self._lasting.draw(generator)
        labels = self._labels(self.source.files[index])
        if wanted is None:
            top, left = random_crop(generator, labels.shape, crop)
        else:
            top, left = crop_with(generator, labels, wanted, crop)
        mirrored = generator.random() < host.flip
        source_crop = Crop(self.source.files[index], labels.shape, top, left, crop, mirrored)
        source_labels = source_crop.cut(labels)

        target_file = self._target[int(generator.integers(len(self._target)))]
        whole = self._image(target_file)
        top, left = random_crop(generator, whole.shape, crop)
        mirrored = generator.random() < host.flip
        target_crop = Crop(target_file, whole.shape[:2], top, left, crop, mirrored)
        weighed = target_crop.cut(self._weighed(target_file)).astype(np.float32)

        mixed = Augmentation.draw(generator, host)
        masked = Augmentation.draw(generator, host)
        values = np.arange(IGNORE_INDEX, self._classes)
        return {
            "source_images": source_crop.cut(self._image(source_crop.file)),
            "source_labels": source_labels,
            "target_images": target_crop.cut(whole),
            "target_weighed": weighed,
            "class_order": generator.permutation(values) if host.classmix else np.zeros(0),
            **mixed.fields(""),
            "kept": block_mask(generator, crop, host.mask_block, host.mask_ratio),
            **masked.fields("masked_"),
            "source_crops": source_crop,
            "target_crops": target_crop,
            **({"target_wholes": torch.from_numpy(whole)} if self._wholes else {}),
        }

    def batches(self, numbers: Iterator[list[int]], workers: int) -> Iterator[Batch]:
        """Batches on the CPU, drawn ahead by threads.

        Args:
            numbers: the samples of each batch.
            workers: threads.
        """
        size = self._settings.training.batch_size
        flat = (number for batch in numbers for number in batch)
        with closing(read_ahead(self.draw, flat, workers=workers, ahead=2 * size + workers)) as samples:
            while batch := list(islice(samples, size)):
                yield collate([sample.result() for _, sample in batch])


def count_class_pixels(
    files: Sequence[ImageSource],
    labels: Callable[[ImageSource], np.ndarray],
    num_classes: int,
    workers: int,
    monitor: Monitor,
) -> np.ndarray:
    """How many pixels of each class every image has; all labels are read once, in threads.

    Args:
        files: the images.
        labels: reads a label.
        num_classes: C.
        workers: threads.
        monitor: receives the progress.

    Returns:
        int64 ``[images, C]``.

    Raises:
        BldaError: a label cannot be read.
        Interrupted: the user asked to stop.
    """

    def count(file: ImageSource) -> np.ndarray:
        values = labels(file)
        return np.bincount(values[values != IGNORE_INDEX].ravel(), minlength=num_classes)

    monitor.start("reading labels", len(files))
    pixels = []
    with closing(read_ahead(count, files, workers=workers, ahead=2 * workers)) as counts:
        for _, counted in counts:
            pixels.append(counted.result())
            monitor.advance(1)
            monitor.check()
    return np.stack(pixels)


def fitting_crop(files: Sequence[ImageSource], crop: tuple[int, int], monitor: Monitor) -> tuple[int, int]:
    """The crop, if it fits into every image; in place of the default one, the largest that does, in steps of 32.

    Args:
        files: the images.
        crop: (height, width).
        monitor: gets a message where another crop size is used.

    Raises:
        BldaError: it is larger than an image; the message names the image and the largest crop that fits all.
    """
    sizes = [file.size() for file in files]
    largest = min(min(size) for size in sizes)
    if crop == TrainingSettings.crop and largest < min(crop) and largest >= _CROP_STEP:
        side = largest // _CROP_STEP * _CROP_STEP
        monitor.say(f"crops are {side}x{side}, as the smallest image is smaller than the published {crop[0]}x{crop[1]}")
        return side, side
    for file, (height, width) in zip(files, sizes, strict=True):
        if height < crop[0] or width < crop[1]:
            raise BldaError(
                f"a crop of {crop[0]}x{crop[1]} is larger than {file.location} ({height}x{width}, height x width): "
                f"--crop {largest} fits all"
            )
    return crop


class ReadingCache:
    """Caches read files up to a number of bytes; later ones are read again each time."""

    def __init__(self, capacity: int) -> None:
        self._room = capacity
        self._lock = threading.Lock()

    def reading(self, read: Callable[[ImageSource], np.ndarray]) -> Callable[[ImageSource], np.ndarray]:
        """``read`` with a cache of its own, within the shared limit."""
        kept: dict[ImageSource, np.ndarray] = {}

        def cached(file: ImageSource) -> np.ndarray:
            values = kept.get(file)
            if values is None:
                values = read(file)
                with self._lock:
                    if values.nbytes <= self._room and file not in kept:
                        self._room -= values.nbytes
                        kept[file] = values
            return values

        return cached


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size as a batch on the CPU."""
    values: dict[str, Any] = {}
    for name in samples[0]:
        drawn: list[Any] = [sample[name] for sample in samples]
        values[name] = drawn if isinstance(drawn[0], Crop | Tensor) else torch.from_numpy(np.stack(drawn))
    pasted = class_masks(values["source_labels"].numpy(), values.pop("class_order").numpy())
    return Batch(**values, pasted=torch.from_numpy(pasted))
