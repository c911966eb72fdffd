"""The formats of an exported network, one entry each. No torch, so that ``--help`` is quick."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blda_cli.exporting.content import Content
    from blda_cli.segmenters.spec import SegmenterSpec


@dataclass(frozen=True)
class Format:
    """Properties of a format: its writer, the kinds of segmenter it applies to, whether it holds code.

    Attributes:
        module: module of this package whose ``write(content, folder)`` writes the network and returns its description,
            a ``SegmenterSpec``.
        kinds: kinds of segmenter that can be written so.
        carries_code: it holds the computation, not the weights alone, and so also the stages behind the network.
        same: kinds of segmenter that ``--format same`` stands for this format for.
    """

    module: str
    kinds: tuple[str, ...]
    carries_code: bool
    same: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "state-dict": Format("state_dict", ("python", "huggingface"), carries_code=False, same=("python",)),
    "huggingface": Format("huggingface", ("huggingface",), carries_code=False, same=("huggingface",)),
    "onnx": Format("onnx", ("python", "huggingface", "exported", "onnx"), carries_code=True, same=("onnx",)),
    "pt2": Format("pt2", ("python", "huggingface", "exported"), carries_code=True, same=("exported",)),
    "torchscript": Format(
        "torchscript",
        ("python", "huggingface", "exported", "torchscript"),
        carries_code=True,
        same=("torchscript",),
    ),
}

SAME = "same"
"""Name for the format of the original kind."""


def format_of(name: str, kind: str) -> str | None:
    """The format that a name stands for with a kind of segmenter; None where that kind has none."""
    if name != SAME:
        return name
    return next((one for one, entry in FORMATS.items() if kind in entry.same), None)


def write(name: str, content: "Content", folder: Path) -> "SegmenterSpec":
    """Write a network in a format.

    Args:
        name: of the format.
        content: what to write.
        folder: where.

    Returns:
        The description of the written network.

    Raises:
        BldaError: the format cannot hold the network, or a library is missing.
    """
    # Imported here, as each format brings its own, partly optional, library.
    module = importlib.import_module(f"blda_cli.exporting.{FORMATS[name].module}")
    described: SegmenterSpec = module.write(content, folder)
    return described
