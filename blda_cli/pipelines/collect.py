"""``blda collect-stats``: one pass over images, counting logits."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from blda_cli.core.choices import LabelSource, LogitSpace, NormSource
from blda_cli.core.float64 import float64_device
from blda_cli.core.histogram import DEFAULT_BINS
from blda_cli.core.norms import MixedNorms, Norms
from blda_cli.core.parts import differing_parts
from blda_cli.core.statistics import LogitStatistics
from blda_cli.data.images import find_images
from blda_cli.data.labels import LabelReader
from blda_cli.data.loader import SkippedFile
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import claim, stamp
from blda_cli.pipelines.doubts import label_remarks, say_doubts
from blda_cli.pipelines.job import Job
from blda_cli.pipelines.requests import CollectRequest, NormsRequest, chooses_scales
from blda_cli.pipelines.subject import load_subject, read_labels
from blda_cli.runtime.monitor import Interrupted, Monitor, advancing
from blda_cli.runtime.process_group import wait_for_all
from blda_cli.runtime.shards import Shard
from blda_cli.segmenters.base import Segmenter, model_identity
from blda_cli.segmenters.norm_choice import choose_weight, images_for_choice
from blda_cli.segmenters.norms import FEW_IMAGES, ObservedNorms, enough_for_norms, has_norms, take_norms, use_norms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import SegmenterSpec
from blda_cli.store.differences import difference_of
from blda_cli.store.provenance import Provenance
from blda_cli.store.statistics import (
    StatisticsFile,
    difference_of_kind,
    merge_statistics,
    read_statistics,
    write_statistics,
)

CHECKPOINT_SECONDS = 120.0


NORMS_HINT = (
    "batch norm statistics of these images differ from the network's; statistics collected with --norms auto may bring "
    "more than any correction"
)

NORM_WEIGHT = 0.9
"""The weight of ``--norms instance`` where none is given: good for all networks it was measured on."""


@dataclass(frozen=True)
class CountingOptions:
    """How logits are counted.

    Attributes:
        sources: the label sources.
        space: the logits that the cells hold.
        bins: bins per cell.
    """

    sources: tuple[LabelSource, ...]
    space: LogitSpace = LogitSpace.RAW
    bins: int = DEFAULT_BINS


def input_stamp(segmenter: Segmenter, file: ImageSource, labels: LabelReader | None = None) -> str:
    """Fingerprint of all files that are read for an image."""
    read = [file]
    with suppress(BldaError):  # there is none, which reading will say
        read.append(segmenter.origin(file))
    states = [one.fingerprint() for one in dict.fromkeys(read)]
    return " ".join([*states, *([stamp([labels.paths[file.key]])] if labels else [])])


def check_images(content: StatisticsFile, path: Path, segmenter: Segmenter, files: Sequence[ImageSource]) -> None:
    """Raise unless the statistics cover exactly these unmodified images.

    Args:
        content: the statistics.
        path: their file, for messages.
        segmenter: the segmenter that they should be of.
        files: the images.

    Raises:
        BldaError: they count another image, or not all of these, or one that has changed since.
    """
    by_key = {file.key: file for file in files}
    others = {*content.images, *content.skipped} ^ by_key.keys()
    if others:
        raise BldaError(f"{path} is there, but of other images ({min(others)} is not in both): --overwrite replaces it")
    for key in content.images:
        # Labels, where some were counted, come after the image's own files.
        if not f"{content.stamps.get(key)} ".startswith(f"{input_stamp(segmenter, by_key[key])} "):
            raise BldaError(f"{path} counted {by_key[key].location} before that changed: --overwrite replaces it")


def collect_stats(request: CollectRequest, job: Job) -> dict[Path, StatisticsFile]:
    """Load a segmenter, count its logits over the images and write the statistics to ``job.output``.

    Args:
        request: the segmenter, the images, their labels and how to count.
        job: where to write.

    Returns:
        The content of the file (in every process), or of every file where there is one for each subfolder.

    Raises:
        BldaError: the segmenter, an image or a label cannot be read, or the file cannot be written.
        Interrupted: the user asked to stop.
    """
    if request.by is None:
        return {job.output: _collected(request, job)}
    whole = Path(request.subject.images)
    if not whole.is_dir():
        raise BldaError(f"--by folder needs a folder of subfolders, and {whole} is none")
    keys = [image.key for image in find_images(whole)]
    loose = [key for key in keys if "/" not in key]
    if loose:
        raise BldaError(f"--by folder needs all images in subfolders of {whole}, and {loose[0]} is in none")
    written = {}
    for name in sorted({key.split("/")[0] for key in keys}):
        labels = request.labelled.labels
        if labels is not None and (Path(labels) / name).is_dir():
            labels = str(Path(labels) / name)
        part = replace(
            request,
            by=None,
            subject=replace(request.subject, images=str(whole / name)),
            labelled=replace(request.labelled, labels=labels),
        )
        output = job.output.with_name(f"{job.output.stem}-{name}{job.output.suffix}")
        written[output] = _collected(part, replace(job, output=output))
    return written


def _collected(request: CollectRequest, job: Job) -> StatisticsFile:
    subject = load_subject(request.subject, request.inference.device, job.shard)
    norms = requested_norms(request.norms, subject.spec)
    reader = read_labels(subject, request.labelled)
    job = job.recording(
        source=request.subject.images,
        labels=None
        if reader is None
        else {
            "source": request.labelled.labels,
            "encoding": reader.encoding,
            "ignore": request.labelled.ignore_label,
        },
        norms=request.norms.recorded,
        shard=subject.record,
        bits=subject.bits,
    )
    say = job.monitor.say
    say_strong(request.preset, subject.segmenter, request.inference, say)
    with job.running():
        content = collect_statistics(
            subject.segmenter,
            subject.share,
            job,
            counting=CountingOptions(request.sources, request.logit_space, request.bins),
            described=subject.spec if request.check else None,
            inference=request.inference,
            labels=reader,
            norms=norms,
            norm_images=subject.images,
            compare_norms=request.norms.given,
            choose_scales=chooses_scales(request.preset, request.inference),
        )
    subject.keep()
    for note in subject.segmenter.notes:
        say(note)
    if job.shard.first:
        _say_differing(content, say)
    job.monitor.warn(f"skipped {key}: {reason}" for key, reason in content.skipped.items())
    confusion = content.statistics.confusion
    if reader is not None and confusion is not None and content.statistics.pixels:
        ignored = 1 - int(confusion.counts.sum()) / content.statistics.pixels
        say(f"labels: {reader.encoding}; {ignored:.1%} of the pixels have no class")
        for remark in label_remarks(reader, confusion, ignored, content.classes.names):
            say(remark)
        if request.labelled.ignore_label is not None:
            share = reader.left_out_share
            say(f"--ignore-label {request.labelled.ignore_label} leaves out {share:.1%} of the pixels")
    return content


def _say_differing(content: StatisticsFile, say: Callable[[str], None]) -> None:
    """Report the subfolders whose images are of another domain than the rest."""
    parts: dict[str, list[str]] = {}
    for key in content.images:
        parts.setdefault(key.split("/")[0], []).append(key)
    if len(parts) < 2 or len(parts) == len(content.images):
        return
    found = differing_parts(content.statistics.sample, parts)
    if found is None:
        return
    usual = next(iter(found.others.values())).reference_confidence
    names = ", ".join(f"{name} ({one.confidence:.0%})" for name, one in found.others.items())
    say(
        f"several domains: the network is much less sure of the images in {names} than of those in {found.surest} "
        f"({usual:.0%}), and its levels differ; --by folder writes statistics of each"
    )


def say_strong(
    preset: str | None, segmenter: Segmenter, inference: InferenceOptions, say: Callable[[str], None]
) -> None:
    """Report the cost of ``--preset strong``, and its parts that this segmenter does not support."""
    if preset != "strong":
        return
    views = (1 + inference.flip) * len(inference.scales)
    say(f"--preset strong: {views} views of each image, {_pixels(inference):.1f} times the pixels of one")
    if not has_norms(segmenter):
        say("--preset strong: norms are left out, as the network has no batch norms that could be changed")


def _pixels(inference: InferenceOptions) -> float:
    """How many times the pixels of an image its views have."""
    return (1 + inference.flip) * sum(scale * scale for scale in inference.scales)


def with_kept_scales(inference: InferenceOptions, norms: Norms | MixedNorms | None) -> InferenceOptions:
    """The options of ``--preset strong`` with the scales that were kept when the norms' weight was chosen."""
    kept = isinstance(norms, MixedNorms) and norms.scales
    return replace(inference, scales=tuple(kept)) if kept else inference


def requested_norms(request: NormsRequest, spec: SegmenterSpec) -> Norms | MixedNorms | NormSource:
    """The norm source that ``--norms`` and ``--norm-weight`` name, or the model's description where they do not.

    Raises:
        BldaError: there is no such statistics file.
    """
    named, weight = request.norms, request.norm_weight
    if named == NormSource.INSTANCE or weight is not None or (named is None and spec.segmenter.norm_weight is not None):
        return MixedNorms(next(one for one in (weight, spec.segmenter.norm_weight, NORM_WEIGHT) if one is not None))
    if named is None or named in list(NormSource):
        return NormSource(named or "auto")
    return read_statistics(Path(named)).norms or NormSource.SOURCE


def collect_statistics(
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    job: Job,
    *,
    counting: CountingOptions,
    inference: InferenceOptions,
    labels: LabelReader | None,
    described: SegmenterSpec | None = None,
    norms: Norms | MixedNorms | NormSource = NormSource.SOURCE,
    norm_images: Sequence[ImageSource] | None = None,
    compare_norms: bool = False,
    choose_scales: bool = False,
) -> StatisticsFile:
    """Count the logits of images and write them to a file.

    Every two minutes, at an interruption and at an error the counts so far are kept beside the output; the same call
    goes on from there.

    Args:
        segmenter: gives the logits.
        files: the images.
        job: where to write; its provenance's ``source``, ``labels``, ``norms`` and ``shard`` describe the input.
        counting: how logits are counted.
        inference: how images are run.
        labels: reads ground truth; needed where it is counted.
        described: the model's description, to check it first; None: no check.
        norms: the norm source: its own statistics, those of ``files``, its own mixed with each image's (see
            `choose_weight`), or given ones.
        norm_images: the images that the weight is chosen on, all of a job's where ``files`` are a shard; by default
            ``files``.
        compare_norms: also run some images as the network was trained where ``norms`` give a weight, for the report.
        choose_scales: where norms are mixed, drop the scales of ``inference`` that tell little, see `choose_weight`;
            norms of a statistics file bring their own choice.

    Returns:
        The content of the file (in every process).

    Raises:
        BldaError: the file exists or cannot be written, an image cannot be read, or what an earlier call kept is of
            another model or of other images.
        Interrupted: the user asked to stop.
    """
    output, overwrite, monitor, shard, provenance = job.output, job.overwrite, job.monitor, job.shard, job.provenance
    claim(output, overwrite=overwrite or _being_replaced(output, shard))
    if described is not None and shard.first:
        provenance = replace(provenance, doubts=say_doubts(described, segmenter, files, monitor))
    part = shard.path(output)
    content = StatisticsFile(
        statistics=LogitStatistics(
            len(segmenter.classes),
            counting.sources,
            space=counting.space,
            bins=counting.bins,
            device=float64_device(segmenter.device),
        ),
        classes=segmenter.classes,
        model=model_identity(segmenter, inference),
        provenance=provenance,
    )
    wait_for_all(shard)  # no process writes before all have checked
    if overwrite:
        part.unlink(missing_ok=True)
    may_be_away = bool(files) and has_norms(segmenter) and not segmenter.adapted_norms
    if isinstance(norms, MixedNorms) and norms.weight < 1 and not has_norms(segmenter):
        norms = _without_norms(segmenter)
    compare_norms = compare_norms or (choose_scales and not _is_chosen(norms))  # which chooses the scales, too
    if isinstance(norms, Norms) or (isinstance(norms, MixedNorms) and not (compare_norms and norms.weight < 1)):
        content.norms = norms
    elif isinstance(norms, MixedNorms) or norms is NormSource.TARGET or (norms is NormSource.AUTO and may_be_away):
        first_part = shard.path(output, 0)
        if shard.first and not part.exists():
            chosen_on = files if norm_images is None or norms is NormSource.TARGET else norm_images
            known = labels if len(chosen_on) == len(files) else None  # of a shard's images alone
            started = _with_norms(
                content, norms, segmenter, chosen_on, inference, known, monitor, choose_scales=choose_scales
            )
            write_statistics(part, started)
        wait_for_all(shard)
        kept = read_statistics(first_part)
        content.norms = kept.norms
        content.provenance = replace(provenance, norm_distance=kept.provenance.norm_distance)
    use_norms(segmenter, content.norms)
    if choose_scales and (left := with_kept_scales(inference, content.norms)) != inference:
        inference = left
        segmenter.note(
            f"views: only the scales {', '.join(f'{scale:g}' for scale in left.scales)} are averaged, as larger images "
            f"tell less: {_pixels(left):.1f} times the pixels of one"
        )
    content.model = model_identity(segmenter, inference)
    if part.exists():
        content = _resumed(part, content, files, output)
    mine = shard.of(files)
    stamps = {file.key: input_stamp(segmenter, file, labels) for file in mine}
    replaced = next((file for file in mine if content.stamps.get(file.key, stamps[file.key]) != stamps[file.key]), None)
    if replaced is not None:
        raise BldaError(
            f"{replaced.location} or its label changed since the interrupted run that {part} holds; "
            "--overwrite starts anew"
        )
    content.stamps = stamps
    done = set(content.images)
    remaining = [file for file in mine if file.key not in done]
    monitor.start("counting", len(mine), len(mine) - len(remaining))
    pass_over = _Pass(segmenter, inference, labels, content, part, monitor)
    if may_be_away and shard.first and not (content.norms_adapted or content.provenance.norm_distance):
        # Some images come first, while the norms are watched; what was counted before a stop is run again for that.
        chosen = enough_for_norms(mine, FEW_IMAGES)
        observed = ObservedNorms(segmenter.module)
        with segmenter.observed_by(observed):
            pass_over.run([file for file in chosen if file.key in done])
            pass_over.count([file for file in chosen if file.key not in done])
        content.provenance = replace(content.provenance, norm_distance=observed.distance)
        remaining = [file for file in remaining if file not in chosen]
    pass_over.count(remaining)
    order = {file.key: index for index, file in enumerate(files)}
    content.images.sort(key=order.__getitem__)
    if content.norms_shifted and content.norms is None:
        segmenter.notes.append(NORMS_HINT)
    provenance = content.provenance = replace(content.provenance, notes=tuple(segmenter.notes))
    if pass_over.skipped:
        reasons = {entry.file.key: entry.reason for entry in pass_over.skipped}
        content.provenance = replace(provenance, skipped=reasons)
    content.complete = True
    if shard.world > 1:
        write_statistics(part, content)
        wait_for_all(shard)
        if shard.first:
            parts = [shard.path(output, rank) for rank in range(shard.world)]
            content = _whole(merge_statistics((path, read_statistics(path)) for path in parts), provenance, order)
    if shard.first:
        if content.statistics.images == 0 and provenance.shard is None:
            reason = next(iter(content.skipped.values()))
            raise BldaError(f"no image could be read, so there is nothing to count; the first: {reason}")
        write_statistics(output, content)
    wait_for_all(shard)
    part.unlink(missing_ok=True)
    return read_statistics(output)


def _with_norms(
    content: StatisticsFile,
    choice: NormSource | MixedNorms,
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    inference: InferenceOptions,
    labels: LabelReader | None,
    monitor: Monitor,
    *,
    choose_scales: bool,
) -> StatisticsFile:
    """The content with the chosen norm statistics, for a resumed run and for the other processes."""
    norms: Norms | MixedNorms | None
    if choice is NormSource.TARGET:
        chosen = enough_for_norms(files)
        monitor.start("averaging", len(chosen))
        norms = take_norms(segmenter, chosen, inference, advance=advancing(monitor))
    else:
        chosen, more = images_for_choice(files)
        observed = ObservedNorms(segmenter.module)
        given = choice.weight if isinstance(choice, MixedNorms) else None
        monitor.start("choosing the norms' weight" if given is None else "comparing norms", len(chosen))
        norms = choose_weight(
            segmenter,
            chosen,
            inference,
            given=given,
            labels=labels,
            advance=advancing(monitor),
            observed=observed,
            more=more,
            choose_scales=choose_scales and not _is_chosen(choice),
        )
        if isinstance(choice, MixedNorms):
            norms = replace(norms, scales=norms.scales or choice.scales)
        inference = with_kept_scales(inference, norms)
        content.provenance = replace(content.provenance, norm_distance=observed.distance)
    if norms is None:
        return content
    use_norms(segmenter, norms)
    return replace(content, model=model_identity(segmenter, inference), norms=norms)


def _is_chosen(norms: Norms | MixedNorms | NormSource) -> bool:
    """Whether the weight is not only given, but was compared on images before, and the scales chosen with it."""
    return isinstance(norms, MixedNorms) and bool(norms.agreements)


def _without_norms(segmenter: Segmenter) -> NormSource:
    """Handle a segmenter without norms where norms are to be mixed; raises for kinds whose norms cannot be reached."""
    assert segmenter.module is not None
    segmenter.notes.append("the network has no batch norms: --norms instance changes nothing")
    return NormSource.SOURCE


@dataclass
class _Pass:
    """The pass over the images.

    Attributes:
        segmenter, inference, labels, monitor: see :func:`collect_statistics`.
        content: the counts so far.
        part: the file they are saved to regularly, and when the pass is stopped.
        skipped: images that could not be read.
    """

    segmenter: Segmenter
    inference: InferenceOptions
    labels: LabelReader | None
    content: StatisticsFile
    part: Path
    monitor: Monitor
    skipped: list[SkippedFile] = field(default_factory=list)

    def run(self, files: Sequence[ImageSource]) -> None:
        """Run the network without counting, for its batch norm statistics."""
        for _ in self.segmenter.stream(files, self.inference, skipped=[]):
            self.monitor.check()

    def count(self, files: Sequence[ImageSource]) -> None:
        """Count images."""
        content, kept = self.content, time.monotonic()
        device = float64_device(self.segmenter.device)
        try:
            for batch in self.segmenter.stream(files, self.inference, self.labels, self.skipped, ahead=True):
                keys = [file.key for file in batch.files]
                with batch.aside():
                    labels_there = None if batch.labels is None else batch.labels.to(device)
                    logits = batch.logits.to(device)
                    valid = None if batch.valid is None else batch.valid.to(device)
                    content.statistics.update(logits, labels_there, keys, valid=valid, largest=batch.largest)
                content.images += keys
                self.monitor.advance(len(keys))
                self.monitor.check()
                if time.monotonic() - kept > CHECKPOINT_SECONDS:
                    write_statistics(self.part, content)
                    kept = time.monotonic()
        except (BldaError, Interrupted):  # raised between batches: what is counted is whole
            if content.images:
                write_statistics(self.part, content)
            else:
                self.part.unlink(missing_ok=True)
            raise


def _being_replaced(output: Path, shard: Shard) -> bool:
    """Whether partial counts are newer than ``output``: only an interrupted run with ``overwrite`` leaves such."""
    if not output.is_file():
        return False
    parts = [shard.path(output, rank) for rank in range(shard.world)]
    return any(part.exists() and part.stat().st_mtime_ns >= output.stat().st_mtime_ns for part in parts)


def _resumed(part: Path, fresh: StatisticsFile, files: Sequence[ImageSource], output: Path) -> StatisticsFile:
    """The counts of an interrupted run, if model and counting options agree."""
    kept = read_statistics(part)
    difference = None
    for name in ("source", "labels", "norms", "shard"):
        difference = difference or difference_of(getattr(kept.provenance, name), getattr(fresh.provenance, name), name)
    difference = difference or difference_of_kind(kept, fresh)
    if not set(kept.images) <= {file.key for file in files}:
        difference = difference or "the images"
    if difference:
        raise BldaError(
            f"{part} keeps what an earlier run for {output.name} counted, but it differs in {difference}: "
            "--overwrite starts anew"
        )
    for source, cells in kept.statistics.cells.items():
        cells.counts = cells.counts.to(fresh.statistics.cells[source].counts.device)
    provenance = replace(fresh.provenance, norm_distance=kept.provenance.norm_distance)
    return replace(kept, provenance=provenance, complete=False)


def _whole(merged: StatisticsFile, provenance: Provenance, order: Mapping[str, int]) -> StatisticsFile:
    """Merged statistics in the form in which a single process would have written them."""
    return replace(
        merged,
        images=sorted(merged.images, key=order.__getitem__),
        provenance=replace(provenance, skipped=merged.skipped),
    )
