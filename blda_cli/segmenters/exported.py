"""Kind ``exported``: a ``.pt2`` file of ``torch.export.save``. Loading it can run code: use files you trust."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from blda_cli.errors import BldaError
from blda_cli.files import file_digest
from blda_cli.segmenters.network import NetworkSegmenter, Port, network_segmenter, with_size
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import SegmenterSpec


def load(spec: SegmenterSpec, device: torch.device) -> NetworkSegmenter:
    """Load an exported program and find out which inputs it takes.

    A size that was not exported as dynamic is handled by resizing, a batch size by running so many images at a time;
    sides that must be multiples are padded, and a device written into the program is changed. Notes say so.

    Args:
        spec: a description with ``path``.
        device: where to run.

    Returns:
        The segmenter.

    Raises:
        BldaError: the file cannot be read, or the program takes something else than one batch of images.
    """
    assert spec.segmenter.path is not None
    path = Path(spec.segmenter.path)
    program = _read(path)
    image = _image_input(program, path, spec.preprocessing.channels)
    batch, _, height, width = image.shape
    preprocessing = spec.preprocessing
    notes: list[str] = []
    if isinstance(height, int) and isinstance(width, int):
        preprocessing, notes = with_size(preprocessing, (height, width), path.name)
    if isinstance(batch, int):
        notes.append(f"{path.name} was exported for batches of {batch}: images are run {batch} at a time")
    if image.device.type != device.type:
        notes.append(f"{path.name} was exported for {image.device.type}: it is moved to {device.type}")
    network = move_to_device_pass(program, str(device)).module()
    multiple = max(_divisor(height), _divisor(width))
    if multiple > 1:
        preprocessing = replace(preprocessing, multiple_of=multiple)
    return network_segmenter(
        spec,
        network,
        device,
        {"kind": "exported", "path": path.name, "weights": file_digest(path)},
        port=Port(batch=batch if isinstance(batch, int) else None),
        preprocessing=preprocessing,
        notes=notes,
    )


def _read(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise BldaError(f"{path}: no such file")
    logging.disable(logging.WARNING)  # of a damaged archive it logs a traceback, and then raises
    try:
        return torch.export.load(path)
    except Exception as error:  # a damaged archive fails in many ways
        if "CUDA" in str(error) or "cuda" in str(error):
            raise BldaError(
                f"{path} was exported on a GPU and cannot be loaded without one: export it from the CPU, or put it "
                "through torch.export.passes.move_to_device_pass(program, 'cpu') there"
            ) from error
        raise BldaError(f"{path}: not a file of torch.export.save, or of another version: {reason(error)}") from error
    finally:
        logging.disable(logging.NOTSET)


def _image_input(program: ExportedProgram, path: Path, bands: int) -> torch.Tensor:
    """The (fake) tensor of the images in the program's graph."""
    names = program.graph_signature.user_inputs
    inputs: Mapping[str, Any] = {
        node.name: node.meta.get("val")
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    }
    images = list(inputs.values())
    image = images[0] if len(images) == 1 else None
    if not isinstance(image, torch.Tensor) or image.ndim != 4 or image.shape[1] != bands:
        shapes = [list(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__ for one in images]
        raise BldaError(
            f"{path} takes {shapes}; one input [N, {bands}, H, W] is needed "
            "(of other bands than RGB: name them under [preprocessing] bands)"
        )
    return image


def _divisor(side: int | torch.SymInt) -> int:
    """The number that a side must be a multiple of: 8 where the program was exported with ``8 * Dim("h")``."""
    if isinstance(side, int):
        return 1
    factor = side.node.expr.as_coeff_Mul()[0]
    return int(factor) if factor.is_Integer and factor > 0 else 1
