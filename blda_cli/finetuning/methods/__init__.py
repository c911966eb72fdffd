"""The training methods, one line each."""

from collections.abc import Callable

from blda_cli.finetuning.methods.base import MethodContext, TrainingMethod
from blda_cli.finetuning.methods.dacs import Dacs
from blda_cli.finetuning.methods.source import SourceOnly

METHODS: dict[str, Callable[[MethodContext], TrainingMethod]] = {"source": SourceOnly, "dacs": Dacs, "blda": Dacs}
