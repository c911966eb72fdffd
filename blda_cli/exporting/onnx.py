"""Format ``onnx``: made of a PyTorch network, or a corrected copy of an ONNX file."""

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from blda_cli.errors import BldaError, require_extra
from blda_cli.exporting.content import Content, quiet
from blda_cli.exporting.correct import Fold
from blda_cli.exporting.folding import CANDIDATES, measure_gain
from blda_cli.exporting.pt2 import exported_program
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.onnx import OnnxNetwork, open_session
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import NetworkSection, SegmenterSpec

_QUANTISED = ("QLinear", "Quantize", "Dequantize", "ConvInteger", "MatMulInteger", "DynamicQuantize")
"""Prefixes of the names of quantised operations."""

_OPSET = 18
"""The oldest set of operations that PyTorch writes."""

_BIASED = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "BatchNormalization": 2, "Add": 1}
"""Operations with a bias, and which of their inputs it is."""

_BIAS = "blda_bias"

_TAIL = "blda_"
"""Prefix of all names in the stages put behind a network."""


def write(content: Content, folder: Path) -> SegmenterSpec:
    """Write ``network.onnx``.

    Args:
        content: what to write.
        folder: where.

    Returns:
        The description of it.

    Raises:
        BldaError: the network has no ONNX form, or onnx or onnxscript is missing.
    """
    onnx = _libraries()
    file = folder / "network.onnx"
    output = "classes" if content.argmax else "logits" if content.gives_logits else "probabilities"
    if isinstance(content.parts.network, OnnxCopy):
        model = content.parts.network.model
        tail = content.tail()
        if len(tail.stages) or tail.at_input_size:
            model = _with_tail(onnx, model, content, output)
    else:
        _convert(exported_program(content), file, output, input_names=["images"])
        # Weights that one file cannot hold stay in the file beside it.
        model = onnx.load(file, load_external_data=False)
        _name_axes(model)
    held = {one.key: one.value for one in model.metadata_props}
    onnx.helper.set_model_props(model, {**held, **content.metadata()})
    onnx.save(model, file)
    return content.described(NetworkSection("onnx", path=str(file)))


def _convert(program: Any, file: Path, output: str, **names: Any) -> None:
    with quiet():
        try:
            made = torch.onnx.export(program, dynamo=True, output_names=[output], verbose=False, **names)
            assert made is not None
            made.save(file)
        except Exception as error:  # it may raise any exception for an unknown operation
            raise BldaError(f"the network has no ONNX form: {reason(error)}; try --format pt2") from error


def _name_axes(model: Any) -> None:
    """Call the open axes of the input batch, height and width, wherever they appear."""
    axes = zip(model.graph.input[0].type.tensor_type.shape.dim, ("batch", "channels", "height", "width"), strict=True)
    names = {axis.dim_param: name for axis, name in axes if axis.dim_param}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), axis.dim_param)


class OnnxCopy(nn.Module):
    """The model of an ONNX file, to be changed.

    Attributes:
        model: an ``onnx.ModelProto``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


def read_copy(path: Path) -> OnnxCopy:
    """The model of an ONNX file that onnxruntime can load.

    Raises:
        BldaError: it has several outputs or is quantised, or onnx is missing.
    """
    onnx = _libraries()
    model = onnx.load(path)
    graph = model.graph
    if len(graph.output) > 1:
        names = ", ".join(one.name for one in graph.output)
        raise BldaError(
            f"{path} has {len(graph.output)} outputs ({names}), and export corrects one: keep the one with the logits, "
            f"e.g. by onnx.utils.extract_model"
        )
    quantised = next((node.op_type for node in graph.node if node.op_type.startswith(_QUANTISED)), None)
    if quantised:
        raise BldaError(
            f"{path} is quantised ({quantised}): export the file that it was quantised from, and quantise the result"
        )
    return OnnxCopy(model)


def into_nodes(copy: OnnxCopy, segmenter: NetworkSegmenter, images: Tensor) -> Fold:
    """How offsets are folded into the nodes of an ONNX model, as :mod:`blda_cli.exporting.folding` does it with layers.

    Args:
        copy: the model.
        segmenter: runs the file that it was read from.
        images: ``[N, 3, h, w]``, made as the network takes them, to try it on.
    """
    onnx = _libraries()

    def fold(offsets: Tensor) -> tuple[str, bool] | None:
        graph = copy.model.graph
        before = segmenter.network_scores(images)
        initializers = {one.name: one for one in graph.initializer}
        candidates = [node for node in reversed(graph.node) if _takes(node, initializers, len(offsets))]
        for node in candidates[:CANDIDATES]:
            place, given = _bias_place(node, initializers), list(node.input)
            own = onnx.numpy_helper.to_array(initializers[given[place]]) if place < len(given) else None
            weight = onnx.numpy_helper.to_array(initializers[given[1]]) if own is None else own
            before_bias = np.zeros(len(offsets), weight.dtype) if own is None else own
            bias = graph.initializer.add()
            node.input[:] = [*given[:place], _BIAS, *given[place + 1 :]]

            def moved(step: Tensor, bias: Any = bias, before_bias: np.ndarray = before_bias) -> None:
                values = before_bias + step.numpy().reshape(before_bias.shape).astype(before_bias.dtype)
                bias.CopyFrom(onnx.numpy_helper.from_array(values, _BIAS))

            def moved_by(step: Tensor, moved: Callable[[Tensor], None] = moved) -> Tensor:
                moved(step)
                network = OnnxNetwork(open_session(copy.model.SerializeToString(), segmenter.device), segmenter.device)
                return segmenter.read_scores(network(images), images)

            gain = measure_gain(moved_by, before)
            if gain is not None:
                moved(offsets / gain)
                return node.name or node.output[0], own is None
            node.input[:] = given
            graph.initializer.remove(bias)
        return None

    return fold


def _takes(node: Any, initializers: Mapping[str, Any], channels: int) -> bool:
    """Whether a node has a constant bias of so many channels, or room for one."""
    if node.op_type not in _BIASED:
        return False
    place = _bias_place(node, initializers)
    if place < len(node.input):
        bias = initializers.get(node.input[place])
        # [C] is added to what has its channels last, [C, 1, 1] and [1, C, 1, 1] to maps.
        shapes = [[channels]] + [[channels, 1, 1], [1, channels, 1, 1]] * (node.op_type == "Add")
        return bias is not None and list(bias.dims) in shapes
    weight = initializers.get(node.input[1])
    if weight is None or node.op_type not in ("Conv", "ConvTranspose"):
        return False
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    return bool((weight.dims[0] if node.op_type == "Conv" else weight.dims[1] * groups) == channels)


def _bias_place(node: Any, initializers: Mapping[str, Any]) -> int:
    """Which input of a node is its bias; of an addition that which is a constant."""
    if node.op_type == "Add":
        return 0 if node.input[0] in initializers else 1
    return _BIASED[node.op_type]


def _with_tail(onnx: Any, model: Any, content: Content, output: str) -> Any:
    """The model with the stages behind its scores."""
    opset = _opset(model)
    scores = content.segmenter.network_scores(content.images)
    axes = {0: Dim.DYNAMIC, **({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if scores.ndim == 4 else {})}
    flexible = (axes, {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    image, result = model.graph.input[0].name, model.graph.output[0].name
    try:
        if opset < _OPSET:
            model = onnx.version_converter.convert_version(model, _OPSET)
        with quiet():
            made = torch.onnx.export(
                content.tail().eval(),
                (scores.cpu(), content.images.to(scores.dtype)),
                dynamo=True,
                opset_version=_opset(model),
                input_names=["scores", "images"],
                output_names=[output],
                dynamic_shapes=flexible,
                verbose=False,
            )
        assert made is not None
        tail = made.model_proto
        tail.ir_version = model.ir_version = max(tail.ir_version, model.ir_version)
        model = onnx.compose.merge_models(model, tail, io_map=[(result, "scores")], prefix2=_TAIL)
    except Exception as error:  # of the libraries' C++ parts
        raise BldaError(
            f"the correction cannot be put behind the ONNX file (operator set {opset}): {reason(error)}"
        ) from error
    _rename(model.graph, {f"{_TAIL}images": image, f"{_TAIL}{output}": output})
    for one in [one for one in model.graph.input[1:] if one.name == image]:
        model.graph.input.remove(one)
    return model


def _opset(model: Any) -> int:
    return int(next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")))


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(one, one) for one in node.input]
        node.output[:] = [names.get(one, one) for one in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def _libraries() -> Any:
    """The onnx package.

    Raises:
        BldaError: it is missing, or what PyTorch needs beside it.
    """
    require_extra("onnxscript", "onnx", "to write ONNX files")
    onnx = require_extra("onnx", "onnx", "to write ONNX files")
    for part in ("compose", "numpy_helper", "version_converter"):
        importlib.import_module(f"onnx.{part}")
    return onnx
