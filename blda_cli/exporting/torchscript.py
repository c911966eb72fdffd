"""Format ``torchscript``: a traced program."""

from pathlib import Path

import torch

from blda_cli.errors import BldaError
from blda_cli.exporting.content import Content, quiet
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import NetworkSection, SegmenterSpec


def write(content: Content, folder: Path) -> SegmenterSpec:
    """Write ``network.ts``.

    Args:
        content: what to write.
        folder: where.

    Returns:
        The description of it.

    Raises:
        BldaError: the network cannot be traced.
    """
    file = folder / "network.ts"
    with quiet(), torch.no_grad():
        try:
            traced = torch.jit.trace(content.whole(), content.images, strict=False, check_trace=False)
            traced.save(str(file), _extra_files=content.metadata())
        except Exception as error:  # it raises anything of a network that it cannot follow
            raise BldaError(f"torch.jit.trace cannot follow the network: {reason(error)}; try --format pt2") from error
    return content.described(NetworkSection("torchscript", path=str(file)))
