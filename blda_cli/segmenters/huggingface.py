"""Kind ``huggingface``: semantic and mask-classification models of the transformers library.

Code from a model's repository is never run (``trust_remote_code``).
"""

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blda_cli.data.classes import ClassSet, class_set, numbered_classes
from blda_cli.data.encodings import IDS_FROM_1
from blda_cli.errors import BldaError, require_extra
from blda_cli.segmenters.network import CORRECTION, NetworkSegmenter, Port, network_segmenter, with_size
from blda_cli.segmenters.outputs import find_scores, mask_class_scores
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import PreprocessingSection, SegmenterSpec
from blda_cli.segmenters.weights import load_weights, state_digest

# Models that cut the image into a square grid of patches whose size they were made for.
_SQUARE = ("dpt", "eomt")
# Models that drop the rest of the image after the last whole patch.
_PATCHED = ("beit", "data2vec-vision")

_PATIENCE = 5.0
"""Seconds that the hub has to answer in."""


def load(spec: SegmenterSpec, device: torch.device) -> NetworkSegmenter:
    """Load a model, with preprocessing and class names from its own processor and configuration.

    Images keep their own size, whatever the processor would resize them to, unless the description has a ``size`` or
    the model takes one size only. The description's ``mean``, ``std`` and ``scale`` together replace the processor's.

    Args:
        spec: a description with ``path``: a folder that ``save_pretrained`` wrote, or a name on the hub.
        device: where to run.

    Returns:
        The segmenter. Semantic models give their logits; mask-classification models (Mask2Former, MaskFormer,
        OneFormer, EoMT) the logarithm of their normalised per-pixel class scores (`mask_class_scores`).

    Raises:
        BldaError: transformers is missing, the model cannot be had, is for another task, or has no processor and the
            description no ``mean`` and ``std``.
    """
    path = spec.segmenter.path
    assert path is not None
    transformers = require_extra("transformers", "hf", "to run Hugging Face models")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(transformers|huggingface_hub)\.")
    config = _fetch(transformers.AutoConfig, path)
    masks = _is_mask_classification(config, path)
    auto = transformers.AutoModelForUniversalSegmentation if masks else transformers.AutoModelForSemanticSegmentation
    # Names are checked first: where the description has none, they must be right.
    own = None if spec.classes.names is not None else _classes(config, path)
    if spec.segmenter.weights is not None:
        model = auto.from_config(config)
        load_weights(model, spec.segmenter.weights, spec.segmenter.weights_key)
    else:
        model, loaded = _fetch(auto, path, output_loading_info=True, ignore_mismatched_sizes=True)
        if loaded["mismatched_keys"] and spec.classes.names is not None and not masks:
            config.num_labels = _head_size(loaded["mismatched_keys"])  # the names are the description's
            model, loaded = _fetch(auto, path, config=config, output_loading_info=True, ignore_mismatched_sizes=True)
        if loaded["mismatched_keys"]:
            key, shape, _ = sorted(loaded["mismatched_keys"])[0]
            raise BldaError(
                f"{path}: config.json names {config.num_labels} classes in id2label, but the weights {key} are of "
                f"shape {list(shape)}: correct id2label, or name the classes under [classes] of a TOML file"
            )
        if loaded["missing_keys"]:
            missing = sorted(loaded["missing_keys"])
            raise BldaError(
                f"{path} lacks weights of the model ({len(missing)}, {missing[0]} among them): is it fine-tuned?"
            )
    digest = state_digest(model)
    if config.model_type == "oneformer":
        model = SemanticOneFormer(model, _task_tokens(transformers, path, config.task_seq_len))
    processor, preprocessing, notes = _preprocessing(transformers, spec.preprocessing, path, config)
    segmenter = network_segmenter(
        spec,
        model.float().eval().to(device),
        device,
        {"kind": "huggingface", "path": Path(path).name if Path(path).is_dir() else path, "weights": digest},
        port=Port(
            read=_mask_scores if masks else find_scores,
            probabilities=masks,
        ),
        preprocessing=preprocessing,
        own=own,
        notes=notes,
        corrected=getattr(config, CORRECTION, None),
    )
    if getattr(processor, "do_reduce_labels", False) or getattr(processor, "reduce_labels", False):
        segmenter.label_encoding = IDS_FROM_1
    return segmenter


class SemanticOneFormer(nn.Module):
    """A OneFormer asked for its semantic task, so that it takes images alone."""

    task: Tensor

    def __init__(self, model: nn.Module, task: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("task", task, persistent=False)

    def forward(self, images: Tensor) -> Any:
        """The model's output for float ``[N, 3, H, W]``."""
        return self.model(images, task_inputs=self.task.expand(images.shape[0], -1))


def _fetch(auto: Any, path: str, **arguments: Any) -> Any:
    """``from_pretrained``, its failures in one line."""
    try:
        return _from_pretrained(auto, path, **arguments)
    except Exception as error:  # OSError mostly, but also the hub client's and the parsers' own
        if Path(path).is_dir():
            raise BldaError(f"{path}: transformers cannot load it: {reason(error)}") from error
        if not _hub_answers():
            raise BldaError(
                f"{path} is no folder here, the Hugging Face hub cannot be reached, and no earlier download of it is "
                "kept: give a folder that save_pretrained wrote, or go online"
            ) from error
        raise BldaError(
            f"{path} is no folder here and cannot be had from the Hugging Face hub (offline? misspelt?): "
            f"{reason(error)}"
        ) from error


def _from_pretrained(auto: Any, path: str, **arguments: Any) -> Any:
    """``from_pretrained``; from the local cache alone where the hub does not answer."""
    local = not Path(path).is_dir() and not _hub_answers()
    return auto.from_pretrained(path, trust_remote_code=False, local_files_only=local, **arguments)


@cache
def _hub_answers() -> bool:
    """Whether the hub can be reached, asked once: its own client tries for half a minute, file by file."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import get_session

    try:
        get_session().head(ENDPOINT, timeout=_PATIENCE)
    except Exception:  # of whichever HTTP library it uses
        return False
    return True


def _is_mask_classification(config: Any, path: str) -> bool:
    architecture = next(iter(config.architectures or ()), "")
    if architecture.endswith("ForSemanticSegmentation"):
        return False
    if architecture.endswith("ForUniversalSegmentation") or architecture == "MaskFormerForInstanceSegmentation":
        return True
    raise BldaError(
        f"{path} is a {architecture or config.model_type}; a model ...ForSemanticSegmentation or "
        "...ForUniversalSegmentation is needed"
    )


def _mask_scores(output: Any) -> Tensor:
    return mask_class_scores(output.class_queries_logits, output.masks_queries_logits)


def _task_tokens(transformers: Any, path: str, length: int) -> Tensor:
    """The words that ask a OneFormer for semantic segmentation, ``[1, length]``, 0 after their end."""
    tokenizer = _fetch(transformers.AutoTokenizer, path)
    tokens = tokenizer("the task is semantic", padding="max_length", max_length=length, truncation=True)
    return torch.tensor(tokens["input_ids"])[None] * torch.tensor(tokens["attention_mask"])[None]


def _preprocessing(
    transformers: Any, section: PreprocessingSection, path: str, config: Any
) -> tuple[Any, PreprocessingSection, list[str]]:
    try:
        processor = _from_pretrained(transformers.AutoImageProcessor, path)
    except Exception as error:  # as for the model
        if section.mean is None or section.std is None:
            raise BldaError(
                f"{path} has no image processor that says how images are normalised: give mean and std under "
                f"[preprocessing] ({reason(error)})"
            ) from error
        processor = None
    if section.mean is None and section.std is None and section.scale is None:
        section = replace(section, **_normalisation(processor, path))
    if section.multiple_of is None and config.model_type in _PATCHED:
        section = replace(section, multiple_of=config.patch_size)
    notes: list[str] = []
    size = getattr(processor, "size", None) or {}
    if section.size is None and config.model_type in _SQUARE:
        side = size.get("height") or config.image_size
        section, notes = with_size(section, (side, side), f"a {config.model_type} model")
    elif section.size is None and getattr(processor, "do_resize", False):
        wanted = " x ".join(f"{name} {value}" for name, value in dict(size).items() if value)
        notes = [f"the model's processor would resize images ({wanted}); they keep their own size, or set size"]
    return processor, section, notes


def _channels(processor: Any, name: str, path: str) -> tuple[float, ...]:
    """Three numbers of a processor, one per colour channel."""
    given = getattr(processor, name, None)
    numbers: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if len(numbers) != 3 or not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers):
        raise BldaError(f"{path}: its processor's {name} is {str(given)[:60]!r}: three finite numbers are needed")
    return tuple(map(float, numbers))


def _normalisation(processor: Any, path: str) -> dict[str, Any]:
    """A processor's ``(pixels · factor − mean) / std`` in this program's terms."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    normalise = bool(getattr(processor, "do_normalize", False))
    mean = _channels(processor, "image_mean", path) if normalise else None
    std = _channels(processor, "image_std", path) if normalise else None
    if std is not None and min(std) <= 0:
        raise BldaError(f"{path}: its processor's image_std is {list(std)}: numbers above 0 are needed")
    color = "bgr" if getattr(processor, "do_flip_channel_order", False) else "rgb"
    if abs(factor * 255 - 1) < 1e-6:
        return {"color": color, "mean": mean, "std": std}
    return {
        "color": color,
        "mean": None if mean is None else tuple(value / factor for value in mean),
        "std": std,
        "scale": 1 / factor,
    }


def _head_size(mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> int:
    """How many classes the weights decide between, where that is another number than the configuration's."""
    return min(int(shape[0]) for _, shape, _ in mismatched)


def _classes(config: Any, path: str) -> ClassSet:
    """The classes that a configuration names.

    Raises:
        BldaError: it names them by ids with gaps, or has a name twice or an empty one.
    """
    names = {int(number): str(name).strip() for number, name in config.id2label.items()}
    way = "correct it, or name the classes in the order of the channels under [classes] of a TOML file"
    first = min(names, default=0)
    if sorted(names) != list(range(first, first + len(names))) or first not in (0, 1):
        shown = ", ".join(map(str, sorted(names)[:12]))
        raise BldaError(f"{path}: id2label in config.json has the ids {shown} for {len(names)} channels: {way}")
    ordered = [names[number] for number in sorted(names)]
    if all(re.fullmatch("LABEL_[0-9]+", name) for name in ordered):
        return numbered_classes(len(ordered))
    for number, name in zip(sorted(names), ordered, strict=True):
        if not name:
            raise BldaError(f"{path}: id2label in config.json has no name for the id {number}: {way}")
        if ordered.count(name) > 1:
            both = ", ".join(str(one) for one, other in names.items() if other == name)
            raise BldaError(f"{path}: id2label in config.json calls the ids {both} all {name!r}: {way}")
    return class_set(ordered)
