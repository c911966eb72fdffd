"""Fine-tuning settings; defaults are the published values."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from blda_cli.finetuning.methods import CORRECTIONS, METHODS, CorrectionEntry, MethodEntry, takers, takes
from blda_cli.settings import setting
from blda_cli.settings_files import read, read_toml, write


@dataclass(frozen=True)
class DataSettings:
    """``[data]``: what is trained on."""

    model: str = setting("", "The segmenter to train: a TOML file, module:factory, or a Hugging Face model.")
    weights: str | None = setting(None, "The weights to start from, in place of the TOML's.")
    source_images: str = setting("", "Labelled images: a folder, a glob, or a .txt list.")
    source_labels: str = setting("", "Their labels.")
    source_encoding: str = setting("auto", "What the values in the label files mean.")
    target_images: str = setting("", "Images of the domain to adapt to; no labels are needed.")
    val_images: str | None = setting(None, "Images to validate on.")
    val_labels: str | None = setting(None, "Their labels.")
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
    weight_decay: float = setting(0.01, "Of AdamW.", at_least=0)
    warmup: int = setting(1500, "Steps of linear warm-up; at most a tenth of the iterations.", at_least=0)
    seed: int = setting(
        0, "Of all randomness, which is a function of it, the step and the crop.", at_least=0, at_most=2**32 - 1
    )
    amp: bool = setting(False, "Train in mixed precision.")
    activation_checkpointing: bool = setting(False, "Recompute activations in the backward pass, to save memory.")
    norms: Literal["auto", "target", "source", "batch"] = setting(
        "auto",
        "What batch norms normalise by in training: averages that are kept, the network's blended with the target's or "
        "its own alone; those of each batch (published); auto: of each batch, unless the network then loses much.",
    )
    feature_layer: str | None = setting(
        None, "The layer whose input the density head reads; by default the last layer with one output per class."
    )


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
    rare_class_temperature: float = setting(0.01, "Of the softmax over 1 - frequency.", at_least=1e-4)
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


HOSTS: dict[str, dict[str, Any]] = {
    "dacs": {"host.rare_class_sampling": False, "host.feature_distance": 0.0, "host.masked_consistency": 0.0},
    "daformer": {"host.rare_class_sampling": True, "host.feature_distance": 0.005, "host.masked_consistency": 0.0},
    "mic": {"host.rare_class_sampling": True, "host.feature_distance": 0.005, "host.masked_consistency": 1.0},
}
"""Which parts the published hosts have (Tranheden et al., WACV 2021; Hoyer et al., CVPR 2022 and 2023)."""

PUBLISHED: dict[str, Any] = {
    "host.whole_images": False,
    "blda.tau": 0.1,
    "blda.blend_first_fit": True,
    "blda.debias_pseudo_labels": False,
    "training.norms": "batch",
    "run.target_norms": False,
}
"""BLDA as published (Li et al., ICML 2025), where the defaults differ from it."""


@dataclass(frozen=True)
class BldaSettings:
    """``[blda]``: what method ``blda`` adds."""

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
    """``[rounds]``: methods that look at the whole target now and then (ST, CBST, CBST-SP, CAG)."""

    rounds: int = setting(
        4, "Rounds (st, cbst, cbst-sp) or stages (cag) that the iterations are divided into.", at_least=1
    )
    portion: float = setting(
        0.2, "Share of the target's pixels that gets a label in the first round.", at_least=0, at_most=1
    )
    portion_step: float = setting(0.05, "How much that grows a round.", at_least=0, at_most=1)
    portion_limit: float = setting(0.5, "How far it grows.", at_least=0, at_most=1)
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
    """``[cag]``: what method ``cag`` adds."""

    margin: float | None = setting(
        None,
        "How much nearer a pixel's feature must be to one anchor than to the next; by default 2.5 for features of 256 "
        "channels (published), else a quarter of the mean distance between two anchors.",
        at_least=0,
    )
    confidence: float = setting(0.95, "Probability from which a pixel is labelled by it.", at_least=0, at_most=1)
    distance_weight: float = setting(
        0.1, "Weight of the distance between classes' mean features and anchors.", at_least=0
    )
    discriminative_weight: float = setting(
        0.1, "Weight of the margin between anchors that features must keep.", at_least=0
    )


@dataclass(frozen=True)
class RunSettings:
    """``[run]``: what the run leaves behind."""

    checkpoint_every: int = setting(2000, "Steps between checkpoints.", at_least=1)
    log_every: int = setting(50, "Steps that a line of metrics covers.", at_least=1)
    validate_every: int = setting(2000, "Steps between validations.", at_least=1)
    pictures_every: int = setting(
        1000, "Steps between pictures of mixed batches with their labels, the last step's besides; 0: none.", at_least=0
    )
    export: Literal["teacher", "student"] = setting("teacher", "The network to write.")
    target_norms: bool = setting(
        True,
        "Blend the averages of the written network's batch norms with the target images' (goes beyond the paper).",
    )


@dataclass(frozen=True)
class Settings:
    """All of a run's settings, by section."""

    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    host: HostSettings = field(default_factory=HostSettings)
    blda: BldaSettings = field(default_factory=BldaSettings)
    rounds: RoundSettings = field(default_factory=RoundSettings)
    cag: CagSettings = field(default_factory=CagSettings)
    run: RunSettings = field(default_factory=RunSettings)

    @property
    def method(self) -> MethodEntry:
        """What the method needs and takes."""
        return METHODS[self.training.method]

    @property
    def correction(self) -> CorrectionEntry:
        """What corrects the method's cross-entropy."""
        return CORRECTIONS[self.method.correction or self.training.correction]

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
        """With the warm-ups no longer than a tenth of the iterations."""
        longest = self.training.iterations // 10
        return replace(
            self,
            training=replace(self.training, warmup=min(self.training.warmup, longest)),
            blda=replace(self.blda, warmup=min(self.blda.warmup, longest)),
        )

    def to_toml(self) -> str:
        """As TOML; what is None is left out."""
        return write(self)


def read_settings(path: Path) -> Settings:
    """Read settings back from TOML; what is not there keeps its default.

    Raises:
        BldaError: it cannot be read, or holds an unknown setting or an unfit value.
    """
    tables = read_toml(path)
    training = tables.get("training")
    method = training.get("method") if isinstance(training, dict) else None
    entry = METHODS.get(method) if isinstance(method, str) else None
    base = Settings().with_values(dict(entry.defaults), str(path)) if entry is not None else None
    return read(Settings, tables, path, base=base)
