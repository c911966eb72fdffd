"""What a segmenter is said to be: the TOML file or the short form given as ``--model``.

Nothing is loaded here but the TOML file itself; see ``load_segmenter`` for that.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from blda_cli.data.classes import Color
from blda_cli.errors import BldaError
from blda_cli.segmenters import toml
from blda_cli.segmenters.kinds import KINDS

SHORT_FORMS = (
    "a .toml file, hf:NAME, a folder with config.json, net.pt2, net.ts, net.onnx, module:factory or logits:DIR"
)


@dataclass(frozen=True)
class NetworkSection:
    """``[segmenter]``: where the segmenter is.

    Attributes:
        kind: a key of ``KINDS``.
        factory: ``module:callable`` or ``file.py:callable`` that makes the network (kind python).
        path: file, folder or hub name (the other kinds); files and folders are relative to the working directory.
        arguments: keyword arguments of the factory.
        weights: ``.safetensors``, or ``.pth`` read with ``weights_only``.
        channels: keep the first so many outputs.
    """

    kind: str
    factory: str | None = None
    path: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    channels: int | None = None


@dataclass(frozen=True)
class PreprocessingSection:
    """``[preprocessing]``: how pixels become the network's input; None where the segmenter's own default holds.

    Attributes:
        color: order of the channels.
        mean: subtracted from each channel, in the order of ``color``.
        std: what each channel is then divided by.
        scale: what the result is then divided by. Where it is given the pixels are in 0..255 before ``mean`` is
            subtracted, else in 0..1.
        size: (height, width) the image is resized to before; the logits are resized back.
        multiple_of: the network takes sides that are multiples of this: the normalised image is padded with zeros
            below and on the right, and the logits are cut.
        output: what the network gives.
    """

    color: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    size: tuple[int, int] | None = None
    multiple_of: int | None = None
    output: Literal["logits", "probabilities"] = "logits"


@dataclass(frozen=True)
class ClassesSection:
    """``[classes]``: what the outputs mean.

    Attributes:
        names: a preset's name or one name per output; None where the segmenter says it itself.
        palette: one colour per class (per group where there are groups).
        groups: the classes to work in, each made of some of ``names``; empty: the classes themselves.
    """

    names: str | tuple[str, ...] | None = None
    palette: tuple[Color, ...] | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelsSection:
    """``[labels]``: how label files are to be read where ``--label-encoding`` does not say it.

    Attributes:
        encoding: name of a label encoding.
        mapping: class name of each value found in the label files; a value is an id, or a colour as ``"R,G,B"``.
            What is not named is ignored.
    """

    encoding: str | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmenterSpec:
    """A segmenter described; the sections of its TOML file.

    Attributes:
        folder: the folder of the TOML file, or the working directory for a short form: a Python factory is looked
            for here first.
    """

    segmenter: NetworkSection
    preprocessing: PreprocessingSection = PreprocessingSection()
    classes: ClassesSection = ClassesSection()
    labels: LabelsSection = LabelsSection()
    folder: Path = field(default_factory=Path.cwd)


def parse_model(model: str, weights: Path | None = None) -> SegmenterSpec:
    """Understand what ``--model`` and ``--weights`` say.

    Args:
        model: a TOML file or a short form: ``hf:NAME`` or ``hf:FOLDER``, a folder with ``config.json``, ``net.pt2``,
            ``net.ts``, ``net.onnx``, ``module:factory``, ``logits:DIR``.
        weights: replaces the TOML's ``weights``.

    Returns:
        The description, its paths resolved.

    Raises:
        BldaError: it is none of these, the TOML file cannot be read, a key is unknown or of the wrong type, or the
            kind takes no weights.
    """
    spec = _read_toml(Path(model)) if model.endswith(".toml") else SegmenterSpec(_short_form(model))
    if weights is not None:
        if "weights" not in KINDS[spec.segmenter.kind].optional:
            raise BldaError(f"--weights: {spec.segmenter.kind} models hold their weights themselves; leave it out")
        spec = replace(spec, segmenter=replace(spec.segmenter, weights=weights))
    return spec


def to_toml(spec: SegmenterSpec, folder: Path) -> str:
    """Write a description as TOML, to be put into ``folder``.

    Args:
        spec: the description.
        folder: where the file will lie: paths, and a factory that lies beside the original TOML file, are written
            relative to it.

    Returns:
        The text; ``parse_model`` of it gives ``spec`` again.
    """
    network = spec.segmenter
    path = network.path
    if path is not None and Path(path).exists():
        path = _relative(Path(path), folder)
    factory = network.factory
    if factory is not None:
        module, _, name = factory.partition(":")
        beside = spec.folder / (module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
        if beside.is_file() and spec.folder.resolve() != folder.resolve():
            factory = f"{_relative(beside, folder)}:{name}"
    sections: dict[str, dict[str, Any]] = {
        "segmenter": {
            "kind": network.kind,
            "factory": factory,
            "path": path,
            "arguments": network.arguments,
            "weights": None if network.weights is None else _relative(network.weights, folder),
            "channels": network.channels,
        },
        "preprocessing": vars(spec.preprocessing),
        "classes": {"names": spec.classes.names, "palette": spec.classes.palette},
        "classes.groups": dict(spec.classes.groups),
        "labels": {"encoding": spec.labels.encoding},
        "labels.mapping": dict(spec.labels.mapping),
    }
    blocks = []
    for title, values in sections.items():
        lines = [
            f"{toml.write_key(key)} = {toml.write_value(value)}"
            for key, value in values.items()
            if value not in (None, {})
        ]
        if lines:
            blocks.append("\n".join([f"[{title}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _short_form(model: str) -> NetworkSection:
    """The section that a short form stands for."""
    scheme, colon, rest = model.partition(":")
    if colon and scheme == "hf":
        return NetworkSection("huggingface", path=rest)
    if colon and scheme == "logits":
        return NetworkSection("logits", path=rest)
    path = Path(model)
    if path.is_dir():
        if (path / "config.json").is_file():
            return NetworkSection("huggingface", path=model)
        raise BldaError(
            f"{model} has no config.json: for ready-made logits give logits:{model}, for a Hugging Face model the "
            "folder that save_pretrained wrote"
        )
    for kind, entry in KINDS.items():
        if entry.suffix == path.suffix and path.suffix:
            return NetworkSection(kind, path=model)
    if path.suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors"):
        raise BldaError(
            f"{model} holds weights and no network: give --model module:factory --weights {model} "
            '(a TorchScript file of that name goes by a TOML file with kind = "torchscript")'
        )
    if colon and scheme and rest:
        return NetworkSection("python", factory=model)
    raise BldaError(f"--model {model}: no such file or folder, and no other form of a model: give {SHORT_FORMS}")


def _read_toml(file: Path) -> SegmenterSpec:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BldaError(f"{file}: no such file") from error
    except OSError as error:
        raise BldaError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BldaError(f"{file}: not TOML: {error}") from error

    root = toml.Table(values, "", file)
    segmenter = root.table("segmenter")
    preprocessing = root.table("preprocessing")
    classes = root.table("classes")
    groups = classes.table("groups")
    labels = root.table("labels")
    mapping = labels.table("mapping")
    spec = SegmenterSpec(
        _network_section(segmenter, file.parent),
        PreprocessingSection(
            color=cast(Literal["rgb", "bgr"], preprocessing.take("color", toml.one_of("rgb", "bgr"), "rgb")),
            mean=preprocessing.take("mean", toml.three_numbers),
            std=preprocessing.take("std", toml.three_positive_numbers),
            scale=preprocessing.take("scale", toml.positive_number),
            size=preprocessing.take("size", toml.size),
            multiple_of=preprocessing.take("multiple_of", toml.positive_integer),
            output=cast(
                Literal["logits", "probabilities"],
                preprocessing.take("output", toml.one_of("logits", "probabilities"), "logits"),
            ),
        ),
        ClassesSection(
            names=classes.take("names", toml.preset_or_names),
            palette=classes.take("palette", toml.palette),
            groups={name: groups.take(name, toml.names, ()) for name in list(groups.values)},
        ),
        LabelsSection(
            encoding=labels.take("encoding", toml.text),
            mapping={value: mapping.take(value, toml.text, "") for value in list(mapping.values)},
        ),
        file.parent,
    )
    for table in (root, segmenter, preprocessing, classes, labels):
        table.close()
    own = spec.preprocessing
    if own.scale is None and own.mean is not None and max(own.mean) > 1:
        raise BldaError(
            f"{file}: preprocessing.mean = {list(own.mean)} is for pixels in 0..255, but without a scale they are in "
            "0..1: add scale = 1.0"
        )
    return spec


def _network_section(table: toml.Table, folder: Path) -> NetworkSection:
    kind = table.take("kind", toml.one_of(*KINDS))
    if kind is None:
        raise BldaError(f"{table.file}: [segmenter] kind is missing: one of {', '.join(KINDS)}")
    entry = KINDS[kind]
    values = {
        "factory": table.take("factory", toml.text),
        "path": table.take("path", toml.text),
        "arguments": table.take("arguments", toml.mapping),
        "weights": table.take("weights", toml.text),
    }
    for key, value in values.items():
        if value is None and key == entry.required:
            raise BldaError(f"{table.file}: [segmenter] {key} is missing: kind {kind} needs it")
        if value is not None and key != entry.required and key not in entry.optional:
            raise BldaError(f"{table.file}: [segmenter] {key} means nothing for kind {kind}; remove it")
    path = values["path"]
    # A hub name looks like a relative path: it is one where there is no such folder.
    if path is not None and (kind != "huggingface" or (folder / path).is_dir()):
        path = str(folder / path)
    return NetworkSection(
        kind=kind,
        factory=values["factory"],
        path=path,
        arguments=values["arguments"] or {},
        weights=None if values["weights"] is None else folder / values["weights"],
        channels=table.take("channels", toml.positive_integer),
    )


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
