"""User-facing errors: one line, exit code 1 (2 for options that do not go together)."""

import importlib
from types import ModuleType


class BldaError(Exception):
    """A mistake or a condition the user can fix; the message names the thing and the way out, in one line."""


class OptionError(BldaError):
    """Options that do not go together, or that do nothing; a command ends with exit code 2."""


def require_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: the module to import, e.g. ``"onnxruntime"``.
        extra: the extra of this package that installs it, e.g. ``"onnx"``.
        purpose: what it is needed for, e.g. ``"to run ONNX files"``.

    Returns:
        The imported module.

    Raises:
        BldaError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise BldaError(f"{module} is needed {purpose}: pip install 'blda-cli[{extra}]'") from error
