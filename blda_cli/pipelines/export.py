"""``blda export``: a corrected network that runs without blda."""

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blda_cli.core.corrections import Correction, OffsetCorrection
from blda_cli.core.fitting import resolve_strength
from blda_cli.errors import BldaError
from blda_cli.exporting.content import Content
from blda_cli.exporting.correct import Fold, Scores, correct, into_layers
from blda_cli.exporting.formats import FORMATS, format_of, write
from blda_cli.exporting.norms import mix_with_images
from blda_cli.exporting.verify import IMAGES, Agreement, verify
from blda_cli.files import real, to_json, unwritable
from blda_cli.pipelines.align import collected, refuse_second_correction, say_notes, without_doubt
from blda_cli.pipelines.alignment_inputs import AlignmentInputs, fit
from blda_cli.pipelines.job import Job
from blda_cli.pipelines.requests import ExportRequest, NormsRequest
from blda_cli.pipelines.subject import load_subject
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.base import Segmenter, model_identity
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.norms import enough_for_norms, has_norms, use_norms
from blda_cli.segmenters.spec import SegmenterSpec, parse_model, to_toml
from blda_cli.store.provenance import Provenance

CONTENT = "blda-export"
FORMAT_VERSION = 1
RECORD = "export.json"
MODEL = "model.toml"

_CPU = torch.device("cpu")

_TRIED_ON = (192, 256)
"""Most (height, width) of an image that the network is tried on and traced with."""

_SHOWN = 2048
"""Longest side, in pixels, of the part of an image that predictions are compared on."""


@dataclass(frozen=True)
class ExportRecord:
    """How an export was made: the content of ``export.json``.

    Attributes:
        format: of the network, see :data:`blda_cli.exporting.formats.FORMATS`.
        files: in the folder.
        model: identity of the original segmenter.
        settings: of the correction; None where nothing was corrected.
        correction: the correction in a few words, likewise.
        statistics: names and digests of the files it was fitted to.
        layer: the layer that took the offsets; None where none did.
        behind: kinds of modules that the scores go through behind the network.
        norms: identity of the norm statistics put into the network; None: the network's own.
        output_kind: ``logits``, ``probabilities`` or ``classes`` (class ids).
        classes: names of the output's channels or ids.
        dtype: ``float32`` or ``float16``.
        agreement: how predictions agreed with those of ``blda align``.
        provenance: command line, options, versions and time.
    """

    format: str
    files: list[str]
    model: dict[str, Any]
    settings: dict[str, Any] | None
    correction: str | None
    statistics: dict[str, Any]
    layer: str | None
    behind: list[str]
    norms: dict[str, Any] | None
    output_kind: str
    classes: list[str]
    dtype: str
    agreement: Agreement
    provenance: Provenance = field(default_factory=Provenance)

    def as_json(self) -> dict[str, Any]:
        """The record as JSON."""
        return {**asdict(self), "provenance": self.provenance.as_json()}


def export(request: ExportRequest, job: Job) -> ExportRecord:
    """Put a correction into a network and write it to ``job.output`` in a format that runs without blda.

    Args:
        request: the segmenter, the images, the statistics, the correction and the format.
        job: where to write.

    Returns:
        The record of the folder.

    Raises:
        BldaError: the segmenter, an image or a statistics file cannot be read, the statistics are of another model,
            the format cannot hold the correction, the folder cannot be written, or the export predicts something else
            than ``blda align``.
        Interrupted: the user asked to stop.
    """
    settings, files, inference, say = request.alignment, request.files, request.inference, job.monitor.say
    if job.shard.world > 1:
        raise BldaError("blda export runs in one process: leave out torchrun")
    _check_room(job.output, job.overwrite)
    inputs = AlignmentInputs.read(files) if files.stats else None
    subject = load_subject(request.subject, inference.device, job.shard)
    spec, segmenter = subject.spec, _checked(subject.segmenter)
    refuse_second_correction(segmenter, request)
    format = _format(request, segmenter)
    weights_alone = not FORMATS[format].carries_code and settings.corrects
    if weights_alone and not (request.norms.given or files.stats) and has_norms(segmenter):
        say(f"--format {format} holds weights alone: batch norms take statistics of the images (--norms target)")
        request = replace(request, norms=NormsRequest(norms="target"))
    _network(spec, segmenter)  # what cannot be exported is refused before statistics are collected
    with job.running():
        if inputs is None and (request.norms.given or settings.corrects):
            inputs = AlignmentInputs.read(files, collected(request, subject, job))
        correction: Correction = OffsetCorrection(torch.zeros(len(segmenter.classes)))
        if inputs is not None:
            use_norms(segmenter, inputs.target.content.norms)
            inputs.check(segmenter, inference, force=request.force)
            settings = without_doubt(settings, inputs.target.content, say, force=request.force)
            evidence = inputs.evidence(settings)
            settings = replace(settings, tau=resolve_strength(settings, evidence))
            correction = fit(settings, evidence)
        corrects = not isinstance(correction, OffsetCorrection) or bool(correction.offsets.any())
        if not corrects:
            say("nothing is corrected: the export predicts the network's argmax")
        images = enough_for_norms(subject.images, IMAGES)
        shown = [segmenter.read(image)[:_SHOWN, :_SHOWN] for image in images]  # of a huge image a part does
        content = _content(request, spec, segmenter, correction, shown[0], settings.describe() if corrects else None)
        _check_fits(format, content, correction)
        job.monitor.check()
        with _writing(job.output) as work:
            described = write(format, content, work)
            (work / MODEL).write_text(to_toml(described, work), encoding="utf-8")
            job.monitor.check()
            agreement = _agreement(work, content, correction, shown)
            if content.argmax:  # the other commands need scores
                (work / MODEL).unlink()
            record = ExportRecord(
                format=format,
                files=sorted(path.name for path in work.iterdir()),
                model=model_identity(segmenter, inference),
                settings=asdict(settings) if corrects else None,
                correction=content.correction,
                statistics=inputs.record() if inputs else {},
                layer=content.parts.layer,
                behind=[type(stage).__name__ for stage in content.tail().stages],
                norms=segmenter.identity.get("norms"),
                output_kind="classes" if content.argmax else "logits" if content.gives_logits else "probabilities",
                classes=list(content.outputs.names),
                dtype=request.dtype,
                agreement=agreement,
                provenance=replace(job.provenance, source=request.subject.images),
            )
            _write_record(work / RECORD, record, job.output)
    subject.keep()
    say_notes(segmenter, inputs.target.content if inputs and files.stats else None, say)
    return record


def _checked(segmenter: Segmenter) -> NetworkSegmenter:
    """The segmenter, checked to hold a network that can be exported.

    Raises:
        BldaError: it has none, or one that no format can hold.
    """
    kind = segmenter.identity["kind"]
    if not isinstance(segmenter, NetworkSegmenter):
        raise BldaError("ready-made logits come without a network, which export needs: give the network as --model")
    if kind != "onnx" and not isinstance(segmenter.network, nn.Module):
        raise BldaError("the factory returns no torch.nn.Module: export needs one")
    return segmenter


def _format(request: ExportRequest, segmenter: NetworkSegmenter) -> str:
    """The format asked for.

    Raises:
        BldaError: a segmenter of this kind cannot be written in it, or it cannot hold what is asked for.
    """
    kind = segmenter.identity["kind"]
    name = format_of(request.format, kind)
    assert name is not None  # every kind with a network has one
    entry = FORMATS[name]
    if kind not in entry.kinds:
        raise BldaError(f"--format {name} cannot be made of a model of kind {kind}: {_others(kind)} can")
    if not entry.carries_code:
        for option, given in (("--groups", request.groups), ("--argmax", request.argmax)):
            if given:
                raise BldaError(f"{option}: --format {name} holds weights alone: {_others(kind, code=True)} can do it")
    if request.groups and segmenter.grouping is None:
        raise BldaError("--groups: the model's description has no [classes.groups]: leave it out")
    if request.dtype == "float16" and kind == "onnx":
        raise BldaError("--dtype float16: an ONNX file keeps its own type: export from the PyTorch network")
    return name


def _others(kind: str, *, code: bool = False) -> str:
    """The formats that a kind can be written in."""
    names = [name for name, one in FORMATS.items() if kind in one.kinds and (one.carries_code or not code)]
    return " or ".join(f"--format {name}" for name in names)


def _network(spec: SegmenterSpec, segmenter: NetworkSegmenter) -> nn.Module:
    """A copy of the network to be changed, on the CPU."""
    kind = spec.segmenter.kind
    if kind == "onnx":
        from blda_cli.exporting.onnx import read_copy

        return read_copy(Path(str(spec.segmenter.path)))
    if kind in ("exported", "torchscript") and segmenter.device.type != "cpu":  # their programs name the device
        segmenter = _checked(load_segmenter(spec, _CPU))
    network = segmenter.network
    assert isinstance(network, nn.Module)
    network = copy.deepcopy(network).cpu()
    mix_with_images(network, segmenter.norm_weight)
    return network


def _content(
    request: ExportRequest,
    spec: SegmenterSpec,
    segmenter: NetworkSegmenter,
    correction: Correction,
    shown: np.ndarray,
    described: str | None,
) -> Content:
    """The content of the export: the network with the correction in it.

    Raises:
        BldaError: the network cannot hold the correction.
    """
    images, scores = _tried_on(segmenter, shown)
    if segmenter.grouping is not None and not request.groups and not isinstance(correction, OffsetCorrection):
        raise BldaError(
            f"{described} works on the logits of the groups, and the network gives those of the classes: --groups "
            "makes the groups its outputs"
        )
    if not segmenter.is_plain or (scores.shape[1] == 1 and segmenter.outputs > 1):
        raise BldaError(
            "the correction is for one channel of logits or probabilities per class, [N, C, H, W]; the network gives "
            "something else (one channel, sigmoids, a background, channels last, quantised scores or a margin): return "
            "such logits in the network to export it; blda align corrects it as it is"
        )
    meaning = Scores(scores.shape[1], segmenter.outputs, segmenter.gives_probabilities, segmenter.grouping)
    network = _network(spec, segmenter)
    fold: Fold
    if spec.segmenter.kind == "onnx":
        from blda_cli.exporting.onnx import OnnxCopy, into_nodes

        assert isinstance(network, OnnxCopy)
        fold = into_nodes(network, segmenter, images)
    else:
        fold = into_layers(network, images.cpu(), segmenter.port.read)
    content = Content(
        spec=spec,
        segmenter=segmenter,
        parts=correct(network, correction, meaning, fold),
        correction=described,
        images=images.cpu(),
        groups=request.groups,
        argmax=request.argmax,
        half=request.dtype == "float16",
    )
    size = segmenter.preprocessor.section.size
    if size is not None and scores.ndim == 4 and (content.parts.at_input_size or content.groups):
        what = "--groups" if content.groups else described
        raise BldaError(
            f"{what} works on logits at the image's own size, but images are resized to {size[0]}x{size[1]} for the "
            "network: only offsets per class (e.g. --shift negative) can be exported"
        )
    return content


def _tried_on(segmenter: NetworkSegmenter, shown: np.ndarray) -> tuple[Tensor, Tensor]:
    """A sample input of the network, part of an image where it takes any size, and the network's scores for it."""
    pixels = torch.from_numpy(shown).to(segmenter.device)[None].permute(0, 3, 1, 2).float()
    pixels = pixels.expand(segmenter.port.batch or 2, -1, -1, -1)
    for part in (pixels[..., : _TRIED_ON[0], : _TRIED_ON[1]], pixels):
        images = segmenter.network_input(part)
        try:
            return images, segmenter.network_scores(images)
        except BldaError:
            if part is pixels:
                raise
    raise AssertionError  # the last part is all of it


def _check_fits(format: str, content: Content, correction: Correction) -> None:
    """Refuse a format that holds weights alone where they do not suffice.

    Raises:
        BldaError: the message says why, and which formats do.
    """
    parts, segmenter = content.parts, content.segmenter
    if FORMATS[format].carries_code or not (parts.stages or parts.new_bias or segmenter.norm_weight != 1):
        return
    if segmenter.norm_weight != 1:
        why = (
            "its norms mix their statistics with each image's own as the network runs (with --norms target they do not)"
        )
    elif parts.new_bias:
        why = f"{parts.layer} has no bias that could take the offsets, and a new one does not fit the same code"
    elif not isinstance(correction, OffsetCorrection):
        why = f"{content.correction} is more than an offset per class"
    elif segmenter.port.probabilities:
        why = "a mask-classification network normalises its classes query by query, which no bias makes up for"
    elif segmenter.gives_probabilities:
        why = "the network ends in probabilities, which no bias scales"
    else:
        why = "moving no layer's bias moves the network's output by the same amount everywhere"
    raise BldaError(
        f"--format {format} holds weights alone, which do not suffice: {why}; "
        f"{_others(segmenter.identity['kind'], code=True)} can"
    )


def _agreement(work: Path, content: Content, correction: Correction, shown: Sequence[np.ndarray]) -> Agreement:
    """Load the export anew and compare its predictions.

    Raises:
        BldaError: it cannot be loaded, or predicts something else.
    """
    segmenter = content.segmenter
    exported = _checked(load_segmenter(parse_model(str(work / MODEL)), segmenter.device))
    corrected = correction.to(segmenter.device)
    found = verify(segmenter, corrected, exported, shown, ids=content.argmax, half=content.half)
    if not found.holds:
        raise BldaError(
            f"the export was not written, as its predictions are not those of blda align ({found.describe()}): the "
            "network may do otherwise when it is traced or computes in another precision; try another --format"
        )
    return found


def _check_room(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that an export cannot be written to.

    Raises:
        BldaError: it holds other things, or an export that may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise BldaError(f"{folder} is no folder: give a new or an empty one")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if held and RECORD not in held:
        raise BldaError(f"{folder} holds other things ({min(held)}): give a new or an empty folder")
    if held and not overwrite:
        raise BldaError(f"{folder} holds an export already: --overwrite replaces it")


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, which takes its place when the block ends without an error.

    Raises:
        BldaError: it cannot be written.
    """
    folder = real(folder)
    work, replaced = (folder.with_name(f".{folder.name[:200]}.{state}") for state in ("exporting", "replaced"))
    try:
        for left in (work, replaced):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            work.mkdir(parents=True)
            yield work
            if folder.exists():
                folder.rename(replaced)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def _write_record(path: Path, record: ExportRecord, folder: Path) -> None:
    content = {
        "content": CONTENT,
        "format_version": FORMAT_VERSION,
        "summary": summary(record, folder),
        **record.as_json(),
    }
    path.write_text(to_json(content), encoding="utf-8")


_BY = {
    "state-dict": "PyTorch",
    "huggingface": "transformers",
    "onnx": "onnxruntime",
    "pt2": "torch.export",
    "torchscript": "TorchScript",
}
"""How a format is loaded."""


def summary(record: ExportRecord, folder: Path) -> str:
    """Summary of an export, in one paragraph.

    Args:
        record: of the export.
        folder: where it is.
    """
    main = next(name for name in record.files if name != MODEL and name.startswith(("network.", "model.")))
    parts = [f"{folder}: {main}, loaded by {_BY[record.format]}, gives {_OUTPUTS[record.output_kind]}"]
    parts[0] += f" of {len(record.classes)} classes{' in float16' if record.dtype == 'float16' else ''}."
    if record.correction is None:
        parts.append("Nothing is corrected.")
    elif record.layer is not None:
        parts.append(f"The correction ({record.correction}) is in the bias of {record.layer} and takes no time.")
    else:
        parts.append(f"The correction ({record.correction}) is done behind the network: {', '.join(record.behind)}.")
    if record.norms is not None:
        how = f"hold statistics of {record.norms.get('images')} target images"
        if "weight" in record.norms:
            how = f"mix in each image's own statistics (weight {record.norms['weight']:g})"
        parts.append(f"Its batch norms {how}.")
    parts.append(f"Loaded anew, its predictions agree with those of blda align: {record.agreement.describe()}.")
    if MODEL in record.files:
        parts.append(f"{folder / MODEL} describes it to every blda command.")
    return " ".join(parts)


_OUTPUTS = {"logits": "logits", "probabilities": "probabilities, not normalised,", "classes": "class ids"}
