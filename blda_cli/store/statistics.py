"""Statistics as HDF5: self-describing, versioned, readable with nothing but h5py."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from blda_cli import __version__
from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import LabelSource, LogitSpace
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.distributions import Empirical
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.mixture import GaussianMixture, MixtureFits
from blda_cli.core.norms import SHIFTED, Norms
from blda_cli.core.sample import PixelSample
from blda_cli.core.spatial_priors import GRID, PositionCounts
from blda_cli.core.statistics import LogitStatistics
from blda_cli.data.classes import ClassSet
from blda_cli.errors import BldaError
from blda_cli.store.hdf5 import writing
from blda_cli.store.provenance import Provenance

FORMAT = "blda-statistics"
FORMAT_VERSION = 2
"""Version 2 keeps the positions of the sample's pixels and of the ground truth, and -1, not 255, as the label of pixels
without one; version 1 is read without positions."""

QUANTILE_LEVELS = np.linspace(0.0, 1.0, 101)
"""Levels at which an anchor's empirical quantiles are written."""

_SAMPLE_FIELDS = ("seen", "logits", "predicted", "labels", "images", "positions", "priorities")


@dataclass
class StatisticsFile:
    """The statistics of a segmenter's logits over some images, and what they are statistics of.

    Attributes:
        statistics: histograms, confusion, sample.
        classes: the classes of the logits' channels.
        model: the segmenter's identity and how it was run, as JSON.
        images: keys of the images counted, in order.
        complete: all images that were asked for are counted.
        provenance: how the file came to be.
        mixtures: Gaussian mixtures fitted to the cells and anchors of each label source, where they are.
        norms: averages that the network's batch norms had in place of its own; None: its own.
        stamps: size and time of change of what was read for each image, see :func:`blda_cli.files.stamp`.
    """

    statistics: LogitStatistics
    classes: ClassSet
    model: dict[str, Any]
    images: list[str] = field(default_factory=list)
    complete: bool = False
    provenance: Provenance = field(default_factory=Provenance)
    mixtures: dict[LabelSource, MixtureFits] = field(default_factory=dict)
    norms: Norms | None = None
    stamps: dict[str, str] = field(default_factory=dict)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Why each image that was passed over could not be read, per key."""
        return self.provenance.skipped

    @property
    def norms_shifted(self) -> bool:
        """Whether the images' averages lie so far from those of the network's batch norms that theirs would help."""
        return self.provenance.norm_shift >= SHIFTED


def write_statistics(path: Path, content: StatisticsFile) -> None:
    """Write statistics; the file appears under its name only when it is complete.

    Args:
        path: where to; what is there is replaced.
        content: what to write.

    Raises:
        BldaError: it cannot be written.
    """
    statistics = content.statistics
    with writing(path) as file:
        file.attrs.update(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            created_by=f"blda {__version__}",
            model=json.dumps(content.model),
            classes=list(content.classes.names),
            palette=np.array(content.classes.palette, dtype=np.uint8),
            original_ids=np.array(content.classes.ids, dtype=np.int64),
            ignore_index=IGNORE_INDEX,
            logit_space=str(statistics.space),
            images=statistics.images,
            pixels=statistics.pixels,
            complete=content.complete,
        )
        file["provenance"] = json.dumps(content.provenance.as_json())  # no attribute: those are limited to 64 KiB
        limit = max((cells.limit for cells in statistics.cells.values()), default=1.0)
        for source, cells in statistics.cells.items():
            assert cells.limit == limit  # every source counts the same logits
            counts = cells.counts.cpu().numpy()
            if source is not LabelSource.SOFT:
                counts = counts.astype(np.int64)
            _dataset(file, f"cells/{source}/counts", counts)
            file.require_dataset("edges", (cells.bins + 1,), "f8")[...] = cells.edges.cpu().numpy()
            if statistics.pixels:
                _write_anchors(file.create_group(f"anchors/{source}"), cells, content)
        for source, fits in content.mixtures.items():
            _write_mixture(file.create_group(f"mixtures/{source}"), fits.cells, fits.cell_distance)
            _write_mixture(file.require_group(f"anchors/{source}"), fits.anchors, fits.anchor_distance)
        if content.norms is not None:
            _write_norms(file.create_group("norms"), content.norms)
        if statistics.confusion is not None:
            _dataset(file, "confusion", statistics.confusion.counts.numpy())
        if statistics.positions is not None:
            _dataset(file, "positions", statistics.positions.counts.numpy())
        for name in _SAMPLE_FIELDS:
            _dataset(file, f"sample/{name}", getattr(statistics.sample, name).numpy())
        file["sample"].attrs["capacity"] = statistics.sample.capacity
        stamps = [content.stamps.get(key, "") for key in content.images]
        # Names of files need not be UTF-8.
        keys = [key.encode("utf-8", "surrogateescape") for key in content.images]
        file.create_dataset("progress/images", data=keys, dtype=h5py.string_dtype())
        file.create_dataset("progress/stamps", data=stamps, dtype=h5py.string_dtype())


def read_statistics(path: Path) -> StatisticsFile:
    """Read statistics, checking that they are what they say.

    Args:
        path: a file that :func:`write_statistics` wrote.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        BldaError: there is no such file, or it is not one of ours, cut, or of a newer format.
    """
    if not path.is_file():
        raise BldaError(f"{path}: no such statistics file; blda collect-stats makes one")
    with _reading(path) as file:
        if file.attrs.get("format") != FORMAT:
            raise BldaError(f"{path} is an HDF5 file, but not of blda's statistics; blda collect-stats makes one")
        version = int(file.attrs["format_version"])
        if version > FORMAT_VERSION:
            raise BldaError(f"{path} has format version {version}, this blda reads up to {FORMAT_VERSION}: upgrade it")
        names = tuple(str(name) for name in file.attrs["classes"])
        count = len(names)
        classes = ClassSet(
            names=names,
            palette=tuple((int(r), int(g), int(b)) for r, g, b in file.attrs["palette"]),
            ids=tuple(int(number) for number in file.attrs["original_ids"]),
        )
        cells = {}
        limit = float(file["edges"][-1]) if "edges" in file else 1.0
        for name, group in file.get("cells", {}).items():
            counts = group["counts"][...]
            histogram = LogitHistogram.from_counts(torch.from_numpy(counts), limit)
            fits = counts.shape == (count, count, file["edges"].shape[0] - 1)
            if not fits or not np.isfinite(counts).all() or counts.min() < 0:
                raise ValueError(f"cells/{name}/counts do not fit {count} classes and the bin edges")
            if not np.array_equal(file["edges"][...], histogram.edges):
                raise ValueError("the bin edges are not evenly spaced")
            cells[LabelSource(name)] = histogram
        sample, pixels = file["sample"], file["sample/priorities"].shape[0]
        shapes = {"seen": (count,), "logits": (pixels, count), "positions": (pixels, 2)}
        sampled = {
            name: _tensor(sample[name], *shapes.get(name, (pixels,)))
            for name in _SAMPLE_FIELDS
            if version > 1 or name != "positions"
        }
        sampled.setdefault("positions", torch.full((pixels, 2), torch.nan))
        sampled["labels"][sampled["labels"] == int(file.attrs["ignore_index"])] = IGNORE_INDEX
        for name, least in (("predicted", 0), ("labels", IGNORE_INDEX)):
            if bool(((sampled[name] < least) | (sampled[name] >= count)).any()):
                raise ValueError(f"sample/{name} holds more than {count} classes")
        statistics = LogitStatistics.from_parts(
            space=LogitSpace(file.attrs["logit_space"]),
            cells=cells,
            confusion=ConfusionMatrix.from_counts(_tensor(file["confusion"], count, count))
            if "confusion" in file
            else None,
            sample=PixelSample(capacity=int(sample.attrs["capacity"]), **sampled),
            positions=PositionCounts.from_counts(_tensor(file["positions"], count, *GRID))
            if "positions" in file
            else None,
            images=int(file.attrs["images"]),
            pixels=int(file.attrs["pixels"]),
        )
        return StatisticsFile(
            statistics=statistics,
            classes=classes,
            model=json.loads(file.attrs["model"]),
            images=(images := [key.decode("utf-8", "surrogateescape") for key in file["progress/images"][...]]),
            stamps=dict(zip(images, (text.decode() for text in file["progress/stamps"][...]), strict=True))
            if "progress/stamps" in file
            else {},
            complete=bool(file.attrs["complete"]),
            provenance=Provenance.from_json(json.loads(file["provenance"][()])),
            mixtures={
                LabelSource(name): MixtureFits(
                    *_read_mixture(group, count, count), *_read_mixture(file[f"anchors/{name}"], 2)
                )
                for name, group in file.get("mixtures", {}).items()
            },
            norms=_read_norms(file["norms"]) if "norms" in file else None,
        )


def merge_statistics(parts: Iterable[tuple[Path, StatisticsFile]]) -> StatisticsFile:
    """Add statistics of one model over different images up.

    Args:
        parts: at least one file, each with the name to call it in messages; taken one by one, so that no more than
            two need to be in memory.

    Returns:
        The whole; mixtures are not carried over, as they do not add up.

    Raises:
        BldaError: two files are of different models, classes or ways of counting, or count the same image.
    """
    remaining = iter(parts)
    first_path, first = next(remaining)
    statistics, complete, provenances = first.statistics, first.complete, [first.provenance]
    owners = dict.fromkeys(first.images, first_path)
    stamps, skipped = dict(first.stamps), dict(first.skipped)
    for path, other in remaining:
        difference = difference_of(first.model, other.model)
        if first.classes != other.classes:
            difference = difference or "the classes"
        if difference:
            raise BldaError(f"{first_path} and {path} do not add up: they differ in {difference}")
        twice = next((key for key in other.images if key in owners), None)
        if twice is not None:
            raise BldaError(f"{owners[twice]} and {path} both count image {twice}: merge files of different images")
        try:
            statistics = statistics + other.statistics
        except ValueError as error:
            raise BldaError(f"{first_path} and {path} do not add up: {error}") from error
        complete = complete and other.complete
        provenances.append(other.provenance)
        owners.update(dict.fromkeys(other.images, path))
        stamps.update(other.stamps)
        skipped.update(other.skipped)
    return StatisticsFile(
        statistics=statistics,
        classes=first.classes,
        model=first.model,
        norms=first.norms,
        images=list(owners),
        stamps=stamps,
        complete=complete,
        provenance=Provenance(skipped=skipped, merged=tuple(provenances)),
    )


def difference_of(one: Any, other: Any, name: str = "") -> str | None:
    """Name the first entry in which two JSON values differ, e.g. ``preprocessing.mean (1 and 2)``.

    Returns:
        None where they are equal.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            found = difference_of(one.get(key), other.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    return None if one == other else f"{name} ({_short(one)} and {_short(other)})"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dataset(file: h5py.File, name: str, values: np.ndarray) -> None:
    # Level 1 already takes out the empty bins, which are most of a histogram; more costs time for little.
    file.create_dataset(name, data=values, compression="gzip", compression_opts=1, shuffle=True)


def _write_anchors(group: h5py.Group, cells: LogitHistogram, content: StatisticsFile) -> None:
    pooled = torch.stack([cells.positive(), cells.negative()]).cpu()
    if bool((pooled.sum(dim=1) == 0).any()):
        return
    levels = torch.from_numpy(QUANTILE_LEVELS).expand(2, -1)
    group.attrs["rows"] = ["positive", "negative"]
    group.attrs["provenance"] = f"pooled over {content.statistics.images} images of this file"
    group["levels"] = QUANTILE_LEVELS
    group["quantiles"] = Empirical(pooled, cells.edges.cpu()).quantile(levels).numpy()
    group["means"] = ((pooled @ cells.centers.cpu()) / pooled.sum(dim=1)).numpy()


def _write_mixture(group: h5py.Group, mixture: GaussianMixture, distance: Tensor) -> None:
    for name in ("weights", "means", "variances"):
        _dataset(group, f"mixture_{name}", getattr(mixture, name).numpy())
    _dataset(group, "mixture_distance", distance.numpy())


def _read_mixture(group: h5py.Group, *shape: int) -> tuple[GaussianMixture, Tensor]:
    components = group["mixture_weights"].shape[-1]
    weights, means, variances = (
        _tensor(group[f"mixture_{name}"], *shape, components) for name in ("weights", "means", "variances")
    )
    return GaussianMixture(weights, means, variances), _tensor(group["mixture_distance"], *shape)


def _write_norms(group: h5py.Group, norms: Norms) -> None:
    group.attrs.update(images=norms.images, source_images=norms.source_images, shift=norms.shift)
    for name, values in norms.averages.items():
        group[name] = values.numpy()


def _read_norms(group: h5py.Group) -> Norms:
    averages = {name: torch.from_numpy(dataset[...]) for name, dataset in group.items()}
    for name, values in averages.items():
        if values.ndim != 1 or values.dtype != torch.float32 or not bool(values.isfinite().all()):
            raise ValueError(f"norms/{name} holds no finite float32 averages")
        if name.endswith("running_var") and bool((values < 0).any()):
            raise ValueError(f"norms/{name} holds a negative variance")
    return Norms(averages, int(group.attrs["images"]), int(group.attrs["source_images"]), float(group.attrs["shift"]))


def _tensor(dataset: h5py.Dataset, *shape: int) -> Tensor:
    if dataset.shape != shape:
        raise ValueError(f"{dataset.name} is of shape {list(dataset.shape)}, not {list(shape)}")
    return torch.from_numpy(dataset[...])


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        # h5py raises any of these for files that are cut, were never HDF5 or hold one kind of object for another.
        raise BldaError(f"{path} cannot be read as statistics; it may be cut or no HDF5 file: {error}") from error
