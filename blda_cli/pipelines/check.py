"""``blda check``: run a model on a dozen images and check its description."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.class_order import moved_classes
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.description import CLEAR, TIED, times
from blda_cli.core.kernels import argmax
from blda_cli.data.encodings import ENCODINGS
from blda_cli.data.labels import LabelReader
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.files import replacing, to_json
from blda_cli.pipelines.doubts import (
    DESCRIPTION,
    UNSAID,
    WEIGHTS,
    better_description,
    forgotten_weights,
    is_unsaid,
    label_remarks,
    listed,
)
from blda_cli.pipelines.requests import CheckRequest, SubjectRequest
from blda_cli.pipelines.subject import load_subject, read_labels
from blda_cli.reporting.check_model import Check, LabelFindings, Remark
from blda_cli.reporting.check_page import WIDEST, overlay_sheet, to_html
from blda_cli.reporting.check_words import as_json
from blda_cli.runtime.monitor import Monitor
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.descriptions import (
    LATE,
    Comparison,
    compare_descriptions,
    described_network,
    pictures,
    spread,
)
from blda_cli.segmenters.inspection import inspect
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import SegmenterSpec, write_spec

IMAGES = 12
"""Images that the model is run on."""

_BETTER, _MORE = 1.5, 0.1
"""Another label encoding is suggested where at least this many times as many pixels agree under it, and at least this
share of all pixels more."""

_NEARLY_ALL = 0.95
"""Share of the pixels predicted as one class from which on a remark is made."""

Labels = Callable[[str | None], LabelReader]
"""Returns a reader of the images' labels with a named encoding, or for None with the request's."""


_FED = 1 << 20
"""Pixels of a part that the network is fed at once to inspect it; parts are run by windows."""

FILES = ("check.html", "check.json", "overlays.png")


def check(request: CheckRequest, monitor: Monitor) -> Check:
    """Load a model, run it on a dozen images and check its description.

    Args:
        request: the model, the images, their labels and the outputs.
        monitor: receives the progress.

    Returns:
        The findings.

    Raises:
        BldaError: the model, an image or a label cannot be read, the network cannot be run, or a file cannot be
            written.
        Interrupted: the user asked to stop.
    """
    _check_outputs(request)
    asked = SubjectRequest(**{**vars(request.model), "write_model": None})
    subject = load_subject(asked, request.device)
    bits = subject.bits
    if bits is not None:  # all else is judged with the depth that the values have
        subject = load_subject(replace(asked, set=(*asked.set, f"preprocessing.bits={bits}")), request.device)
    subject = replace(subject, share=spread(subject.images, IMAGES))

    def labels(encoding: str | None) -> LabelReader:
        asked = request.labelled if encoding is None else replace(request.labelled, label_encoding=encoding)
        reader = read_labels(subject, asked)
        assert reader is not None
        return reader

    inference = InferenceOptions(device=request.device)
    found = look(
        subject.spec,
        subject.segmenter,
        subject.share,
        inference,
        labels if request.labelled.labels else None,
        monitor,
    )
    if bits is not None:
        text = (
            f"the images' values use {bits} of 16 bits, and nothing says so: put bits = {bits} under [preprocessing], "
            "as it is taken here"
        )
        found = replace(found, remarks=(Remark("bits", grave=True, text=text), *found.remarks))
    if request.model.write_model is not None:
        _write_model(request.model.write_model, subject.spec, found)
    if request.output is not None:
        _write(found, request.output)
    return found


def _check_outputs(request: CheckRequest) -> None:
    """Refuse to replace existing outputs without ``overwrite``, before anything is run."""
    if request.output is not None and request.output.is_file():
        raise BldaError(f"{request.output} is a file: give a folder")
    outputs = [] if request.output is None else [request.output / name for name in FILES]
    for path in [*outputs, *([] if request.model.write_model is None else [request.model.write_model])]:
        if path.exists() and not request.overwrite:
            raise BldaError(f"{path} exists already: --overwrite replaces it")


def _write_model(path: Path, spec: SegmenterSpec, found: Check) -> None:
    if found.comparison is None:
        raise BldaError(f"--write-model: a model of kind {found.kind} has no input to describe: leave it out")
    chosen = found.comparison.chosen
    best = spec if chosen is found.comparison.own else replace(spec, preprocessing=chosen.description.section)
    if found.multiple is not None:
        best = replace(best, preprocessing=replace(best.preprocessing, multiple_of=found.multiple))
    write_spec(best, path)


def _write(found: Check, folder: Path) -> None:
    """Write the page, the numbers and the sheet of overlays."""
    with replacing(folder / FILES[0]) as temporary:
        temporary.write_text(to_html(found), encoding="utf-8", errors="backslashreplace")
    with replacing(folder / FILES[1]) as temporary:
        temporary.write_text(to_json(as_json(found)), encoding="utf-8", errors="backslashreplace")
    if found.frames:
        with replacing(folder / FILES[2]) as temporary:
            overlay_sheet(found).save(temporary, format="PNG")


def look(
    spec: SegmenterSpec,
    segmenter: Segmenter,
    files: Sequence[ImageSource],
    inference: InferenceOptions,
    labels: Labels | None,
    monitor: Monitor,
) -> Check:
    """Check a model on images.

    Args:
        spec: its description.
        segmenter: the loaded model.
        files: the images; a dozen are taken, spread evenly.
        inference: how they are run.
        labels: reads their labels; None where there are none.
        monitor: receives the progress.

    Raises:
        BldaError: the network cannot be run, or an image or label cannot be read.
    """
    files = spread(files, IMAGES)
    network = described_network(segmenter)
    inspection, comparison, multiple = None, None, None
    if network is not None:
        first = pictures(network, files[:1], _FED if files[0].is_part else None)
        if first:
            inspection = inspect(network, first[0])
            multiple = network.multiple_needed((first[0].shape[2], first[0].shape[3]))
        comparison = compare_descriptions(network, files, monitor)
    reader = None if labels is None else labels(None)
    confusion = ConfusionMatrix(len(segmenter.classes))
    counts = np.zeros(len(segmenter.classes), dtype=np.int64)
    frames: list[tuple[str, np.ndarray, np.ndarray]] = []
    predictions: list[tuple[ImageSource, np.ndarray]] = []
    size = (0, 0)
    monitor.start("predicting", len(files))
    for batch in segmenter.stream(files, inference, reader):
        predicted = batch.known(argmax(batch.logits).to(torch.int16)).cpu()
        counts += np.bincount(predicted[predicted != IGNORE_INDEX].numpy(), minlength=len(counts))
        if batch.labels is not None:
            confusion.update(batch.labels.cpu(), predicted)
        for file, classes in zip(batch.files, predicted, strict=True):
            size = size if any(size) or classes.ndim != 2 else (classes.shape[0], classes.shape[1])
            if reader is not None:
                predictions.append((file, classes.numpy().astype(np.int16)))
            frames += _frame(file, classes.numpy())
        monitor.advance(len(batch.files))
        monitor.check()
    findings = (
        None
        if reader is None or labels is None
        else _findings(reader, labels, confusion, predictions, segmenter.classes.names)
    )
    result = Check(
        kind=str(segmenter.identity["kind"]),
        classes=segmenter.classes,
        outputs=network.outputs if network is not None else len(segmenter.classes),
        grouped=bool(spec.classes.groups),
        inspection=inspection,
        size=size,
        comparison=comparison,
        multiple=multiple,
        images=len(files),
        shares=counts / max(int(counts.sum()), 1),
        frames=frames,
        labels=findings,
    )
    return replace(result, remarks=tuple(_remarks(result, spec, network)))


def _frame(file: ImageSource, classes: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Key, small picture and small class map of an image; none of a classifier's, or where it is no picture."""
    if classes.ndim != 2:
        return []
    try:
        picture = Image.fromarray(file.picture())
    except (BldaError, TypeError, ValueError):
        return []
    height, width = classes.shape
    scale = min(1.0, WIDEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(classes.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return [(file.key, np.asarray(picture.convert("RGB").resize(size)), np.asarray(small).astype(np.int64))]


def _findings(
    reader: LabelReader,
    labels: Labels,
    confusion: ConfusionMatrix,
    predictions: Sequence[tuple[ImageSource, np.ndarray]],
    names: Sequence[str],
) -> LabelFindings:
    """How predictions and labels agree, and whether they would under another encoding."""
    hits = int(confusion.counts.diagonal().sum()) / max(sum(classes.size for _, classes in predictions), 1)
    best: tuple[str, float, float] | None = None
    for name in ("ids", "colors", *ENCODINGS):
        if name == reader.encoding:
            continue
        with suppress(BldaError):  # it does not fit the files or the classes
            share = _agreeing(labels(name), predictions)
            if share >= max(_BETTER * hits, hits + _MORE) and (best is None or share > best[1]):
                best = (name, share, hits)
    return LabelFindings(
        encoding=reader.encoding,
        confusion=confusion,
        ignored=reader.ignored_share,
        unmatched=reader.unmatched,
        remarks=tuple(label_remarks(reader, confusion, reader.ignored_share, names)),
        moved=tuple(moved_classes(confusion)),
        other=best,
    )


def _agreeing(reader: LabelReader, predictions: Sequence[tuple[ImageSource, np.ndarray]]) -> float:
    """Share of all pixels that are predicted as they are labelled."""
    hits = sum(int(np.count_nonzero((reader(file) == classes) & (classes >= 0))) for file, classes in predictions)
    return hits / max(sum(classes.size for _, classes in predictions), 1)


def _remarks(check: Check, spec: SegmenterSpec, network: NetworkSegmenter | None) -> Iterator[Remark]:
    """Remarks for the user, the gravest first."""
    names = check.classes.names
    comparison, labels = check.comparison, check.labels
    weights = None if network is None else forgotten_weights(spec, network)
    if weights:
        yield Remark(WEIGHTS, grave=True, text=weights)
    elif comparison is not None and comparison.norms:
        yield from _description_remarks(comparison)
    if labels is not None and labels.moved:
        pairs = ", ".join(f"{names[one.label]} is predicted as {names[one.channel]}" for one in labels.moved[:6])
        yield Remark(
            "class-order",
            grave=True,
            text=f"in the labels, {pairs}: is the order of the classes right? Correct names under [classes], or the "
            "label encoding",
        )
    if labels is not None and labels.other is not None:
        name, share, own = labels.other
        yield Remark(
            "label-encoding",
            grave=True,
            text=f"with --label-encoding {name}, {share:.0%} of the pixels are predicted as they are labelled; with "
            f"{labels.encoding}, {own:.0%}",
        )
    if is_unsaid(spec) and not weights and (comparison is None or comparison.norms == 0 or comparison.late > LATE):
        yield Remark(
            "unsaid",
            grave=False,
            text=UNSAID,
        )
    if check.multiple is not None:
        yield Remark(
            "sides",
            grave=False,
            text=f"the network fails on sides that are no multiples of {check.multiple}, as copies of the images at "
            f"other scales have them: put multiple_of = {check.multiple} under [preprocessing] (--set "
            f"multiple_of={check.multiple})",
        )
    if labels is not None:
        yield from (Remark("labels", grave=False, text=text) for text in labels.remarks)
    largest = int(check.shares.argmax())
    if check.shares[largest] >= _NEARLY_ALL:
        yield Remark(
            "one-class",
            grave=False,
            text=f"{check.shares[largest]:.0%} of the pixels are predicted as {names[largest]}",
        )
    never = [name for name, share in zip(names, check.shares, strict=True) if share == 0]
    if never:
        yield Remark("never-predicted", grave=False, text=f"never predicted on these images: {listed(never)}")


def _description_remarks(comparison: Comparison) -> Iterator[Remark]:
    best, own = comparison.best, comparison.own
    weak = comparison.late > LATE
    if comparison.gain >= CLEAR:
        yield Remark(DESCRIPTION, grave=not weak, text=better_description(comparison))
    elif not best.description.same_normalisation(comparison.given):
        if times(own.fit, best.fit) > TIED:
            yield Remark(
                DESCRIPTION,
                grave=False,
                text=f"{best.description} fits better than the model's {own.description}, though not clearly: compare "
                f"the overlays with both; {best.description.in_place_of(own.description)}",
            )
    elif comparison.colour_told and best.description.section.color != comparison.given.section.color:
        worse = times(own.fit, best.fit)
        yield Remark(
            DESCRIPTION,
            grave=worse >= CLEAR and not weak,
            text=f"the colours seem to be in the wrong order: {best.description} fits {worse:.1f} times better "
            f"(norm distance times disagreement) than {own.description}; "
            f"{best.description.in_place_of(own.description)}",
        )
