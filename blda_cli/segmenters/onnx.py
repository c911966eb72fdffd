"""Kind ``onnx``: an ONNX file, run by onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blda_cli.errors import BldaError, require_extra
from blda_cli.files import file_digest
from blda_cli.segmenters.network import CORRECTION, NetworkSegmenter, Port, network_segmenter, with_size
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import SegmenterSpec

_INPUT_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


def load(spec: SegmenterSpec, device: torch.device) -> NetworkSegmenter:
    """Open an ONNX file and find out which input it takes.

    A fixed size is handled by resizing, a fixed batch by running so many images at a time; a note says so.

    Args:
        spec: a description with ``path``.
        device: where to put the logits; the network runs there too if onnxruntime can.

    Returns:
        The segmenter.

    Raises:
        BldaError: onnxruntime is missing, the file cannot be read, or the network takes something else than one batch
            of images.
    """
    assert spec.segmenter.path is not None
    path = Path(spec.segmenter.path)
    if not path.is_file():
        raise BldaError(f"{path}: no such file")
    runtime = require_extra("onnxruntime", "onnx", "to run ONNX files")
    notes = []
    if device.type == "cuda" and "CUDAExecutionProvider" not in runtime.get_available_providers():
        notes.append("this onnxruntime has no CUDA provider (onnxruntime-gpu has): the network runs on the CPU")
    try:
        session = open_session(path, device)
    except Exception as error:  # onnxruntime's errors have no common public class
        raise BldaError(f"{path}: onnxruntime cannot load it: {reason(error)}") from error

    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    bands = spec.preprocessing.channels
    if len(shape) != 4 or inputs[0].type not in _INPUT_TYPES or (isinstance(shape[1], int) and shape[1] != bands):
        takes = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise BldaError(
            f"{path} takes {takes}; one input of floating-point numbers [N, {bands}, H, W] is needed "
            "(of other bands than RGB: name them under [preprocessing] bands)"
        )
    batch, _, height, width = shape
    preprocessing = spec.preprocessing
    if isinstance(height, int) and isinstance(width, int):
        preprocessing, size_notes = with_size(preprocessing, (height, width), path.name)
        notes += size_notes
    if isinstance(batch, int):
        notes.append(f"{path.name} was exported for batches of {batch}: images are run {batch} at a time")
    network = OnnxNetwork(session, device)
    return network_segmenter(
        spec,
        network,
        device,
        {"kind": "onnx", "path": path.name, "weights": file_digest(path)},
        port=Port(batch=batch if isinstance(batch, int) else None, traced=True),
        preprocessing=preprocessing,
        notes=notes,
        corrected=session.get_modelmeta().custom_metadata_map.get(CORRECTION),
    )


def open_session(model: Path | bytes, device: torch.device) -> Any:
    """An onnxruntime session for a file, or the bytes of one, on ``device`` if onnxruntime can."""
    runtime = require_extra("onnxruntime", "onnx", "to run ONNX files")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    available = [one for one in wanted if one in runtime.get_available_providers()]
    return runtime.InferenceSession(model, options, providers=[*available, "CPUExecutionProvider"])


class OnnxNetwork:
    """An onnxruntime session as a function on tensors."""

    def __init__(self, session: Any, device: torch.device) -> None:
        self._session = session
        self._device = device
        self._input = session.get_inputs()[0]
        self._outputs = [one.name for one in session.get_outputs()]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Run float ``[N, 3, H, W]`` through the network; its outputs by name, on the device given."""
        array = images.to("cpu", _INPUT_TYPES[self._input.type]).contiguous().numpy()
        results = self._session.run(self._outputs, {self._input.name: array})
        return {
            name: torch.from_numpy(result).to(self._device)
            for name, result in zip(self._outputs, results, strict=True)
            if isinstance(result, np.ndarray) and result.dtype.kind in "fiub"
        }
