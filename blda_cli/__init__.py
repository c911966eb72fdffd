"""blda: see and correct the class bias of a pretrained segmenter on images it was not trained on.

The command's functions are also available to a user's own inference loop::

    corrected = blda_cli.Alignment.from_file("dusk.h5").module(network)
    labels = corrected(images).argmax(dim=1)
"""

import importlib
from typing import TYPE_CHECKING, Any

from blda_cli.version import __version__

if TYPE_CHECKING:
    from blda_cli.api import Alignment, align, check, collect_stats, export, finetune, merge, report, write_statistics
    from blda_cli.core.statistics import LogitStatistics
    from blda_cli.errors import BldaError
    from blda_cli.segmenters.instance_norms import InstanceNorms
    from blda_cli.segmenters.norms import ObservedNorms
    from blda_cli.store.statistics import read_statistics


__all__ = [
    "Alignment",
    "BldaError",
    "InstanceNorms",
    "LogitStatistics",
    "ObservedNorms",
    "__version__",
    "align",
    "check",
    "collect_stats",
    "export",
    "finetune",
    "merge",
    "read_statistics",
    "report",
    "write_statistics",
]

_MODULES = {
    "Alignment": "api",
    "BldaError": "errors",
    "InstanceNorms": "segmenters.instance_norms",
    "LogitStatistics": "core.statistics",
    "ObservedNorms": "segmenters.norms",
    "align": "api",
    "check": "api",
    "collect_stats": "api",
    "export": "api",
    "finetune": "api",
    "merge": "api",
    "read_statistics": "store.statistics",
    "report": "api",
    "write_statistics": "api",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the command's ``--help`` must not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
