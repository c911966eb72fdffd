"""One-line reasons of exceptions from other libraries."""

import re

import torch

from blda_cli.errors import BldaError

LESS_MEMORY = "--slide, a smaller --batch-size or --amp takes less"

# PyTorch's message about a damaged file continues with guesses and advice that do not apply here.
_ADVICE = re.compile(r"(?<=\.) (This is an internal miniz|Please check the warnings|In PyTorch 2\.6).*")


class MemoryShortError(BldaError):
    """The memory does not suffice for what a network is given."""


class InputRefusedError(BldaError):
    """The network fails on an input of some shape."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of PyTorch or numpy means that a GPU or the machine is out of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def reason(error: BaseException) -> str:
    """Type and most informative line of an exception."""
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # TorchScript begins with a trace and ends with the type and message of what happened.
    if lines[0].startswith("The following operation failed in the TorchScript interpreter"):
        return lines[-1]
    return f"{type(error).__name__}: {_ADVICE.sub('', lines[0])}"
