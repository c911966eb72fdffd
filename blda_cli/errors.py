"""What a user can fix: errors that end in one line and exit code 1."""

import importlib
import unicodedata
from types import ModuleType


class BldaError(Exception):
    """A mistake or a condition the user can fix; the message names the thing and the way out, in one line."""


def printable(text: str) -> str:
    """Text with its control characters spelt out, as a file name may hold some that command a terminal."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") else ascii(char)[1:-1] for char in text
    )


def plain_cell(text: str) -> str:
    """Text for a cell of a table: an apostrophe keeps a spreadsheet from taking it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


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
