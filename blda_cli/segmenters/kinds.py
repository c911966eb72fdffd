"""The kinds of segmenter, one line each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """The keys of a kind's description.

    Attributes:
        module: module of this package whose ``load(spec, device)`` makes the segmenter.
        required: the key of ``[segmenter]`` that says where it is: ``"factory"`` or ``"path"``.
        optional: further keys it takes (``channels`` is taken by all).
        suffix: files with this suffix are of this kind when named on the command line.
    """

    module: str
    required: str = "path"
    optional: tuple[str, ...] = ()
    suffix: str | None = None


KINDS: dict[str, Kind] = {
    "python": Kind("python", required="factory", optional=("arguments", "weights")),
    "huggingface": Kind("huggingface", optional=("weights",)),
    "exported": Kind("exported", suffix=".pt2"),
    "torchscript": Kind("torchscript", suffix=".ts"),
    "onnx": Kind("onnx", suffix=".onnx"),
    "logits": Kind("logits"),
}
