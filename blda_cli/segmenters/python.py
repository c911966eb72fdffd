"""Kind ``python``: a network made by a Python callable. Loading it runs the user's code."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from blda_cli.errors import BldaError
from blda_cli.segmenters.network import NetworkSegmenter, network_segmenter
from blda_cli.segmenters.reasons import reason
from blda_cli.segmenters.spec import SegmenterSpec
from blda_cli.segmenters.weights import load_weights, state_digest
from blda_cli.text import suggestion


def load(spec: SegmenterSpec, device: torch.device) -> NetworkSegmenter:
    """Make the network with its factory, load its weights, put it into evaluation mode.

    This imports and runs the module the description names.

    Args:
        spec: a description with ``factory``: ``module:callable`` or ``file.py:callable``, looked for in the
            description's folder first, and then as Python imports. The callable is called with ``arguments`` and
            returns an ``nn.Module`` (or any callable on float ``[N, 3, h, w]``, which cannot be trained).
        device: where to run.

    Returns:
        The segmenter.

    Raises:
        BldaError: there is no such module or callable, calling it fails, or the weights do not fit.
    """
    factory = spec.segmenter.factory
    assert factory is not None
    network = _make(factory, dict(spec.segmenter.arguments), spec.folder, spec.segmenter.weights)
    if not callable(network):
        raise BldaError(f"{factory} returns {type(network).__name__}; a network (torch.nn.Module) is needed")
    module = network if isinstance(network, nn.Module) else None
    if spec.segmenter.weights is not None:
        if module is None:
            raise BldaError(f"{factory} returns {type(network).__name__}, no torch.nn.Module: it takes no weights file")
        load_weights(module, spec.segmenter.weights, spec.segmenter.weights_key)
    identity = {
        "kind": "python",
        "factory": f"{Path(factory.rpartition(':')[0]).name.removesuffix('.py')}:{factory.rpartition(':')[2]}",
        "arguments": dict(spec.segmenter.arguments),
        "weights": None if module is None else state_digest(module),
    }
    if module is None:
        notes = [f"{factory} returns no torch.nn.Module: statistics of other weights cannot be told from its own"]
        return network_segmenter(spec, network, device, identity, notes=notes)
    return network_segmenter(spec, module.eval().to(device), device, identity)


def varies(spec: SegmenterSpec, loaded: NetworkSegmenter) -> bool:
    """Whether a second call of the factory gives other weights: these are random and were never trained.

    Args:
        spec: a description with ``factory``.
        loaded: the segmenter that `load` made of it, without a weights file.
    """
    assert spec.segmenter.factory is not None
    with torch.random.fork_rng(devices=[]):
        try:
            network = _make(spec.segmenter.factory, dict(spec.segmenter.arguments), spec.folder)
        except BldaError:
            return False
    return isinstance(network, nn.Module) and state_digest(network) != loaded.identity["weights"]


def _make(factory: str, arguments: dict[str, Any], folder: Path, weights: Path | None = None) -> Any:
    module_name, colon, name = factory.rpartition(":")
    if not colon or not module_name or not name:
        module_name, _, name = factory.rpartition(".")
        hint = f"; do you mean {module_name}:{name}?" if module_name and name != "py" else ""
        raise BldaError(f"factory {factory!r} should be module:callable or file.py:callable{hint}")
    with _importing_from((folder / module_name).parent if module_name.endswith(".py") else folder):
        try:
            module = _import(module_name, folder, weights)
        except BldaError:
            raise
        except (Exception, SystemExit) as error:
            raise BldaError(f"importing {module_name} fails: {reason(error)}") from error
        make = getattr(module, name, None)
        if not callable(make):
            made_here = [key for key, value in vars(module).items() if callable(value)]
            raise BldaError(
                f"{module_name} has no callable {name!r}{suggestion(name, made_here, f'{module_name}:{{}}')}"
            )
        try:
            values = {key: None if value == "None" else value for key, value in arguments.items()}  # TOML has no None
            return cast(Callable[..., Any], make)(**values)
        except BldaError:
            raise
        except (Exception, SystemExit) as error:
            raise BldaError(f"{factory} fails: {reason(error)}") from error


def _import(module_name: str, folder: Path, weights: Path | None) -> Any:
    """Import a module by name, or run the file of that name in the folder anew.

    Anew, because a module of the same name from another folder may already be imported. A file of that name beside the
    weights is suggested, and not run unasked.
    """
    file = folder / (module_name if module_name.endswith(".py") else f"{module_name.replace('.', '/')}.py")
    if not file.is_file():
        if module_name.endswith(".py"):
            beside = [path.name for path in file.parent.glob("*.py")]
            raise BldaError(f"{file}: no such file{suggestion(file.name, beside)}")
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
            hint = suggestion(module_name, [path.stem for path in folder.glob("*.py")])
            if weights is not None and (weights.parent / f"{module_name}.py").is_file():
                path = Path(os.path.relpath(weights.parent / f"{module_name}.py", folder))
                hint = f"; do you mean {path.as_posix()}, which lies beside the weights?"
            raise BldaError(f"there is no module {module_name!r}, neither installed nor in {folder}{hint}") from error
    name = module_name.removesuffix(".py").replace("/", ".").strip(".")
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # where dataclasses and pickling look up a class's module
    specification.loader.exec_module(module)
    return module


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path for one import."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
