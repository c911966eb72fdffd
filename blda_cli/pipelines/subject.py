"""Load the segmenter, the images and the labels that a request names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blda_cli.data.encodings import custom_encoding
from blda_cli.data.images import at_rate, every, find_images, left_out, masked, unsaid_bits
from blda_cli.data.labels import LabelReader, label_reader
from blda_cli.data.logit_arrays import find_logits
from blda_cli.data.source import ImageSource
from blda_cli.errors import OptionError
from blda_cli.files import real
from blda_cli.pipelines.requests import LabelRequest, SubjectRequest
from blda_cli.runtime.device import choose_device
from blda_cli.runtime.shards import Shard
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.base import Segmenter
from blda_cli.segmenters.calibrated import calibrated
from blda_cli.segmenters.spec import KeptSpec, SegmenterSpec, parse_model, with_changes


@dataclass(frozen=True)
class Subject:
    """A segmenter and the images it is to run over.

    Attributes:
        spec: the model's description.
        segmenter: the segmenter.
        images: all images.
        share: those that ``--shard`` leaves to this job.
        record: which share of which images that is, for the provenance; None: all.
        kept: the description as ``--write-model`` writes it; None: it is not to be written (by this process).
        bits: how many of 16 bits the images' values use, where the description does not state it; see `unsaid_bits`.
    """

    spec: SegmenterSpec
    segmenter: Segmenter
    images: Sequence[ImageSource]
    share: Sequence[ImageSource]
    record: dict[str, Any] | None
    bits: int | None = None
    kept: KeptSpec | None = None

    def keep(self) -> None:
        """Write the description to the file of ``--write-model``, if any: once the network has run.

        Raises:
            BldaError: it cannot be written.
        """
        if self.kept is not None:
            self.kept.write()


def load_subject(request: SubjectRequest, device: str, shard: Shard = Shard()) -> Subject:  # noqa: B008  # frozen
    """Find the images and load the segmenter.

    Args:
        request: names them.
        device: where to run, see :func:`blda_cli.runtime.device.choose_device`.
        shard: this process among those of ``torchrun``.

    Raises:
        BldaError: one of them cannot be loaded.
    """
    part = request.array_shard
    if part is not None and shard.world > 1:
        raise OptionError("--shard is for jobs that do not know of each other; torchrun shares the images out")
    described = parse_model(request.model, request.weights, request.weights_key)
    spec = with_changes(described, request.set, request.classes)
    kept = KeptSpec(spec, request.write_model) if request.write_model is not None and shard.first else None
    array_folder = spec.segmenter.path if spec.segmenter.kind == "logits" else None
    folder = Path(request.images)
    own_folder = array_folder is not None and folder.is_dir() and real(folder) == real(Path(array_folder))
    images: Sequence[ImageSource] = (
        find_logits(request.images) if own_folder else find_images(request.images, spec.preprocessing.pixels)
    )
    rest = None if own_folder else left_out(request.images, images)
    images = every(images, request.every) if request.fps is None else at_rate(images, request.fps)
    if request.valid_mask:
        images = masked(images, request.valid_mask)
    segmenter = load_segmenter(spec, choose_device(device))
    spec = with_own_labels(spec, segmenter)
    if request.calibrator is not None:
        segmenter = calibrated(segmenter, request.calibrator)
    if rest is not None:
        segmenter.notes.append(rest)
    bits = unsaid_bits(images)
    if bits is not None:
        segmenter.notes.append(
            f"the images' values use {bits} of 16 bits, so that they look dark: bits = {bits} under [preprocessing] "
            f"makes {(1 << bits) - 1} white"
        )
    if part is None:
        return Subject(spec, segmenter, images, images, None, bits, kept)
    record = part.record([image.key for image in images])
    return Subject(spec, segmenter, images, part.share(images), record, bits, kept)


def with_own_labels(spec: SegmenterSpec, segmenter: Segmenter) -> SegmenterSpec:
    """The description, with the model's own label encoding where the description has none."""
    own, said = segmenter.label_encoding, spec.labels
    if own is None or said.encoding is not None or said.mapping:
        return spec
    return replace(spec, labels=replace(said, encoding=own))


def read_labels(subject: Subject, request: LabelRequest) -> LabelReader | None:
    """Pair the images of this job with their labels; None where there are none.

    Raises:
        BldaError: an image has no label, or the encoding does not fit.
    """
    if request.labels is None:
        return None
    described, encoding = subject.spec.labels, request.label_encoding
    return label_reader(
        subject.share,
        request.labels,
        subject.segmenter.classes,
        encoding=custom_encoding(described.mapping)
        if described.mapping and not encoding
        else encoding or described.encoding or "auto",
        groups=subject.spec.classes.groups or None,
        ignore=request.ignore_label,
        orientation=described.orientation,
    )
