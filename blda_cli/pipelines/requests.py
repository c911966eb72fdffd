"""Requests: the input of each command, one frozen dataclass each. No torch, so that ``--help`` is quick.

The fields declare type, help and range; the options of the command line and the keyword arguments of the Python
interface are made from them, with the fields of their sections beside their own. A new option is one field and its use.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from blda_cli.core.choices import LabelSource, LogitSpace
from blda_cli.core.methods import METHODS, PRESETS, AlignmentSettings, chosen_settings
from blda_cli.errors import OptionError
from blda_cli.exporting.formats import FORMATS, SAME
from blda_cli.runtime.shards import ArrayShard
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.settings import Setting, fitted, sections_of, setting, settings_of

T = TypeVar("T")

STRONG = InferenceOptions(scales=(0.5, 0.75, 1.0, 1.25, 1.5), flip=True)
"""The views of ``--preset strong``: ten, with 11 times the pixels of one, of which scales above 1 that tell less are
dropped (`blda_cli.segmenters.norm_choice.choose_weight`). See ``tests/benchmarks/README.md``."""

REQUEST_PRESETS: dict[str, dict[type, Any]] = {
    **{name: {AlignmentSettings: settings} for name, settings in PRESETS.items()},
    "strong": {InferenceOptions: STRONG},
}
"""Values of the sections of a request under each preset."""


SET_HELP = "Change a key of the model's description, e.g. preprocessing.mean='[0.5, 0.5, 0.5]'; repeatable."
CLASSES_HELP = "The classes of the outputs: cityscapes, ade20k, voc, ..., or a file with one name a line."
WRITE_MODEL_HELP = (
    "Write the model's description, with --set and --classes, for the next command's --model; check writes the input "
    "that fits best."
)
CHECK_HELP = "First check, on two images, for forgotten weights and for an input description that fits better."


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A segmenter and images."""

    model: str = setting(
        MISSING,
        "The segmenter: a TOML file, hf:NAME, a Hugging Face folder, net.pt2, net.ts, net.onnx, module:factory or "
        "logits:DIR.",
        metavar="MODEL",
        path=True,
    )
    weights: Path | None = setting(
        None, "Weights for a Python network, in place of the TOML's: .safetensors, or .pth read with weights_only."
    )
    weights_key: str | None = setting(
        None, "Key or prefix of the network's weights in a file that holds several, e.g. ema_model.", metavar="KEY"
    )
    set: tuple[str, ...] = setting((), SET_HELP, metavar="[SECTION.]KEY=VALUE")
    classes: str | None = setting(None, CLASSES_HELP, metavar="NAME|FILE", path=True)
    write_model: Path | None = setting(None, WRITE_MODEL_HELP, metavar="FILE.toml")
    images: str = setting(
        MISSING,
        "Images: a folder (searched through), a glob, a .txt list or a video. For logits:DIR it may be that folder.",
        metavar="DIR",
        path=True,
    )
    valid_mask: str | None = setting(
        None,
        "Masks, named as the images: where they are 0 there is no data, which is neither counted nor predicted.",
        metavar="DIR",
        path=True,
    )
    every: int = setting(1, "Take only every N-th image of each folder and video.", at_least=1, metavar="N")
    fps: float | None = setting(
        None, "Take only about so many frames of each second of a video.", at_least=0.001, metavar="NUMBER"
    )

    def __post_init__(self) -> None:
        if self.fps is not None and self.every != 1:
            raise OptionError("--every and --fps both choose frames: give one of them")


@dataclass(frozen=True, kw_only=True)
class SubjectRequest(ModelRequest):
    """A segmenter and the images to run it over."""

    calibrator: Path | None = setting(
        None, "Put the logits through a calibrator that fiducio fitted and saved.", metavar="FILE"
    )
    shard: str | None = setting(
        None,
        "Take only the I-th of N shares of the images: the jobs of an array, each with its own --output, which blda "
        "merge puts together.",
        metavar="I/N",
    )

    @property
    def array_shard(self) -> ArrayShard | None:
        """The share of the images to take; None: all.

        Raises:
            OptionError: ``shard`` is not a share.
        """
        if self.shard is None:
            return None
        number, _, of = self.shard.partition("/")
        if not all(re.fullmatch("[0-9]{1,6}", part) for part in (number, of)) or not 1 <= int(number) <= int(of):
            raise OptionError(f"--shard: {self.shard[:60]!r} is not a shard such as 3/8 (of 1/8 to 8/8)")
        return ArrayShard(int(number), int(of))


@dataclass(frozen=True, kw_only=True)
class LabelRequest:
    """Ground truth, and its label encoding."""

    labels: str | None = setting(
        None,
        "Ground truth: a folder (paired with the images by relative path), a glob, or a .txt list; for a classifier a "
        ".csv of key,class.",
        metavar="DIR",
        path=True,
    )
    label_encoding: str | None = setting(
        None,
        "What the values in the label files mean: cityscapes-ids, cityscapes-train-ids, ade20k, ids, colors, ...  "
        "[default: the TOML's, else told by names and contents]",
        metavar="NAME",
    )
    ignore_label: int | None = setting(
        None,
        "A label value that means no class, besides the encoding's.",
        at_least=0,
        at_most=65535,
        metavar="VALUE",
    )

    def __post_init__(self) -> None:
        if self.label_encoding is not None:
            from blda_cli.data.encodings import check_encoding_name

            check_encoding_name(self.label_encoding)
        for name, value in (("--label-encoding", self.label_encoding), ("--ignore-label", self.ignore_label)):
            if self.labels is None and value is not None:
                raise OptionError(f"{name} does nothing without --labels: give that too, or leave it out")


@dataclass(frozen=True, kw_only=True)
class NormsRequest:
    """The norm source: where the batch norms' statistics come from."""

    norms: str | None = setting(
        None,
        "Where batch norm statistics come from: those the network was trained with, those blended with the target's, "
        "those mixed with each image's own (instance; auto finds the weight without labels), or those of a statistics "
        "file.  [default: auto]",
        metavar="source|target|instance|auto|FILE.h5",
        path=True,
    )
    norm_weight: float | None = setting(
        None,
        "Weight of the network's own statistics with --norms instance; the rest is each image's.  [default: 0.9]",
        at_least=0,
        at_most=1,
        metavar="NUMBER",
    )

    def __post_init__(self) -> None:
        if self.norm_weight is not None and self.norms not in (None, "instance"):
            raise OptionError(f"--norm-weight is for --norms instance, not {self.norms}: leave one of them out")

    @property
    def given(self) -> bool:
        """Whether one of the options was given."""
        return self.norms is not None or self.norm_weight is not None

    @property
    def recorded(self) -> str:
        """The form in which the provenance records them."""
        return self.norms or ("auto" if self.norm_weight is None else "instance")


def chooses_scales(preset: str | None, inference: InferenceOptions) -> bool:
    """Whether the scales are those of ``--preset strong``, of which the images keep those that tell enough."""
    return preset == "strong" and inference.scales == STRONG.scales


@dataclass(frozen=True, kw_only=True)
class CollectRequest:
    """``blda collect-stats``: count a segmenter's logits over images."""

    subject: SubjectRequest
    labelled: LabelRequest
    label_source: tuple[LabelSource, ...] = setting(
        (),
        "Count each pixel under its label, under the network's argmax, or under every class by its probability; "
        "repeatable.  [default: pseudo, and ground_truth where --labels is given]",
    )
    logit_space: LogitSpace = setting(
        LogitSpace.RAW, "How a pixel's free constant is fixed before its logits are counted."
    )
    preset: Literal["strong"] | None = setting(
        None,
        "strong: norms, up to five scales and flip averaged, up to eleven times slower; for align --preset strong.",
    )
    bins: int = setting(1024, "Bins per cell, a power of two.", at_least=4, at_most=1 << 16)
    by: Literal["folder"] | None = setting(
        None, "Write one file for each subfolder of --images, as OUTPUT-SUBFOLDER.h5: keeps domains apart."
    )
    check: bool = setting(True, CHECK_HELP)
    norms: NormsRequest = NormsRequest()
    inference: InferenceOptions = InferenceOptions()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        if self.bins & (self.bins - 1):
            raise OptionError(f"--bins {self.bins} is not a power of two; {1 << self.bins.bit_length()} is the next")
        if LabelSource.GROUND_TRUTH in self.sources and not self.labelled.labels:
            raise OptionError("--label-source ground_truth needs --labels")
        if self.by and self.subject.shard:
            raise OptionError("--by folder does not go with --shard: share out the subfolders themselves")
        if self.subject.shard and self.norms.norms == "target":
            raise OptionError("--norms target differs from shard to shard: take them once and give --norms FILE.h5")

    @property
    def sources(self) -> tuple[LabelSource, ...]:
        """The label sources to count."""
        if self.label_source:
            return tuple(dict.fromkeys(self.label_source))
        return (LabelSource.GROUND_TRUTH,) * bool(self.labelled.labels) + (LabelSource.PSEUDO,)


@dataclass(frozen=True, kw_only=True)
class FilesRequest:
    """The statistics files an alignment is fitted to."""

    stats: Path | None = setting(
        None,
        "Statistics of these images, or of others like them.  [default: collect them first, as OUTPUT.h5]",
        metavar="FILE.h5",
    )
    reference: Path | None = setting(
        None,
        "Statistics of a few dozen images like those the network was trained on, no labels needed: --tau auto corrects "
        "what differs from them, and the quantile and location forms take their anchors from them.",
        metavar="FILE.h5",
    )
    anchors: Path | None = setting(None, "Deprecated name of --reference.", metavar="FILE.h5")
    labelled: Path | None = setting(
        None,
        "Statistics with labels of a few images like these, for --method supervised.  [default: those of --stats]",
        metavar="FILE.h5",
    )
    spatial_priors: Path | None = setting(
        None,
        "Statistics with labels, e.g. of the source domain: where in the image each class is found, for --method "
        "class-confidence.",
        metavar="FILE.h5",
    )

    def __post_init__(self) -> None:
        if self.anchors is None:
            return
        if self.reference is not None:
            raise OptionError("--anchors is the former name of --reference: give --reference alone")
        warnings.warn("anchors is called reference now", DeprecationWarning, stacklevel=2)
        object.__setattr__(self, "reference", self.anchors)
        object.__setattr__(self, "anchors", None)


@dataclass(frozen=True, kw_only=True)
class OutputsRequest:
    """Outputs beside the predictions."""

    save_scores: bool = setting(False, "Also write the scores of all classes: float16 logs, scores/*.h5.")
    confidence: bool = setting(
        False, "Also write the winning class's score, in 0..1, as 8-bit pictures of 0..255, confidence/*.png."
    )
    reject: float | None = setting(
        None,
        "Predict nothing (void) where the winning class's score, in 0..1, is below this.",
        at_least=0,
        at_most=1,
        metavar="SCORE",
    )
    overlay: int | Literal["all"] | None = setting(
        None,
        "Also write pictures of the predictions over their images, before and after, with a legend, overlays/*.jpg: of "
        "all images, or of the N that changed most.",
        at_least=1,
        metavar="all|N",
        form="all or a number of images",
    )
    annotations: Literal["cvat", "coco", "labelme"] | None = setting(
        None,
        "Also write the aligned predictions for an annotation tool, to be corrected by hand, annotations/*.",
    )
    video: Path | None = setting(None, "Also write those pictures of all images as a video.", metavar="FILE.mp4")


@dataclass(frozen=True, kw_only=True)
class CorrectionRequest:
    """A correction: fitted to statistics, for a segmenter run over images.

    Attributes:
        subject: the segmenter and the images.
        files: the statistics that the correction is fitted to.
        alignment: which correction.
        inference: how images are run.
        given: names of the options that were given, so that those without effect are refused.
    """

    subject: SubjectRequest
    files: FilesRequest
    alignment: AlignmentSettings
    preset: Literal["published", "strong"] | None = setting(
        None,
        "published: the alignment exactly as published (quantile form, mixtures, clamped tails, tau 0.2). strong: all "
        "that helps without training: norms, up to five scales and flip averaged; up to eleven times slower, not for "
        "export, as no format holds its views. Single options override.",
    )
    force: bool = setting(
        False,
        "Use statistics of another model or preprocessing, or of a model in doubt, all the same, and correct a "
        "corrected model again.",
    )
    check: bool = setting(True, CHECK_HELP)
    norms: NormsRequest = NormsRequest()
    inference: InferenceOptions = InferenceOptions()  # noqa: RUF009  # frozen
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        refuse_unused(self.alignment, self.given)
        if self.norms.given and self.files.stats:
            raise OptionError("--norms is for statistics that are collected first: --stats brings its own")
        if self.files.stats is None and self.alignment.label_source is LabelSource.GROUND_TRUTH:
            raise OptionError("--label-source ground_truth needs --stats collected with --labels")


@dataclass(frozen=True, kw_only=True)
class AlignRequest(CorrectionRequest):
    """``blda align``: correct a segmenter's predictions.

    Attributes:
        outputs: outputs beside the predictions.
    """

    ids: bool = setting(False, "Write the data set's original ids in place of class ids.")
    outputs: OutputsRequest = OutputsRequest()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subject.shard and self.files.stats is None:
            raise OptionError("--shard needs --stats of all images: shards with their own would differ")


@dataclass(frozen=True, kw_only=True)
class ExportRequest(CorrectionRequest):
    """``blda export``: write a corrected network that runs without blda. The images verify the export."""

    format: str = setting(
        SAME, "What to write: the kind of model that came in, or one of the others.", choices=(SAME, *FORMATS)
    )
    groups: bool = setting(False, "Make the description's groups of classes the outputs, not the network's classes.")
    argmax: bool = setting(False, "End in class ids at the size of the network's input (onnx, pt2, torchscript).")
    dtype: Literal["float32", "float16"] = setting("float32", "Type of the weights and of the computation.")

    def __post_init__(self) -> None:
        for option in ("slide", "stride", "scales", "flip"):
            if option in self.given:
                raise OptionError(
                    f"--{option}: no format holds windows, scales or flips, as an export runs once over the whole "
                    "image: leave it out, and use statistics collected without it"
                )
        if self.preset == "strong":
            raise OptionError(
                "--preset strong averages views, which no format holds: leave it out, and use statistics collected "
                "without it (their norms are exported)"
            )
        if self.subject.calibrator:
            raise OptionError("--calibrator: no format holds a calibrator: leave it out")
        if self.subject.shard:
            raise OptionError("--shard does nothing for one network: leave it out")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """``blda report``: show the bias, and what corrections changed."""

    stats: Path = setting(MISSING, "Statistics of the images, from blda collect-stats.", metavar="FILE.h5")
    reference: Path | None = setting(
        None,
        "Statistics of images like those the network was trained on, to be shown beside these class by class.  "
        "[default: the one that the first --aligned was made with]",
        metavar="FILE.h5",
    )
    aligned: tuple[Path, ...] = setting(
        (), "Corrected predictions, from blda align. Give it several times to have them side by side.", metavar="DIR"
    )
    compare: bool = setting(
        False,
        "Also try every method on the pixels that the statistics keep: nothing is run again. Scores need statistics "
        "collected with --labels.",
    )
    labelled: LabelRequest = LabelRequest()


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """``blda check``: check a model's description."""

    model: ModelRequest
    labelled: LabelRequest = LabelRequest()
    device: str = setting("auto", "Where to run; auto takes a GPU where there is one.", metavar="auto|cpu|cuda[:N]|mps")
    output: Path | None = setting(
        None, "Write check.html, check.json and overlays.png, the predictions over the images.", metavar="DIR"
    )
    overwrite: bool = setting(False, "Replace what is there.")


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """``blda merge``: merge outputs for different images."""

    parts: tuple[Path, ...] = setting(MISSING, "Statistics files, or folders of predictions.", metavar="PART PART ...")


def request(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make a request from the values of its own fields and those of its sections.

    Args:
        cls: the request.
        values: the given values by field, as the command line or Python hold them; None: not given.

    Raises:
        OptionError: a value does not fit, one is missing, or some do not go together.
        TypeError: there is no such field.
    """
    values = {name: value for name, value in values.items() if value is not None}
    unknown = values.keys() - options_of(cls).keys()
    if unknown:
        raise TypeError(f"{cls.__name__} has no option {min(unknown)!r}; there are {', '.join(options_of(cls))}")
    try:
        made: dict[str, Any] = {
            name: fitted(section, {one: values[one] for one in settings_of(section) if one in values}, base)
            for name, section in sections_of(cls).items()
            for base in (REQUEST_PRESETS.get(str(values.get("preset")), {}).get(section),)
        }
        own = {name: one.fit(values[name]) for name, one in settings_of(cls).items() if name in values}
    except ValueError as error:
        raise OptionError(_as_option(str(error))) from error
    if "given" in getattr(cls, "__dataclass_fields__", {}):
        own["given"] = frozenset(values)
    missing = next((n for n, one in settings_of(cls).items() if one.default is MISSING and n not in own), None)
    if missing is not None:
        raise OptionError(f"--{missing.replace('_', '-')} is missing")
    return cls(**made, **own)


def options_of(cls: type) -> dict[str, Setting]:
    """The settings of a request and of its sections, by name."""
    found: dict[str, Setting] = {}
    settings, sections = settings_of(cls), sections_of(cls)
    for name in getattr(cls, "__dataclass_fields__", {}):
        found |= settings_of(sections[name]) if name in sections else {}
        found |= {name: settings[name]} if name in settings else {}
    return found


def refuse_unused(settings: AlignmentSettings, given: frozenset[str]) -> None:
    """Refuse options of an alignment that would change nothing, as its method's entry says.

    Args:
        settings: the alignment.
        given: the options that were given.

    Raises:
        OptionError: there is one; the message names the methods that use it.
    """
    concerned = settings_of(AlignmentSettings).keys() | settings_of(FilesRequest).keys() - {"stats"}
    given = frozenset("reference" if name == "anchors" else name for name in given)
    for name in sorted(given & concerned - settings.takes):
        option = f"--{name.replace('_', '-')}"
        chosen = f"--method {settings.method}" + (f" --shift {settings.shift}" if settings.entry.forms else "")
        if name == "favour":
            raise OptionError("--favour chooses the strength that --tau auto finds for blda and logit-adjust")
        if name == "reference":
            raise OptionError(
                f"--reference does nothing with {chosen} and this --tau: it decides what --tau auto finds for blda and "
                "logit-adjust, and the anchors of --shift quantile and location"
            )
        takers = [
            f"--shift {shift}" for shift, form in settings.entry.forms.items() if name in form.options + form.files
        ]
        takers += [f"--method {method}" for method in METHODS if name in chosen_settings({"method": method}).takes]
        way_out = f", or give {' or '.join(takers)}" if takers else ""
        raise OptionError(f"{option} does nothing with {chosen}: leave it out{way_out}")


def _as_option(message: str) -> str:
    """An error that begins with the name of a field, as one of an option."""
    name, separator, rest = message.partition(" ")
    return f"--{name.replace('_', '-')}{separator}{rest}" if name.isidentifier() else message
