"""Statistics files: versioned HDF5, readable with h5py alone."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.choices import LabelSource, LogitSpace
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.distributions import Empirical
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.mixture import fit_mixtures, fit_quality
from blda_cli.core.norms import SHIFTED, MixedNorms, Norms
from blda_cli.core.sample import MOST_PRIORITY, PixelSample
from blda_cli.core.spatial_priors import GRID, PositionCounts
from blda_cli.core.statistics import LogitStatistics
from blda_cli.data.classes import ClassSet, class_set
from blda_cli.errors import BldaError
from blda_cli.store.differences import difference_of, of_one_kind
from blda_cli.store.hdf5 import CheckedFile, reading, writing
from blda_cli.store.provenance import Provenance
from blda_cli.typed import check_type
from blda_cli.version import __version__

FORMAT = "blda-statistics"
FORMAT_VERSION = 2
"""Version 2 keeps the positions of the sample's pixels and of the ground truth, and -1, not 255, as the label of pixels
without one; version 1 is read without positions."""

QUANTILE_LEVELS = np.linspace(0.0, 1.0, 101)
"""Levels at which an anchor's empirical quantiles are written."""

_SAMPLE_FIELDS = ("seen", "logits", "predicted", "labels", "images", "positions", "priorities")


@dataclass
class StatisticsFile:
    """Content of a statistics file: logit statistics, and the model, classes and images they belong to.

    Attributes:
        statistics: histograms, confusion, sample.
        classes: the classes of the logits' channels.
        model: the segmenter's identity and how it was run, as JSON.
        images: keys of the images counted, in order.
        complete: all images that were asked for are counted.
        provenance: command line, options, versions and time.
        norms: norm statistics that replaced the network's own, or the weight with which these were mixed with each
            image's own; None: the network's own.
        stamps: fingerprint of the files read for each image, see :func:`blda_cli.files.stamp`.
    """

    statistics: LogitStatistics
    classes: ClassSet
    model: dict[str, Any]
    images: list[str] = field(default_factory=list)
    complete: bool = False
    provenance: Provenance = field(default_factory=Provenance)
    norms: Norms | MixedNorms | None = None
    stamps: dict[str, str] = field(default_factory=dict)

    @property
    def skipped(self) -> Mapping[str, str]:
        """Reason for each skipped image, by key."""
        return self.provenance.skipped

    @property
    def norms_shifted(self) -> bool:
        """Whether the norm distance is so large that the images' own norm statistics would help."""
        mixed = isinstance(self.norms, MixedNorms) and self.norms.weight < 1
        return not mixed and (self.provenance.norm_distance or 0.0) >= SHIFTED

    @property
    def norms_adapted(self) -> bool:
        """Whether the network's batch norms held statistics of these images, or of each of them, when it was run."""
        if isinstance(self.norms, MixedNorms):
            return self.norms.weight < 1
        return self.norms is not None


def write_statistics(path: Path, content: StatisticsFile) -> None:
    """Write statistics atomically.

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
        if isinstance(content.norms, MixedNorms):
            _write_mixed_norms(file.create_group("mixed_norms"), content.norms)
        elif content.norms is not None:
            _write_norms(file.create_group("norms"), content.norms)
        if statistics.confusion is not None:
            _dataset(file, "confusion", statistics.confusion.counts.numpy())
        if statistics.positions is not None:
            _dataset(file, "positions", statistics.positions.counts.numpy())
        for name in _SAMPLE_FIELDS:
            values = getattr(statistics.sample, name).numpy()
            if name == "logits":  # an eighth smaller, if compressed, in as long as all the rest takes
                file.create_dataset("sample/logits", data=values)
            else:
                _dataset(file, f"sample/{name}", values)
        file["sample"].attrs["capacity"] = statistics.sample.capacity
        stamps = [content.stamps.get(key, "") for key in content.images]
        # Names of files need not be UTF-8.
        keys = [key.encode("utf-8", "surrogateescape") for key in content.images]
        file.create_dataset("progress/images", data=keys, dtype=h5py.string_dtype())
        file.create_dataset("progress/stamps", data=stamps, dtype=h5py.string_dtype())


def read_statistics(path: str | Path) -> StatisticsFile:
    """Read and validate a statistics file.

    Args:
        path: a file that :func:`write_statistics` wrote.

    Returns:
        Its content, tensors on the CPU.

    Raises:
        BldaError: there is no such file, or it is not a statistics file, truncated, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise BldaError(f"{path}: no such statistics file; blda collect-stats makes one")
    with reading(path, "statistics") as file:
        if not file.has("format") or file.attribute("format", str) != FORMAT:
            raise BldaError(f"{path} is an HDF5 file, but not of blda's statistics; blda collect-stats makes one")
        version = file.attribute("format_version", int)
        if version > FORMAT_VERSION:
            raise BldaError(f"{path} has format version {version}, this blda reads up to {FORMAT_VERSION}: upgrade it")
        classes = _read_classes(file)
        count = len(classes)
        images, pixels = file.attribute("images", int), file.attribute("pixels", int)
        cells = _read_cells(file, count, pixels)
        confusion, positions = None, None
        if "confusion" in file:
            pairs = file.array("confusion", count, count, kind="i", least=0, most=pixels)
            confusion = ConfusionMatrix.from_counts(torch.from_numpy(pairs))
        if "positions" in file:
            places = file.array("positions", count, *GRID, kind="i", least=0, most=_MOST)
            positions = PositionCounts.from_counts(torch.from_numpy(places))
        keys = [key.decode("utf-8", "surrogateescape") for key in file.texts("progress/images")]
        if keys and (len(keys) != images or len({*keys}) != images):  # counted from Python, images may have no names
            raise ValueError(f"progress/images does not name {images} different images")
        stamps = [text.decode() for text in file.texts("progress/stamps")] if "progress/stamps" in file else []
        if stamps and len(stamps) != images:
            raise ValueError(f"progress/stamps has no entry for each of the {images} images")
        model = json.loads(file.attribute("model", str))
        check_type(model, Mapping[str, Any], "model")
        return StatisticsFile(
            statistics=LogitStatistics.from_parts(
                space=LogitSpace(file.attribute("logit_space", str)),
                cells=cells,
                confusion=confusion,
                positions=positions,
                sample=_read_sample(file, count, version),
                images=images,
                pixels=pixels,
            ),
            classes=classes,
            model=model,
            images=keys,
            stamps=dict(zip(keys, stamps, strict=False)),
            complete=file.attribute("complete", bool),
            provenance=Provenance.from_json(json.loads(file.text("provenance"))),
            norms=_read_norms(file),
        )


_MOST = 2**53
"""More pixels than any file counts; up to it float64 counts exactly."""

_LONGEST_AXIS = 2.0**80


def _read_classes(file: CheckedFile) -> ClassSet:
    names = file.attribute("classes", list)
    palette, ids = file.attribute("palette", np.ndarray), file.attribute("original_ids", np.ndarray)
    if palette.shape != (len(names), 3) or ids.shape != (len(names),) or not 0 < len(names) <= _MOST_CLASSES:
        raise ValueError(f"palette and original_ids are not of the {len(names)} classes")
    if ids.min() < 0 or ids.max() > _MOST_CLASSES:
        raise ValueError("original_ids are not ids from 0 to 65534")
    colors = tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    try:
        checked = class_set(names, colors)
    except BldaError as error:
        raise ValueError(str(error)) from error
    return replace(checked, names=tuple(names), ids=tuple(map(int, ids)))


_MOST_CLASSES = 65534


def _read_cells(file: CheckedFile, count: int, pixels: int) -> dict[LabelSource, LogitHistogram]:
    """All cells, on edges that are evenly spaced up to a power of two, every channel counting the same pixels."""
    names = file.names("cells")
    if not names:
        raise ValueError("cells holds no label source")
    bins = file.shape("edges")[0] - 1 if len(file.shape("edges")) == 1 else 0
    if bins < 4 or bins & (bins - 1):
        raise ValueError(f"edges are those of {bins} bins, not of a power of two")
    edges = file.array("edges", bins + 1, kind="f")
    limit = float(edges[-1])
    if not 1 <= limit <= _LONGEST_AXIS or math.frexp(limit)[0] != 0.5:
        raise ValueError(f"edges end at {limit:g}, no power of two")
    cells = {}
    for name in names:
        where = f"cells/{name}/counts"
        counts = file.array(where, count, count, bins, kind="if", least=0, most=_MOST)
        histogram = LogitHistogram.from_counts(torch.from_numpy(counts), limit)
        if not np.array_equal(edges, histogram.edges):
            raise ValueError("edges are not evenly spaced")
        held = histogram.counts.sum(dim=-1)
        if not torch.equal(held, held[:, :1].expand_as(held)):
            raise ValueError(f"{where} holds another number of pixels in one channel than in the next")
        total, source = float(held[:, 0].sum()), LabelSource(name)
        # Soft counts are rounded probabilities.
        most = pixels * (1 + count * 2.0**-16) if source is LabelSource.SOFT else pixels
        if total > most or (source is LabelSource.PSEUDO and total != pixels):
            raise ValueError(f"{where} holds {total:g} pixels of {pixels}")
        cells[source] = histogram
    return cells


def _read_sample(file: CheckedFile, count: int, version: int) -> PixelSample:
    size = file.shape("sample/priorities")[0] if file.shape("sample/priorities") else 0
    void = file.attribute("ignore_index", int)

    def tensor(name: str, *shape: int, kind: str = "i", **limits: Any) -> Tensor:
        values = file.array(f"sample/{name}", *shape, kind=kind, **limits)
        return torch.from_numpy(values.astype(np.int64 if kind == "i" else np.float32, copy=False))

    labels = tensor("labels", size, least=IGNORE_INDEX, most=max(count - 1, void))
    labels = torch.where(labels == void, IGNORE_INDEX, labels)
    if bool((labels >= count).any()):
        raise ValueError(f"sample/labels holds more than {count} classes")
    nowhere = torch.full((size, 2), torch.nan)
    sample = PixelSample(
        capacity=file.attribute("capacity", int, "sample"),
        seen=tensor("seen", count, least=0, most=_MOST),
        logits=tensor("logits", size, count, kind="f", least=-_LONGEST_AXIS, most=_LONGEST_AXIS),
        predicted=tensor("predicted", size, least=0, most=count - 1),
        labels=labels,
        images=tensor("images", size, least=0),
        priorities=tensor("priorities", size, least=0, most=MOST_PRIORITY),
        positions=tensor("positions", size, 2, kind="f", least=0, most=1, nan=True) if version > 1 else nowhere,
    )
    kept = torch.bincount(sample.predicted, minlength=count)
    if sample.capacity < 1 or bool((kept > sample.seen.clamp(max=sample.capacity)).any()):
        raise ValueError("sample holds more pixels of a class than sample/seen and its capacity allow")
    return sample


def merge_statistics(parts: Iterable[tuple[Path, StatisticsFile]]) -> StatisticsFile:
    """Merge statistics of one model over different images.

    Args:
        parts: at least one file, each with the name to call it in messages; taken one by one, so that no more than
            two need to be in memory.

    Returns:
        The whole.

    Raises:
        BldaError: two files are of different models, classes or ways of counting, or count the same image.
    """
    remaining = of_one_kind(parts, difference_of_kind)
    first_path, first = next(remaining)
    statistics, complete, provenances = first.statistics, first.complete, [first.provenance]
    distances = [(first.provenance.norm_distance, statistics.images)]
    owners = dict.fromkeys(first.images, first_path)
    stamps, skipped = dict(first.stamps), dict(first.skipped)
    for path, other in remaining:
        twice = next((key for key in other.images if key in owners), None)
        if twice is not None:
            raise BldaError(f"{owners[twice]} and {path} both count image {twice}: merge files of different images")
        statistics = statistics + other.statistics
        distances.append((other.provenance.norm_distance, other.statistics.images))
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
        provenance=Provenance(norm_distance=_mean_distance(distances), skipped=skipped, merged=tuple(provenances)),
    )


def _mean_distance(parts: Iterable[tuple[float | None, int]]) -> float | None:
    """Mean norm distance of parts, weighted by their numbers of images; None where no part has one."""
    known = [(distance, images) for distance, images in parts if distance is not None]
    images = sum(images for _, images in known)
    return sum(distance * images for distance, images in known) / images if images else None


def difference_of_kind(one: StatisticsFile, other: StatisticsFile) -> str | None:
    """Name the difference that prevents two statistics files from being merged; None if there is none."""
    difference = difference_of(one.model, other.model)
    if one.classes != other.classes:
        difference = difference or "the classes"
    return difference or difference_of(_counted(one.statistics), _counted(other.statistics))


def _counted(statistics: LogitStatistics) -> dict[str, Any]:
    bins = next(iter(statistics.cells.values())).bins
    return {"label sources": sorted(statistics.cells), "bins": bins, "logit space": statistics.space}


def _dataset(file: h5py.File, name: str, values: np.ndarray) -> None:
    # Level 1 already takes out the empty bins, which are most of a histogram; more costs time for little.
    file.create_dataset(name, data=values, compression="gzip", compression_opts=1, shuffle=True)


def _write_anchors(group: h5py.Group, cells: LogitHistogram, content: StatisticsFile) -> None:
    pooled = torch.stack([cells.positive(), cells.negative()]).cpu()
    if bool((pooled.sum(dim=1) == 0).any()):
        return
    edges, levels = cells.edges.cpu(), torch.from_numpy(QUANTILE_LEVELS).expand(2, -1)
    group.attrs["rows"] = ["positive", "negative"]
    group.attrs["provenance"] = f"pooled over {content.statistics.images} images of this file"
    group["levels"] = QUANTILE_LEVELS
    group["quantiles"] = Empirical(pooled, edges).quantile(levels).numpy()
    group["means"] = ((pooled @ cells.centers.cpu()) / pooled.sum(dim=1)).numpy()
    if content.complete:
        fitted = fit_mixtures(pooled, edges)
        for name in ("weights", "means", "variances"):
            group[f"mixture_{name}"] = getattr(fitted, name).numpy()
        group["mixture_distance"] = fit_quality(pooled, edges, fitted).numpy()


def _write_norms(group: h5py.Group, norms: Norms) -> None:
    group.attrs.update(images=norms.images, source_images=norms.source_images)
    for name, values in norms.averages.items():
        group[name] = values.numpy()


def _write_mixed_norms(group: h5py.Group, norms: MixedNorms) -> None:
    group.attrs["weight"] = norms.weight
    if not norms.agreements:
        return
    group.attrs["images"] = norms.images
    group["weights"] = np.array(list(norms.agreements), dtype=np.float64)
    group["agreements"] = np.array(list(norms.agreements.values()), dtype=np.float64)
    group["information"] = np.array([norms.information[weight] for weight in norms.agreements], dtype=np.float64)
    group["shares"] = np.array(list(norms.shares.values()), dtype=np.float64)
    if norms.changed:
        group["changed"] = np.array([norms.changed[weight] for weight in norms.agreements], dtype=np.float64)
    if norms.scales:
        group["scales"] = np.array(norms.scales, dtype=np.float64)
    if norms.confusions:
        group["confusions"] = np.stack([matrix.counts.numpy() for matrix in norms.confusions.values()])


def _read_mixed_norms(file: CheckedFile) -> MixedNorms:
    weight = file.attribute("weight", float, "mixed_norms")
    if not 0 <= weight <= 1:
        raise ValueError(f"mixed_norms/weight is {weight:g}, not between 0 and 1")
    if "mixed_norms/weights" not in file:  # it was given
        return MixedNorms(weight)
    size = (file.shape("mixed_norms/weights") or (0,))[0]
    weights, agreements, information = (
        file.array(f"mixed_norms/{name}", size, kind="f", least=0, most=most).tolist()
        for name, most in (("weights", 1), ("agreements", 1), ("information", 64))
    )
    compared = list(dict.fromkeys((1.0, weight)))
    classes = len(file.attribute("classes", list))
    shares = file.array("mixed_norms/shares", len(compared), classes, kind="f", least=0, most=1).tolist()
    confusions = {}
    if "mixed_norms/confusions" in file:
        counts = file.array("mixed_norms/confusions", len(compared), classes, classes, kind="i", least=0)
        confusions = {
            weight: ConfusionMatrix.from_counts(torch.from_numpy(one))
            for weight, one in zip(compared, counts, strict=True)
        }
    changed = {}
    if "mixed_norms/changed" in file:
        counted = file.array("mixed_norms/changed", size, kind="f", least=0, most=1).tolist()
        changed = dict(zip(weights, counted, strict=True))
    scales: tuple[float, ...] = ()
    if "mixed_norms/scales" in file:
        kept = (file.shape("mixed_norms/scales") or (0,))[0]
        scales = tuple(file.array("mixed_norms/scales", kept, kind="f", least=0.01, most=100).tolist())
    return MixedNorms(
        weight,
        file.attribute("images", int, "mixed_norms"),
        dict(zip(weights, agreements, strict=True)),
        dict(zip(weights, information, strict=True)),
        dict(zip(compared, shares, strict=True)),
        confusions,
        changed,
        scales,
    )


def _read_norms(file: CheckedFile) -> Norms | MixedNorms | None:
    if "mixed_norms" in file:
        return _read_mixed_norms(file)
    if "norms" not in file:
        return None
    averages = {}
    for name in file.names("norms"):
        least = 0.0 if name.endswith("running_var") else -math.inf
        size = file.shape(f"norms/{name}")[0] if file.shape(f"norms/{name}") else 0
        averages[name] = torch.from_numpy(file.array(f"norms/{name}", size, kind="f", least=least).astype(np.float32))
    images, source = (file.attribute(name, int, "norms") for name in ("images", "source_images"))
    return Norms(averages, images, source)
