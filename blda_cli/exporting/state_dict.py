"""Format ``state-dict``: the weights alone, for the same factory."""

from dataclasses import replace
from pathlib import Path

import torch

from blda_cli.errors import require_extra
from blda_cli.exporting.content import Content
from blda_cli.segmenters.spec import SegmenterSpec


def write(content: Content, folder: Path) -> SegmenterSpec:
    """Write ``network.safetensors`` where the original weights were of that format, else ``network.pth``.

    Args:
        content: what to write; it has no stages.
        folder: where.

    Returns:
        The description of it.
    """
    network = content.parts.network
    state = {
        name: (value.to(content.dtype) if value.is_floating_point() else value).detach().cpu().clone().contiguous()
        for name, value in network.state_dict().items()
    }
    given = content.spec.segmenter.weights
    safe = given is not None and given.suffix == ".safetensors"
    file = folder / ("network.safetensors" if safe else "network.pth")
    if safe:
        safetensors = require_extra("safetensors.torch", "safetensors", "to write .safetensors files")
        safetensors.save_file(state, file, metadata={"format": "pt", **content.metadata()})
    else:
        torch.save(state, file)
    return content.weights_described(replace(content.spec.segmenter, weights=file))
