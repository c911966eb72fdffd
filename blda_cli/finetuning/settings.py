"""Fine-tuning settings; defaults are the published values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from blda_cli.errors import BldaError, OptionError
from blda_cli.finetuning.methods import CORRECTIONS, METHODS, CorrectionEntry, MethodEntry, takers, takes
from blda_cli.pipelines.requests import CHECK_HELP, CLASSES_HELP, SET_HELP
from blda_cli.settings import sections_of, setting, settings_of
from blda_cli.settings_files import read, read_toml, write


@dataclass(frozen=True)
class DataSettings:
    """``[data]``: the training data."""

    model: str = setting("", "The segmenter to train: a TOML file, module:factory, or a Hugging Face model.", path=True)
    weights: str | None = setting(None, "The weights to start from, in place of the TOML's.", path=True)
    weights_key: str | None = setting(None, "Key or prefix of the network's weights in a file that holds several.")
    set: tuple[str, ...] = setting((), SET_HELP, metavar="[SECTION.]KEY=VALUE")
    classes: str | None = setting(None, CLASSES_HELP, metavar="NAME|FILE", path=True)
    source_images: str = setting("", "Labelled images: a folder, a glob, or a .txt list.", path=True)
    source_labels: str = setting("", "Labels of the source images.", path=True)
    source_encoding: str = setting("auto", "What the values in the label files mean.")
    target_images: str = setting("", "Images of the domain to adapt to; no labels are needed.", path=True)
    valid_mask: str | None = setting(
        None,
        "Masks of the target images, named as they are: where they are 0 there is no data, which gets no label.",
        path=True,
    )
    source: bool = setting(
        True,
        "Train with labelled source images, too. --no-source: without any; the target is labelled by "
        "the strongest predictions that need no training (blda, dacs, cbst).",
    )
    labelled_images: str = setting(
        "", "A few labelled images of the target domain: half of the labelled crops are drawn from them.", path=True
    )
    labelled_labels: str = setting("", "Labels of the labelled target images.", path=True)
    labelled_encoding: str = setting("auto", "What the values in those label files mean.")
    val_images: str | None = setting(None, "Images to validate on.", path=True)
    val_labels: str | None = setting(None, "Labels of the validation images.", path=True)
    val_encoding: str = setting("auto", "What the values in those label files mean.")


@dataclass(frozen=True)
class TrainingSettings:
    """``[training]``: the optimisation."""

    method: str = setting(
        "blda",
        f"How to train: {'; '.join(f'{name}: {entry.summary}' for name, entry in METHODS.items())}.",
        choices=METHODS,
    )
    correction: str = setting(
        "none", "What corrects the method's cross-entropy; dacs with blda is method blda.", choices=CORRECTIONS
    )
    iterations: int = setting(40_000, "Optimiser steps.", at_least=1)
    crop: tuple[int, int] = setting(
        (512, 512), "Size of the training crops.", at_least=8, form="[height, width]", metavar="PIXELS|HxW"
    )
    batch_size: int = setting(
        2, "Source crops, and as many target crops, a step and process.", at_least=1, at_most=1 << 16
    )
    accumulate: int = setting(1, "Batches whose gradients are averaged in one step.", at_least=1, at_most=1 << 16)
    learning_rate: float = setting(6e-5, "The encoder's learning rate, of AdamW.", at_least=0)
    head_factor: float = setting(10.0, "The other layers' learning rate over the encoder's.", at_least=0)
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", at_least=0)
    warmup: int = setting(1500, "Steps of linear warm-up; at most a tenth of the iterations.", at_least=0)
    seed: int = setting(
        0, "Seed of all randomness, which is a function of it, the step and the crop.", at_least=0, at_most=2**32 - 1
    )
    amp: bool = setting(False, "Train in mixed precision.")
    activation_checkpointing: bool = setting(False, "Recompute activations in the backward pass, to save memory.")
    norms: Literal["auto", "instance", "target", "source", "batch"] = setting(
        "auto",
        "Norm statistics in training and in the written network: the network's own, frozen, mixed with each image's; "
        "frozen ones, its own blended with the target's or its own alone; those of each batch (published). auto: mixed "
        "with each image's where a weight found without labels says so, else of each batch, unless the network then "
        "loses much.",
    )
    norm_weight: float | None = setting(
        None,
        "Weight of the network's own statistics with --norms instance; the rest is each image's.  [default: the "
        "model's, else found without labels]",
        at_least=0,
        at_most=1,
    )
    feature_layer: str | None = setting(
        None, "The layer whose input the density head reads; by default the last layer with one output per class."
    )

    def __post_init__(self) -> None:
        if self.norm_weight is not None and self.norms not in ("auto", "instance"):
            raise OptionError(f"--norm-weight is for --norms instance, not {self.norms}: leave one of them out")


@dataclass(frozen=True)
class HostSettings:
    """``[host]``: the self-training that the methods share (DACS, DAFormer, MIC)."""

    teacher_momentum: float = setting(0.999, "EMA momentum of the teacher.", at_least=0, at_most=1)
    confidence: float = setting(
        0.968, "Probability from which a pixel counts towards an image's weight.", at_least=0, at_most=1
    )
    whole_images: bool = setting(
        True, "The teacher labels whole target images, of which crops are cut, and not the crops (not published)."
    )
    ignore_rows: tuple[int, int] = setting(
        (0, 0),
        "Rows at the top and bottom of target images that get no weight (published for Cityscapes: 15 120).",
        at_least=0,
        form="[top, bottom]",
    )
    classmix: bool = setting(True, "Paste half of the source's classes onto the target.")
    flip: float = setting(0.5, "Probability of mirroring a crop.", at_least=0, at_most=1)
    color_jitter: float = setting(0.8, "Probability of colour jitter on mixed images.", at_least=0, at_most=1)
    color_strength: float = setting(0.2, "How far colours are jittered.", at_least=0, at_most=1)
    blur: float = setting(0.5, "Probability of blur on mixed images.", at_least=0, at_most=1)
    blur_sigma: tuple[float, float] = setting(
        (0.15, 1.15), "Range of the blur's standard deviation, in pixels.", at_least=1e-3, form="[smallest, largest]"
    )
    rare_class_sampling: bool = setting(True, "Draw source images and crops by their rare classes.")
    rare_class_temperature: float = setting(0.01, "Temperature of the softmax over 1 - frequency.", at_least=1e-4)
    rare_class_share: float = setting(
        0.0015, "Share of its labelled pixels that makes an image worth drawing for a class.", at_least=0, at_most=1
    )
    feature_distance: float = setting(
        0.0, "Weight of the distance to the initial encoder's features (published: 0.005); 0: none.", at_least=0
    )
    thing_classes: tuple[str, ...] = setting(
        (), "Classes that distance is for; empty: those known as things by name.", form="a list of different names"
    )
    masked_consistency: float = setting(
        0.0, "Weight of the loss on masked target images (published: 1); 0: none.", at_least=0
    )
    mask_ratio: float = setting(0.7, "Share of blocks that are masked.", at_least=0, at_most=1)
    mask_block: int = setting(64, "Side of a masked block in pixels.", at_least=1)

    def __post_init__(self) -> None:
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise BldaError(
                f"host.blur_sigma = {list(self.blur_sigma)} should be [smallest, largest]: give the smaller one first"
            )


HOSTS: dict[str, dict[str, Any]] = {
    "dacs": {"host.rare_class_sampling": False, "host.feature_distance": 0.0, "host.masked_consistency": 0.0},
    "daformer": {"host.rare_class_sampling": True, "host.feature_distance": 0.005, "host.masked_consistency": 0.0},
    "mic": {"host.rare_class_sampling": True, "host.feature_distance": 0.005, "host.masked_consistency": 1.0},
}
"""Which parts the published hosts have (Tranheden et al., WACV 2021; Hoyer et al., CVPR 2022 and 2023)."""

PUBLISHED: dict[str, Any] = {
    "start.own_labels": False,
    "host.whole_images": False,
    "blda.tau": 0.1,
    "blda.blend_first_fit": True,
    "blda.debias_pseudo_labels": False,
    "training.norms": "batch",
    "run.target_norms": False,
}
"""BLDA as published (Li et al., ICML 2025), where the defaults differ from it."""


@dataclass(frozen=True)
class StartSettings:
    """``[start]``: the target's own labels, which the network makes before the first step."""

    own_labels: bool = setting(
        True,
        "Label the target before the first step, by the strongest predictions that need no training (blda, dacs), and "
        "draw half of the labelled crops from it at first, none at the end; without source images all of them.",
    )
    label_share: float = setting(
        0.8, "Share of the pixels predicted as a class that is so labelled, the surest first.", above=0, at_most=1
    )


@dataclass(frozen=True)
class BldaSettings:
    """``[blda]``: settings of method ``blda``."""

    tau: float | None = setting(
        None,
        "Strength of BLDA's shift in the cross-entropy; by default it falls from 1 to the published 0.1 over the "
        "published 40000 steps, and is limited where it would add more than 1.5 times the source's loss.",
        at_least=0,
    )
    density_weight: float = setting(0.2, "Weight of BLDA's density regression.", at_least=0)
    momentum: float = setting(0.99, "EMA momentum of the mixtures.", at_least=0, at_most=1)
    warmup: int = setting(
        1500, "Updates until the banks' momentum is reached; at most a tenth of the iterations.", at_least=0
    )
    blend_first_fit: bool = setting(
        False, "Blend the first fit of a cell with its random start (published), instead of taking it whole."
    )
    debias_pseudo_labels: bool = setting(
        False, "Shift the teacher's logits by the location form before they label (not published)."
    )


@dataclass(frozen=True)
class RoundSettings:
    """``[rounds]``: methods that label the whole target in rounds or stages (ST, CBST, CBST-SP, CAG)."""

    rounds: int = setting(
        4, "Rounds (st, cbst, cbst-sp) or stages (cag) that the iterations are divided into.", at_least=1
    )
    portion: float = setting(
        0.2, "Share of the target's pixels that gets a label in the first round.", at_least=0, at_most=1
    )
    portion_step: float = setting(0.05, "Growth of that share per round.", at_least=0, at_most=1)
    portion_limit: float = setting(0.5, "Largest such share.", at_least=0, at_most=1)
    label_scales: tuple[float, ...] = setting(
        (1.0,),
        "Image scales that a round's labels are averaged over (published for testing: 0.5,0.75,1.0).",
        above=0,
        metavar="S,S,...",
    )
    label_flip: bool = setting(False, "Average a round's labels with those of the mirrored image.")
    mined_share: float = setting(
        0.5, "Share of the source images drawn for the five least predicted classes (cbst).", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class CagSettings:
    """``[cag]``: settings of method ``cag``."""

    margin: float | None = setting(
        None,
        "How much nearer a pixel's feature must be to one centroid than to the next; by default 2.5 for "
        "features of 256 channels (published), else a quarter of the mean distance between two centroids.",
        at_least=0,
    )
    confidence: float = setting(
        0.95, "Probability from which a pixel is labelled by its most probable class.", at_least=0, at_most=1
    )
    distance_weight: float = setting(
        0.1, "Weight of the distance between classes' mean features and centroids.", at_least=0
    )
    discriminative_weight: float = setting(
        0.1, "Weight of the margin between centroids that features must keep.", at_least=0
    )


@dataclass(frozen=True)
class RunSettings:
    """``[run]``: outputs of the run."""

    checkpoint_every: int = setting(2000, "Steps between checkpoints.", at_least=1)
    log_every: int = setting(50, "Steps that a line of metrics covers.", at_least=1)
    validate_every: int = setting(2000, "Steps between validations.", at_least=1)
    pictures_every: int = setting(
        1000, "Steps between pictures of mixed batches with their labels, the last step's besides; 0: none.", at_least=0
    )
    export: Literal["teacher", "student"] = setting("teacher", "The network to write.")
    target_norms: bool = setting(
        True,
        "Blend the written network's norm statistics with the target images' (goes beyond the paper).",
    )
    check: bool = setting(True, CHECK_HELP)


@dataclass(frozen=True)
class Settings:
    """All of a run's settings, by section."""

    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    start: StartSettings = field(default_factory=StartSettings)
    host: HostSettings = field(default_factory=HostSettings)
    blda: BldaSettings = field(default_factory=BldaSettings)
    rounds: RoundSettings = field(default_factory=RoundSettings)
    cag: CagSettings = field(default_factory=CagSettings)
    run: RunSettings = field(default_factory=RunSettings)

    @property
    def method(self) -> MethodEntry:
        """The method's entry."""
        return METHODS[self.training.method]

    @property
    def correction(self) -> CorrectionEntry:
        """The entry of the correction of the method's cross-entropy."""
        return CORRECTIONS[self.method.correction or self.training.correction]

    @property
    def labels_itself(self) -> bool:
        """Whether the network labels the target before the first step, in a source's place or beside it."""
        return self.method.source == "optional" and (self.start.own_labels or not self.data.source)

    def check_data(self) -> None:
        """Refuse data that the method cannot train on.

        Raises:
            OptionError: images that it needs are missing, or images that it does not use are given.
        """
        data, chosen = self.data, f"--method {self.training.method}"
        optional = [f"--method {name}" for name, entry in METHODS.items() if entry.source == "optional"]
        given = [name for name in ("source_images", "source_labels") if getattr(data, name)]
        for one, other in (("val_images", "val_labels"), ("labelled_images", "labelled_labels")):
            if bool(getattr(data, one)) != bool(getattr(data, other)):
                raise OptionError(f"{option(one)} needs {option(other)}, and the reverse: give both or neither")
        if not data.model:
            raise OptionError("--model is missing")
        if self.method.source == "unused":
            few = ["labelled_images"] if data.labelled_images else []
            if given or few:
                raise OptionError(f"{option((given + few)[0])} does nothing with {chosen}: leave it out")
        elif data.source:
            missing = next((name for name in ("source_images", "source_labels") if not getattr(data, name)), None)
            if missing:
                ways = ": give it, or --no-source, and the target labels itself" if chosen in optional else ""
                raise OptionError(f"{option(missing)} is missing{ways}")
        elif self.method.source == "needed":
            raise OptionError(f"{chosen} needs labelled source images: give {' or '.join(optional)} with --no-source")
        elif given:
            raise OptionError(f"{option(given[0])} does nothing with --no-source: leave out one of the two")
        if self.method.target and not data.target_images:
            raise OptionError("--target-images is missing")
        if data.valid_mask and not data.target_images:
            raise OptionError("--valid-mask is of the target images: give --target-images, or leave it out")

    def refuse_unused(self, given: Iterable[str]) -> None:
        """Refuse settings ``section.name`` that change nothing under this method and correction.

        Raises:
            OptionError: there is one; the message names the methods that use it.
        """
        for name in given:
            if not self.takes(name):
                raise OptionError(
                    f"{option(name)} does nothing with --method {self.training.method}: leave it out, or give "
                    f"{' or '.join(takers(name))}"
                )
            if name == "start.label_share" and not self.labels_itself:
                raise OptionError("--label-share does nothing without --own-labels or --no-source: give one of them")
            if name == "start.own_labels" and not self.data.source:
                raise OptionError("--own-labels and --no-own-labels do nothing with --no-source: leave them out")

    def takes(self, name: str) -> bool:
        """Whether a setting ``section.name`` changes anything under this method and correction."""
        return not takers(name) or takes((*self.method.options, *self.correction.options), name)

    def with_values(self, values: dict[str, Any], origin: str) -> "Settings":
        """Replace settings.

        Args:
            values: by ``"section.name"``.
            origin: where they come from, for messages.

        Raises:
            BldaError: there is no such setting, or the value does not fit.
        """
        chosen = METHODS.get(values.get("training.method", self.training.method))
        if chosen is not None and chosen.defaults != self.method.defaults:
            values = {**chosen.defaults, **values}
        tables: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = key.partition(".")
            tables.setdefault(section, {})[name] = value
        return read(Settings, tables, origin, base=self)

    def resolved(self) -> "Settings":
        """The settings with the warm-ups shortened to a tenth of the iterations at most."""
        longest = self.training.iterations // 10
        return replace(
            self,
            training=replace(self.training, warmup=min(self.training.warmup, longest)),
            blda=replace(self.blda, warmup=min(self.blda.warmup, longest)),
        )

    def to_toml(self) -> str:
        """As TOML; None is left out."""
        return write(self)


def read_settings(path: Path) -> Settings:
    """Read settings from TOML; missing ones keep their default.

    Raises:
        BldaError: it cannot be read, or holds an unknown setting or an unfit value.
    """
    tables = read_toml(path)
    training = tables.get("training")
    method = training.get("method") if isinstance(training, dict) else None
    entry = METHODS.get(method) if isinstance(method, str) else None
    base = Settings().with_values(dict(entry.defaults), str(path)) if entry is not None else None
    return read(Settings, tables, path, base=base)


@dataclass(frozen=True)
class FinetuneRequest:
    """``blda finetune``: train a segmenter.

    Attributes:
        settings: resolved; the result is a function of them and the data.
        resume: go on from the run folder's checkpoint, if there is one.
        device: where to train, see :func:`blda_cli.runtime.device.choose_device`.
        workers: threads that read images.
        tensorboard: also write TensorBoard events.
        write_model: where to write the description of the network that is trained; None: nowhere.
    """

    settings: Settings
    resume: bool = False
    device: str = "auto"
    workers: int = 4
    tensorboard: bool = False
    write_model: Path | None = None


def run_settings(
    given: Mapping[str, Any],
    origin: str,
    *,
    config: Path | None = None,
    host: str | None = None,
    preset: str | None = None,
) -> Settings:
    """The settings of a run.

    Args:
        given: settings by ``section.name``; they replace all others.
        origin: where they come from, for messages.
        config: a run's ``config.toml``; None: the defaults.
        host: one of :data:`HOSTS`.
        preset: ``"published"``.

    Raises:
        BldaError: a setting does not fit, has no effect, or is missing.
    """
    sets = (HOSTS[host] if host else {}) | (PUBLISHED if preset else {})
    settings = (read_settings(config) if config else Settings()).with_values({**sets, **given}, origin).resolved()
    settings.refuse_unused(given)
    settings.check_data()
    return settings


def full_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by ``section.name`` from options by ``name``, or by ``section__name`` where two sections have one.

    Raises:
        OptionError: there is no such setting.
    """
    sections = {section: settings_of(cls) for section, cls in sections_of(Settings).items()}
    found = {}
    for name, value in options.items():
        section, separator, rest = name.partition("__")
        of = [section] if separator else [section for section, settings in sections.items() if name in settings]
        key = rest if separator else name
        if not of or key not in sections.get(of[0], {}):
            raise OptionError(f"finetune takes no option {name}")
        found[f"{of[0]}.{key}"] = value
    return found


def option(name: str) -> str:
    """The option of a setting, of ``section.name`` or ``name``."""
    return f"--{name.rpartition('.')[2].replace('_', '-')}"
