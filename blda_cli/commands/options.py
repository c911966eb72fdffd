"""Options that several commands share, and what they stand for."""

import math
import platform
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.core import ParameterSource

from blda_cli.version import __version__

if TYPE_CHECKING:  # these import torch, which --help and completion do without
    from blda_cli.core.choices import NormSource
    from blda_cli.core.norms import MixedNorms, Norms
    from blda_cli.data.classes import ClassSet
    from blda_cli.data.labels import LabelReader
    from blda_cli.data.source import ImageSource
    from blda_cli.runtime.shards import ArrayShard, Shard
    from blda_cli.segmenters.base import InferenceOptions, Segmenter
    from blda_cli.segmenters.spec import SegmenterSpec
    from blda_cli.store.provenance import Provenance

F = TypeVar("F", bound=Callable[..., Any])

_STRONGEST = 1000
_MOST_SCALES = 32


def size(value: Any) -> tuple[int, int]:
    """Parse ``512x1024``, height first.

    Raises:
        click.BadParameter: it is none.
    """
    parts = value if isinstance(value, tuple) else str(value).lower().split("x")
    if len(parts) != 2 or not all(re.fullmatch("0*[1-9][0-9]{0,5}", str(part)) for part in parts):
        raise click.BadParameter(f"{str(value)[:60]!r} is not a size such as 512x1024 (height first)")
    return int(parts[0]), int(parts[1])


def scales(value: Any) -> tuple[float, ...]:
    """Parse ``0.5,1.0``.

    Raises:
        click.BadParameter: they are none.
    """
    try:
        numbers = tuple(float(part) for part in str(value).split(","))
    except ValueError:
        numbers = ()
    if not 0 < len(numbers) <= _MOST_SCALES or not all(0.01 <= number <= 100 for number in numbers):
        raise click.BadParameter(f"{str(value)[:60]!r} is not a list of scales such as 0.5,0.75,1.0 (0.01 to 100)")
    return numbers


def strength(value: Any) -> float | str:
    """Parse a number from 0, or ``auto``.

    Raises:
        click.BadParameter: it is neither, or beyond all sense.
    """
    try:
        number = math.nan if value == "auto" else float(value)
    except ValueError:
        number = math.nan
    if value != "auto" and not 0 <= number <= _STRONGEST:
        raise click.BadParameter(f"{value!r} is neither a strength from 0 to {_STRONGEST} nor auto")
    return value if value == "auto" else number


def array_shard(value: Any) -> "ArrayShard":
    """Parse ``3/8``.

    Raises:
        click.BadParameter: it is no shard.
    """
    from blda_cli.runtime.shards import ArrayShard

    number, _, of = str(value).partition("/")
    if not all(re.fullmatch("[0-9]{1,6}", part) for part in (number, of)) or not 1 <= int(number) <= int(of):
        raise click.BadParameter(f"{value!r} is not a shard such as 3/8 (of 1/8 to 8/8)")
    return ArrayShard(int(number), int(of))


def choice(options: type[StrEnum]) -> "click.Choice[str]":
    """One of an enumeration's values, as text."""
    return click.Choice([str(one) for one in options])


def together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that is several, the first outermost."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


model_options = together(
    click.option(
        "--model",
        required=True,
        type=click.Path(),  # most often one, and so completed as one
        metavar="MODEL",
        help="The segmenter: a TOML file, hf:NAME, a Hugging Face folder, net.pt2, net.ts, net.onnx, module:factory "
        "or logits:DIR.",
    ),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        help="Weights for a Python network, in place of the TOML's: .safetensors, or .pth read with weights_only.",
    ),
)
"""``--model`` and ``--weights``."""

images_option = click.option(
    "--images",
    required=True,
    type=click.Path(),
    metavar="DIR",
    help="The images: a folder (searched through), a glob, or a .txt list. For logits:DIR it may be that folder.",
)

inference_options = together(
    click.option("--slide", type=size, metavar="HxW", help="Run window by window of this size; overlaps are averaged."),
    click.option(
        "--stride", type=size, metavar="HxW", help="Step between windows.  [default: two thirds of the window]"
    ),
    click.option(
        "--scales",
        type=scales,
        default="1.0",
        show_default=True,
        metavar="S,S,...",
        help="Average over these image scales.",
    ),
    click.option("--flip", is_flag=True, help="Average with the flipped image."),
    click.option(
        "--batch-size",
        type=click.IntRange(1, 1 << 16),
        default=1,
        show_default=True,
        help="Images of one size to run together.",
    ),
    click.option("--amp", is_flag=True, help="Run the network in mixed precision."),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda[:N]|mps",
        help="Where to run; auto takes a GPU where there is one.",
    ),
    click.option(
        "--workers", type=click.IntRange(1, 1024), default=2, show_default=True, help="Threads that read images ahead."
    ),
    click.option(
        "--on-error",
        type=click.Choice(["stop", "skip"]),
        default="stop",
        show_default=True,
        help="At an unreadable image: stop, or name it, count it and go on.",
    ),
)
"""How images are run; :func:`inference_from` makes what they stand for."""

calibrator_option = click.option(
    "--calibrator",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Put the logits through a calibrator that fiducio fitted and saved.",
)

norms_option = click.option(
    "--norms",
    metavar="source|target|auto|FILE.h5",
    help="What batch norms normalise by: the averages the network was trained with, those blended with the images' own "
    "(auto: where the two lie far apart), or what a statistics file was collected with.  [default: source]",
)


NORMS_HINT = (
    "batch norms: the averages of these images lie far from the network's own; statistics collected with "
    "--norms target may bring more than any correction"
)


def norms_from(said: str | None) -> "Norms | MixedNorms | NormSource":
    """What :data:`norms_option` stands for.

    Raises:
        BldaError: there is no such statistics file.
    """
    from blda_cli.core.choices import NormSource
    from blda_cli.store.statistics import read_statistics

    if said is None or said in list(NormSource):
        return NormSource(said or "source")
    return read_statistics(Path(said)).norms or NormSource.SOURCE


label_options = together(
    click.option(
        "--labels",
        type=click.Path(),
        metavar="DIR",
        help="Ground truth: a folder (paired with the images by relative path), a glob, or a .txt list; for a "
        "classifier a .csv of key,class.",
    ),
    click.option(
        "--label-encoding",
        metavar="NAME",
        help="What the values in the label files mean: cityscapes-ids, cityscapes-train-ids, ade20k, ids, colors, ...  "
        "[default: the TOML's, else told by names and contents]",
    ),
    click.option(
        "--ignore-label",
        type=click.IntRange(0, 65535),
        metavar="VALUE",
        help="A label value that means no class, besides the encoding's.",
    ),
)
"""``--labels`` and what its files mean."""

shard_option = click.option(
    "--shard",
    "array_shard",
    type=array_shard,
    metavar="I/N",
    help="Take only the I-th of N shares of the images: the jobs of an array, each with its own --output, which "
    "blda merge puts together.",
)

quiet_option = click.option("--quiet", is_flag=True, help="No progress and no remarks but of images left out.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")


def inference_from(
    *,
    slide: tuple[int, int] | None,
    stride: tuple[int, int] | None,
    scales: tuple[float, ...],
    flip: bool,
    batch_size: int,
    amp: bool,
    workers: int,
    on_error: Literal["stop", "skip"],
) -> "InferenceOptions":
    """What :data:`inference_options` stand for."""
    from blda_cli.segmenters.base import InferenceOptions

    if stride is not None and slide is None:
        raise click.UsageError("--stride is the step between the windows of --slide; give that too")
    return InferenceOptions(
        batch_size=batch_size,
        workers=workers,
        slide=slide,
        stride=stride,
        scales=scales,
        flip=flip,
        amp=amp,
        on_error=on_error,
    )


def refuse_alone(needed: str, given: Any, others: dict[str, Any]) -> None:
    """Refuse options that do nothing without another one.

    Args:
        needed: the other option.
        given: its value; None where it is not given.
        others: values of the options that need it, by name.
    """
    for name, value in others.items():
        if given is None and value is not None:
            raise click.UsageError(f"{name} does nothing without {needed}: give that too, or leave it out")


def shared_out(
    files: "Sequence[ImageSource]", array_shard: "ArrayShard | None", shard: "Shard"
) -> "tuple[Sequence[ImageSource], dict[str, Any] | None]":
    """The images that ``--shard`` leaves to this job, and what is to be recorded about it."""
    if array_shard is None:
        return files, None
    if shard.world > 1:
        raise click.UsageError("--shard is for jobs that do not know of each other; torchrun shares the images out")
    return array_shard.share(files), array_shard.record([file.key for file in files])


@dataclass(frozen=True)
class Subject:
    """A segmenter and the images it is to run over."""

    spec: "SegmenterSpec"
    segmenter: "Segmenter"
    files: "Sequence[ImageSource]"


def load_subject(model: str, weights: Path | None, images: str, device: str, calibrator: Path | None = None) -> Subject:
    """Find the images and load the segmenter.

    Raises:
        BldaError: one of them cannot be.
    """
    from blda_cli.data.images import find_images
    from blda_cli.data.logit_arrays import find_logits
    from blda_cli.files import real
    from blda_cli.runtime.device import choose_device
    from blda_cli.segmenters import load_segmenter
    from blda_cli.segmenters.calibrated import calibrated
    from blda_cli.segmenters.spec import parse_model

    spec = parse_model(model, weights)
    array_folder = spec.segmenter.path if spec.segmenter.kind == "logits" else None
    own_folder = array_folder is not None and Path(images).is_dir() and real(Path(images)) == real(Path(array_folder))
    files: Sequence[ImageSource] = find_logits(images) if own_folder else find_images(images, spec.preprocessing.pixels)
    with redirect_stdout(sys.stderr):  # a factory may print, and the result may be wanted as JSON
        segmenter = load_segmenter(spec, choose_device(device))
    if calibrator is not None:
        segmenter = calibrated(segmenter, calibrator)
    return Subject(spec, segmenter, files)


def read_labels(
    spec: "SegmenterSpec",
    files: "Sequence[ImageSource]",
    classes: "ClassSet",
    labels: str,
    encoding: str | None,
    ignore: int | None,
) -> "LabelReader":
    """Pair images with their labels, as :data:`label_options` and the model's TOML say.

    Raises:
        BldaError: an image has no label, or the encoding does not fit.
    """
    from blda_cli.data.encodings import custom_encoding
    from blda_cli.data.labels import label_reader

    chosen = encoding or spec.labels.encoding or "auto"
    return label_reader(
        files,
        labels,
        classes,
        encoding=custom_encoding(spec.labels.mapping) if spec.labels.mapping and not encoding else chosen,
        groups=spec.classes.groups or None,
        ignore=ignore,
    )


def provenance(
    source: str | None = None,
    labels: Mapping[str, Any] | None = None,
    norms: str | None = None,
    shard: Mapping[str, Any] | None = None,
) -> "Provenance":
    """What a command writes down about how its output came to be: itself, the versions and the time.

    Args:
        source: where its images are from.
        labels: what is known of their labels.
        norms: as :data:`norms_option`.
        shard: as :func:`shared_out`.
    """
    import h5py
    import numpy
    import torch

    from blda_cli.store.provenance import Provenance

    context = click.get_current_context()
    return Provenance(
        command=shlex.join(["blda", *sys.argv[1:]]),
        options={
            one.opts[0]: _as_written(context.params[str(one.name)], several=one.nargs > 1 or one.multiple)
            for one in context.command.params
            if isinstance(one, click.Option)
            and context.get_parameter_source(str(one.name)) is ParameterSource.COMMANDLINE
        },
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "blda": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "h5py": h5py.__version__,
        },
        source=source,
        labels=labels,
        norms=norms or "source",
        shard=shard,
    )


def _as_written(value: Any, *, several: bool) -> bool | str | list[str]:
    """An option's value as it is given on a command line."""
    if isinstance(value, bool):
        return value
    if several:
        return [str(one) for one in value]
    if isinstance(value, tuple):  # a size or scales
        return ("x" if isinstance(value[0], int) else ",").join(map(str, value))
    return str(value)
