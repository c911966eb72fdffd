"""The self-training methods, one line each."""

from collections.abc import Callable

from blda_cli.finetuning.methods.base import Method, MethodContext
from blda_cli.finetuning.methods.blda import Blda
from blda_cli.finetuning.methods.dacs import Dacs
from blda_cli.finetuning.methods.source import SourceOnly

METHODS: dict[str, Callable[[MethodContext], Method]] = {"source": SourceOnly, "dacs": Dacs, "blda": Blda}
