"""Everything a run can be told, with the published values as defaults; written to and read from TOML."""

import dataclasses
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from blda_cli.errors import BldaError


@dataclass(frozen=True)
class DataSettings:
    """``[data]``: what is trained on.

    Attributes:
        model: as ``--model``.
        weights: as ``--weights``.
        source_images: images with labels.
        source_labels: their labels.
        source_encoding: what the labels' values mean.
        target_images: images of the domain to adapt to.
        val_images: images to validate on.
        val_labels: their labels.
        val_encoding: what those labels' values mean.
    """

    model: str = ""
    weights: str | None = None
    source_images: str = ""
    source_labels: str = ""
    source_encoding: str = "auto"
    target_images: str = ""
    val_images: str | None = None
    val_labels: str | None = None
    val_encoding: str = "auto"


@dataclass(frozen=True)
class TrainingSettings:
    """``[training]``: the optimisation.

    Attributes:
        method: a key of ``METHODS``.
        iterations: optimiser steps.
        crop: (height, width) in pixels.
        batch_size: source crops, and as many target crops, a step and process.
        accumulate: batches whose gradients are averaged in a step.
        learning_rate: of the encoder.
        head_factor: the rest's learning rate over the encoder's.
        weight_decay: of AdamW.
        warmup: steps of linear warm-up; at most a tenth of the iterations.
        seed: all randomness is a function of it, the step and the crop.
        amp: mixed precision.
        activation_checkpointing: recompute activations in the backward pass.
        feature_layer: the layer whose input are the features that feed the classifier; None: found.
    """

    method: str = "blda"
    iterations: int = 40_000
    crop: tuple[int, int] = (512, 512)
    batch_size: int = 2
    accumulate: int = 1
    learning_rate: float = 6e-5
    head_factor: float = 10.0
    weight_decay: float = 0.01
    warmup: int = 1500
    seed: int = 0
    amp: bool = False
    activation_checkpointing: bool = False
    feature_layer: str | None = None


@dataclass(frozen=True)
class HostSettings:
    """``[host]``: the self-training that the methods share (DACS, DAFormer, MIC).

    Attributes:
        teacher_momentum: most the teacher keeps of itself in a step.
        confidence: pixels of at least this probability count towards an image's weight.
        ignore_rows: rows at the top and bottom of target images whose pseudo-labels have no weight.
        classmix: paste half of the source's classes onto the target.
        flip: probability of mirroring a crop.
        color_jitter: probability of jittering a mixed image's colours.
        color_strength: how far.
        blur: probability of blurring a mixed image.
        blur_sigma: range of the blur's standard deviation, in pixels.
        rare_class_sampling: draw source images and crops by their rare classes.
        rare_class_temperature: of the softmax over ``1 − frequency``.
        rare_class_pixels: pixels of its class that make an image worth drawing for it.
        feature_distance: weight of the distance to the initial encoder's features; 0 leaves it out (published: 0.005).
        thing_classes: classes it is for; empty: those known as things by name.
        masked_consistency: weight of the loss on masked target images; 0 leaves it out (published: 1).
        mask_ratio: share of blocks that are masked.
        mask_block: side of a block in pixels.
    """

    teacher_momentum: float = 0.999
    confidence: float = 0.968
    ignore_rows: tuple[int, int] = (0, 0)
    classmix: bool = True
    flip: float = 0.5
    color_jitter: float = 0.2
    color_strength: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.15, 1.15)
    rare_class_sampling: bool = True
    rare_class_temperature: float = 0.01
    rare_class_pixels: int = 3000
    feature_distance: float = 0.0
    thing_classes: tuple[str, ...] = ()
    masked_consistency: float = 0.0
    mask_ratio: float = 0.7
    mask_block: int = 64


@dataclass(frozen=True)
class BldaSettings:
    """``[blda]``: what method ``blda`` adds.

    Attributes:
        tau: strength of the corrected cross-entropy's shift.
        density_weight: weight of the cumulative-density regression.
        momentum: of the mixture banks.
        warmup: updates until the banks' momentum is reached; at most a tenth of the iterations.
        debias_pseudo_labels: shift the teacher's logits by the location form before labelling.
    """

    tau: float = 0.1
    density_weight: float = 0.2
    momentum: float = 0.99
    warmup: int = 1500
    debias_pseudo_labels: bool = False


@dataclass(frozen=True)
class RunSettings:
    """``[run]``: what the run leaves behind.

    Attributes:
        checkpoint_every: steps between checkpoints.
        log_every: steps that a line of metrics covers.
        validate_every: steps between validations.
        pictures_every: steps between pictures of mixed batches; 0: none.
        export: which network is written at the end.
        target_norms: its batch norms take the statistics of the target images.
    """

    checkpoint_every: int = 2000
    log_every: int = 50
    validate_every: int = 2000
    pictures_every: int = 0
    export: str = "teacher"
    target_norms: bool = True


@dataclass(frozen=True)
class Settings:
    """All of a run's settings, by section."""

    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    host: HostSettings = field(default_factory=HostSettings)
    blda: BldaSettings = field(default_factory=BldaSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def with_values(self, values: dict[str, Any], origin: str) -> "Settings":
        """Replace settings.

        Args:
            values: by ``"section.name"``.
            origin: where they come from, for messages.

        Raises:
            BldaError: there is no such setting, or the value does not fit.
        """
        settings = self
        for key, value in values.items():
            section_name, _, name = key.partition(".")
            section = getattr(settings, section_name, None)
            if section is None or name not in {one.name for one in fields(section)}:
                raise BldaError(f"{origin}: there is no setting {key}")
            kind = typing.get_type_hints(type(section))[name]
            section = replace(section, **{name: _converted(value, kind, f"{origin}: {key}")})
            settings = replace(settings, **{section_name: section})
        return settings

    def resolved(self) -> "Settings":
        """With the warm-ups no longer than a tenth of the iterations.

        Raises:
            BldaError: a value is out of its range.
        """
        for key, value, low, high in self._ranges():
            if not low <= value <= high:
                raise BldaError(f"{key} = {value} is out of range: it lies between {low} and {high}")
        if self.run.export not in ("teacher", "student"):
            raise BldaError(f"run.export = {self.run.export!r}: teacher or student")
        longest = self.training.iterations // 10
        return replace(
            self,
            training=replace(self.training, warmup=min(self.training.warmup, longest)),
            blda=replace(self.blda, warmup=min(self.blda.warmup, longest)),
        )

    def flat(self) -> dict[str, Any]:
        """By ``"section.name"``."""
        return {
            f"{section.name}.{one.name}": getattr(getattr(self, section.name), one.name)
            for section in fields(self)
            for one in fields(getattr(self, section.name))
        }

    def to_toml(self) -> str:
        """As TOML; what is None is left out."""
        lines = []
        for section in fields(self):
            lines.append(f"[{section.name}]")
            values = dataclasses.asdict(getattr(self, section.name))
            # JSON's strings, numbers, booleans and lists are TOML's too.
            lines += [
                f"{name} = {json.dumps(value, ensure_ascii=False)}"
                for name, value in values.items()
                if value is not None
            ]
            lines.append("")
        return "\n".join(lines)

    def _ranges(self) -> list[tuple[str, float, float, float]]:
        training, host, blda, run = self.training, self.host, self.blda, self.run
        many = math.inf
        return [
            ("training.iterations", training.iterations, 1, many),
            ("training.crop", min(training.crop), 8, many),
            ("training.batch_size", training.batch_size, 1, many),
            ("training.accumulate", training.accumulate, 1, many),
            ("training.learning_rate", training.learning_rate, 0, many),
            ("training.head_factor", training.head_factor, 0, many),
            ("training.weight_decay", training.weight_decay, 0, many),
            ("training.warmup", training.warmup, 0, many),
            ("training.seed", training.seed, 0, 2**32 - 1),
            ("host.teacher_momentum", host.teacher_momentum, 0, 1),
            ("host.confidence", host.confidence, 0, 1),
            ("host.ignore_rows", min(host.ignore_rows), 0, many),
            ("host.flip", host.flip, 0, 1),
            ("host.color_jitter", host.color_jitter, 0, 1),
            ("host.color_strength", host.color_strength, 0, 1),
            ("host.blur", host.blur, 0, 1),
            ("host.blur_sigma", min(host.blur_sigma), 1e-3, many),
            ("host.rare_class_temperature", host.rare_class_temperature, 1e-4, many),
            ("host.rare_class_pixels", host.rare_class_pixels, 1, many),
            ("host.feature_distance", host.feature_distance, 0, many),
            ("host.masked_consistency", host.masked_consistency, 0, many),
            ("host.mask_ratio", host.mask_ratio, 0, 1),
            ("host.mask_block", host.mask_block, 1, many),
            ("blda.tau", blda.tau, 0, many),
            ("blda.density_weight", blda.density_weight, 0, many),
            ("blda.momentum", blda.momentum, 0, 1),
            ("blda.warmup", blda.warmup, 0, many),
            ("run.checkpoint_every", run.checkpoint_every, 1, many),
            ("run.log_every", run.log_every, 1, many),
            ("run.validate_every", run.validate_every, 1, many),
            ("run.pictures_every", run.pictures_every, 0, many),
        ]


def read_settings(path: Path) -> Settings:
    """Read settings back from TOML; what is not there keeps its default.

    Raises:
        BldaError: it cannot be read, or holds an unknown setting or an unfit value.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BldaError(f"{path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BldaError(f"{path} is not TOML: {error}") from error
    values = {}
    for section, table in tables.items():
        if not isinstance(table, dict):
            raise BldaError(f"{path}: {section} stands outside of a section")
        values.update({f"{section}.{name}": value for name, value in table.items()})
    return Settings().with_values(values, str(path))


def _converted(value: Any, kind: Any, where: str) -> Any:
    """A TOML or command-line value as the type of its field."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(one for one in typing.get_args(kind) if one is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        length = None if parts[-1] is Ellipsis else len(parts)
        if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
            raise BldaError(f"{where} = {value!r} should be a list" + (f" of {length}" if length else ""))
        return tuple(_converted(one, parts[0], where) for one in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise BldaError(f"{where} = {value!r} should be of type {kind.__name__}")
    return value
