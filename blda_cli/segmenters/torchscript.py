"""Kind ``torchscript``: a file of ``torch.jit.save``. It is a program and running it runs code: use files you trust."""

import warnings
from pathlib import Path

import torch

from blda_cli.errors import BldaError
from blda_cli.files import file_digest
from blda_cli.segmenters.network import NetworkSegmenter, Port, network_segmenter
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import SegmenterSpec


def load(spec: SegmenterSpec, device: torch.device) -> NetworkSegmenter:
    """Load a scripted or traced network.

    Args:
        spec: a description with ``path``.
        device: where to run. A device that tracing wrote into the program stays there; running it elsewhere is an
            error that says so.

    Returns:
        The segmenter.

    Raises:
        BldaError: the file cannot be read.
    """
    assert spec.segmenter.path is not None
    path = Path(spec.segmenter.path)
    if not path.is_file():
        raise BldaError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated, but that is for those who make the files.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(path, map_location=device).eval()
    except Exception as error:  # a damaged archive fails in many ways
        raise BldaError(f"{path}: not a file of torch.jit.save: {reason(error)}") from error
    identity = {"kind": "torchscript", "path": path.name, "weights": file_digest(path)}
    return network_segmenter(spec, network, device, identity, port=Port(traced=True))
