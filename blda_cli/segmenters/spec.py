"""Model descriptions: a TOML file or a ``--model`` shorthand.

Only the TOML file itself is read here; ``load_segmenter`` loads the model.
"""

import importlib.util
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from blda_cli.data.classes import Color
from blda_cli.data.encodings import check_encoding_name, custom_encoding
from blda_cli.data.pixels import PixelFormat
from blda_cli.errors import BldaError
from blda_cli.files import replacing
from blda_cli.segmenters.kinds import KINDS
from blda_cli.settings import sections_of, setting, settings_of
from blda_cli.settings_files import read, read_toml, write
from blda_cli.text import suggestion

SHORT_FORMS = (
    "a .toml file, hf:NAME, a folder with config.json, net.pt2, net.ts, net.onnx, module:factory or logits:DIR"
)


@dataclass(frozen=True)
class NetworkSection:
    """``[segmenter]``: where the segmenter is."""

    kind: str = setting(MISSING, "What holds the network.", choices=KINDS)
    factory: str | None = setting(None, "`module:callable` or `file.py:callable` that makes it (kind python).")
    path: str | None = setting(
        None,
        "File, folder or hub name (the other kinds), in the file relative to that, here to the working directory.",
    )
    arguments: Mapping[str, Any] = setting({}, 'Keyword arguments of the factory; the text "None" is None.')
    weights: Path | None = setting(None, "`.safetensors`, or `.pth` read with weights_only.")
    weights_key: str | None = setting(
        None, "Key or prefix of the network's weights in a file that holds several, e.g. `ema_model`."
    )
    head: str | int | None = setting(
        None, "Name or position of the output that is used, of a network with several.", form="a name or a position"
    )
    channels: int | None = setting(None, "Keep the first so many outputs.", at_least=1, at_most=1 << 16)
    norm_weight: float | None = setting(
        None,
        "Batch norms mix the network's own statistics, with this weight, with each image's, unless `--norms` says "
        "otherwise.",
        at_least=0,
        at_most=1,
    )
    adapted_norms: bool = setting(
        False,
        "Batch norms hold statistics of the target images already, as `finetune` writes them: how far they lie from "
        "those of the images is then no sign of another domain.",
    )
    corrected: str | None = setting(
        None, "How its predictions were corrected, as `export` writes it: `align` does not correct them a second time."
    )


@dataclass(frozen=True)
class PreprocessingSection:
    """``[preprocessing]``: how pixels become the network's input; None means the segmenter's own default."""

    color: Literal["rgb", "bgr"] = setting("rgb", "Order of the channels.")
    mean: tuple[float, ...] | None = setting(
        None, "Subtracted from each channel, in the order of `color` or `bands`.", form="one number per channel"
    )
    std: tuple[float, ...] | None = setting(
        None, "Each channel is then divided by this.", above=0, form="one number per channel"
    )
    scale: float | None = setting(
        None,
        "The result is then divided by this. Where it is given the pixels are in 0..255 before `mean` is subtracted, "
        "else in 0..1.",
        above=0,
    )
    size: tuple[int, int] | None = setting(
        None,
        "The image is first resized to this; the logits are resized back.",
        at_least=1,
        at_most=1 << 16,
        form="[height, width]",
    )
    multiple_of: int | None = setting(
        None,
        "The network takes sides that are multiples of this: the normalised image is padded with zeros below and on "
        "the right, and the logits are cut.",
        at_least=1,
        at_most=1 << 12,
    )
    output: Literal["logits", "probabilities", "sigmoid"] | None = setting(
        None,
        "What the network gives: logits (the default), probabilities of a softmax, or sigmoids, each channel a "
        "probability of its own.",
    )
    bands: tuple[int | str, ...] | None = setting(
        None,
        "In place of `color`: the bands that the network takes, in its order.",
        at_least=1,
        form="a list of band numbers from 1, or of names",
    )
    range: tuple[float, float] | None = setting(
        None,
        "The stored values that become 0 and 1 (0 and 255 where `scale` is given); without it the range of the file's "
        "integer type.",
        form="[low, high]",
    )
    bits: int | None = setting(
        None,
        "Bits that the stored values use, where these are fewer than the file's type has: 12 of 16.",
        at_least=1,
        at_most=32,
    )
    layout: Literal["hwc", "chw"] | None = setting(
        None, "The axes of images that are .npy or .npz arrays, where their lengths leave it open."
    )
    margin: int | None = setting(
        None,
        "Pixels that the network's output lacks of its input, in all, as its convolutions are not padded: images are "
        "mirrored beyond their borders by half of it on each side.",
        at_least=1,
        at_most=1 << 12,
    )
    quantised: tuple[float, float] | None = setting(
        None,
        "Scale and zero point of scores that are whole numbers: scale times (stored minus zero point).",
        form="[scale, zero point]",
    )
    normalised: bool | None = setting(
        None,
        "Whether probabilities sum to 1 over the classes (the default); those of mask-classification networks, and "
        "corrected ones, do not.",
    )

    @property
    def pixels(self) -> PixelFormat:
        """Which bands of a file are read, and on which scale."""
        return PixelFormat(self.bands or (), self.full_range, self.layout)

    @property
    def full_range(self) -> tuple[float, float] | None:
        """The stored values that become 0 and 255, where the section states them."""
        return self.range if self.bits is None else (0.0, 2.0**self.bits - 1)

    @property
    def channels(self) -> int:
        """How many channels the network takes."""
        return self.pixels.channels


@dataclass(frozen=True)
class ClassesSection:
    """``[classes]``: the classes of the outputs."""

    names: str | tuple[str, ...] | None = setting(
        None,
        "A preset's name or one name per output; left out where the segmenter says it itself.",
        form="the name of a preset or a list of different class names",
    )
    palette: tuple[Color, ...] | None = setting(
        None,
        "One colour per class (per group where there are groups).",
        at_least=0,
        at_most=255,
        form="a list of [red, green, blue]",
    )
    groups: Mapping[str, tuple[str, ...]] = setting(
        {},
        "The classes to work in, each made of some of `names`; empty: the classes themselves.",
        form="a list of different class names",
    )
    background: str | None = setting(
        None,
        "A class that no channel stands for: it wins where none of the others is above one half. It stands first, or "
        "where `names` has it.",
    )


@dataclass(frozen=True)
class LabelsSection:
    """``[labels]``: how label files are to be read where ``--label-encoding`` does not say it."""

    encoding: str | None = setting(None, "Name of a label encoding.")
    mapping: Mapping[str, str] = setting(
        {},
        'Class name of each value found in the label files; a value is an id, or a colour as "R,G,B". What is not '
        "named is ignored.",
    )
    orientation: Literal["shown", "stored"] | None = setting(
        None, "Orientation of the labels of images that EXIF turns: as the images are shown, or as they are stored."
    )


@dataclass(frozen=True)
class SegmenterSpec:
    """The description of a segmenter: the sections of its TOML file.

    Attributes:
        folder: the folder of the TOML file, or the working directory for a short form: a Python factory is looked
            for here first.
    """

    segmenter: NetworkSection
    preprocessing: PreprocessingSection = PreprocessingSection()
    classes: ClassesSection = ClassesSection()
    labels: LabelsSection = LabelsSection()
    folder: Path = field(default_factory=Path.cwd)


def parse_model(model: str, weights: Path | None = None, weights_key: str | None = None) -> SegmenterSpec:
    """Parse ``--model``, ``--weights`` and ``--weights-key``.

    Args:
        model: a TOML file or a short form: ``hf:NAME`` or ``hf:FOLDER``, a folder with ``config.json``, ``net.pt2``,
            ``net.ts``, ``net.onnx``, ``module:factory``, ``logits:DIR``.
        weights: replaces the TOML's ``weights`` and ``weights_key``.
        weights_key: replaces the TOML's ``weights_key``.

    Returns:
        The description, its paths resolved.

    Raises:
        BldaError: ``model`` is none of these, the TOML file cannot be read, a key is unknown or of the wrong type, or
            the kind takes no weights.
    """
    spec = _read_spec(Path(model)) if model.endswith(".toml") else SegmenterSpec(_short_form(model))
    if weights is not None:
        if "weights" not in KINDS[spec.segmenter.kind].optional:
            raise BldaError(f"--weights: {spec.segmenter.kind} models hold their weights themselves; leave it out")
        spec = replace(spec, segmenter=replace(spec.segmenter, weights=weights, weights_key=None))
    if weights_key is not None:
        if spec.segmenter.weights is None:
            raise BldaError("--weights-key chooses among the networks of a weights file: give --weights too")
        spec = replace(spec, segmenter=replace(spec.segmenter, weights_key=weights_key))
    return spec


def with_changes(spec: SegmenterSpec, changes: Sequence[str], classes: str | None = None) -> SegmenterSpec:
    """A copy of a description with some keys changed.

    Args:
        spec: the description.
        changes: ``SECTION.KEY=VALUE`` or ``KEY=VALUE`` each, the value as in TOML; a value that is not valid TOML is
            text. Later ones win.
        classes: a preset's name, or a file with one class name a line, for ``classes.names``.

    Returns:
        The description; paths in it are relative to the working directory.

    Raises:
        BldaError: there is no such key, a value does not fit it, or the file cannot be read.
    """
    for change in changes:
        name, equals, text = change.partition("=")
        section, dot, key = name.strip().partition(".")
        if not dot:  # the section that has such a key
            holders = [one for one, cls in sections_of(SegmenterSpec).items() if section in settings_of(cls)]
            section, key = (holders or [""])[0], section
        if not equals:
            raise BldaError(f"--set {change}: give [SECTION.]KEY=VALUE, e.g. --set color=bgr")
        if not section:
            keys = [one for cls in sections_of(SegmenterSpec).values() for one in settings_of(cls)]
            raise BldaError(f"--set {change}: a model's description has no key {key!r}{suggestion(key, keys)}")
        spec = read(SegmenterSpec, {section: {key: _toml_value(text.strip())}}, "--set", spec)
    if changes:
        _check(spec, "--set")
    if classes is not None:
        names: Any = classes
        if Path(classes).is_file():
            try:
                lines = Path(classes).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise BldaError(f"--classes {classes} cannot be read as text: {error}") from error
            names = [line.strip() for line in lines if line.strip()]
        spec = read(SegmenterSpec, {"classes": {"names": names}}, "--classes", spec)
    return spec


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


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
    weights = None if network.weights is None else Path(_relative(network.weights, folder))
    text = write(replace(spec, segmenter=replace(network, path=path, factory=factory, weights=weights)))
    # Bands take the place of the colour order, which may not stand beside them.
    return text if spec.preprocessing.bands is None else text.replace(_COLOR, _COLOR.splitlines(keepends=True)[0])


def write_spec(spec: SegmenterSpec, path: Path) -> None:
    """Write a description as a TOML file.

    Raises:
        BldaError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(to_toml(spec, path.parent), encoding="utf-8")


@dataclass(frozen=True)
class KeptSpec:
    """A description to be written as a TOML file for other commands, once it has proved itself.

    Attributes:
        spec: the description.
        path: where to.

    Raises:
        BldaError: there is a file that says something else.
    """

    spec: SegmenterSpec
    path: Path

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        try:
            there = _tables(_read_spec(self.path), self.path.parent)
        except BldaError:
            raise BldaError(
                f"--write-model: {self.path} exists already and is no model description: give another name"
            ) from None
        here = _tables(self.spec, self.path.parent)
        differing = [key for key in dict.fromkeys([*there, *here]) if there.get(key) != here.get(key)]
        if differing:
            raise BldaError(
                f"--write-model: {self.path} exists already and differs in {', '.join(differing)}: remove it, or give "
                "another name"
            )

    def write(self) -> None:
        """Write it, unless it is there already.

        Raises:
            BldaError: it cannot be written.
        """
        if not self.path.exists():
            write_spec(self.spec, self.path)


def _tables(spec: SegmenterSpec, folder: Path) -> dict[str, Any]:
    """A description's keys as ``section.key``, as `to_toml` writes them."""
    tables = tomllib.loads(to_toml(spec, folder))
    return {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}


_COLOR = '[preprocessing]\ncolor = "rgb"\n'


def _short_form(model: str) -> NetworkSection:
    """The section that a short form stands for."""
    scheme, colon, rest = model.partition(":")
    if rest and scheme == "hf":
        return NetworkSection("huggingface", path=rest)
    if rest and scheme == "logits":
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
    module, dot, name = model.rpartition(".")
    if dot and name.isidentifier() and _is_module(module):
        raise BldaError(f"--model {model}: no such file or folder; do you mean {module}:{name}?")
    raise BldaError(f"--model {model}: no such file or folder, and no other form of a model: give {SHORT_FORMS}")


def _is_module(name: str) -> bool:
    """Whether a name is that of a module in the working directory, or of an installed package or something in it."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    beside = Path(f"{name.replace('.', '/')}.py").is_file()
    return beside or importlib.util.find_spec(name.partition(".")[0]) is not None


def _read_spec(file: Path) -> SegmenterSpec:
    table = read_toml(file)
    spec = read(SegmenterSpec, table, file)
    _check(spec, file)
    if spec.preprocessing.bands is not None and "color" in table["preprocessing"]:
        raise BldaError(f"{file}: preprocessing.bands says the order of the channels: remove color")
    return replace(spec, segmenter=_in_folder(spec.segmenter, file), folder=file.parent)


def _check(spec: SegmenterSpec, origin: object) -> None:
    """Raise unless the keys of a description go together.

    Args:
        spec: the description.
        origin: where it comes from, for messages.
    """
    try:
        check_encoding_name(spec.labels.encoding)
        if spec.labels.mapping:
            custom_encoding(spec.labels.mapping)
    except BldaError as error:
        raise BldaError(f"{origin}: {error}") from error
    own = spec.preprocessing
    if own.range is not None and own.bits is not None:
        raise BldaError(f"{origin}: preprocessing.bits = {own.bits} says the range, too: remove one of the two")
    if own.range is not None and own.range[0] >= own.range[1]:
        raise BldaError(f"{origin}: preprocessing.range = {list(own.range)} should be [low, high], low below high")
    for name, values in (("mean", own.mean), ("std", own.std)):
        if values is not None and len(values) != own.channels:
            of = f"the {own.channels} bands" if own.bands else "the three colour channels"
            raise BldaError(f"{origin}: preprocessing.{name} has {len(values)} numbers: give one for each of {of}")
    if own.scale is None and own.mean is not None and max(own.mean) > 1:
        raise BldaError(
            f"{origin}: preprocessing.mean = {list(own.mean)} is for pixels in 0..255, but without a scale they are in "
            "0..1: add scale = 1.0"
        )


def _in_folder(network: NetworkSection, file: Path) -> NetworkSection:
    """The section as it stands in ``file``, with its paths made relative to the working directory.

    Raises:
        BldaError: its kind needs a key that is missing, or does not take one that is there.
    """
    kind, folder = KINDS[network.kind], file.parent
    for key in ("factory", "path", "arguments", "weights", "weights_key"):
        given = bool(getattr(network, key))
        if key == kind.required and not given:
            raise BldaError(f"{file}: segmenter.{key} is missing: kind {network.kind} needs it")
        if given and key != kind.required and key.removesuffix("_key") not in kind.optional:
            raise BldaError(f"{file}: segmenter.{key} means nothing for kind {network.kind}; remove it")
    if network.weights_key is not None and network.weights is None:
        raise BldaError(f"{file}: segmenter.weights_key chooses among the networks of weights: give weights too")
    path = network.path
    # A hub name looks like a relative path: it is one where there is no such folder.
    if path is not None and (network.kind != "huggingface" or (folder / path).is_dir()):
        path = str(folder / path)
    return replace(network, path=path, weights=None if network.weights is None else folder / network.weights)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
