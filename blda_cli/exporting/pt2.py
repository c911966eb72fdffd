"""Format ``pt2``: a program of ``torch.export``."""

from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from blda_cli.errors import BldaError
from blda_cli.exporting.content import Content, quiet
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import NetworkSection, SegmenterSpec


def write(content: Content, folder: Path) -> SegmenterSpec:
    """Write ``network.pt2``.

    Args:
        content: what to write.
        folder: where.

    Returns:
        The description of it.

    Raises:
        BldaError: ``torch.export`` cannot follow the network.
    """
    file = folder / "network.pt2"
    with quiet():
        torch.export.save(exported_program(content), file, extra_files=content.metadata())
    return content.described(NetworkSection("exported", path=str(file)))


def exported_program(content: Content) -> ExportedProgram:
    """The network and the stages behind it as a program that takes batches of any size.

    Height and width are open too, unless the network takes images of one size only.

    Raises:
        BldaError: ``torch.export`` cannot follow the network, or only for one height and width.
    """
    with quiet():
        try:
            found = _exported(content, content.images, batch=Dim.AUTO)
            if (
                isinstance(_input(found).shape[0], int) and content.segmenter.port.batch is None
            ):  # for batches of one, if it has to be so many
                found = _exported(content, content.images[:1], batch=None)
        except Exception as error:  # it raises anything of a network that it cannot follow
            raise BldaError(
                f"torch.export cannot follow the network: {reason(error)}; try --format torchscript"
            ) from error
    sides = [side for side in _input(found).shape[2:] if isinstance(side, int)]
    if sides and not content.fixed_size:
        height, width = content.images.shape[2:]
        raise BldaError(
            f"torch.export can follow the network for images of {height}x{width} only: give the size it is to take as "
            "size under [preprocessing], or try --format torchscript"
        )
    return found


def _exported(content: Content, images: Tensor, batch: object) -> ExportedProgram:
    side = None if content.fixed_size else Dim.AUTO
    return torch.export.export(content.whole(), (images,), dynamic_shapes=({0: batch, 2: side, 3: side},), strict=False)


def _input(found: ExportedProgram) -> Tensor:
    """The (fake) tensor of the images."""
    name = found.graph_signature.user_inputs[0]
    value: Tensor = next(node.meta["val"] for node in found.graph.nodes if node.name == name)
    return value
