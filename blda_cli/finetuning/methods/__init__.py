"""The training methods, one line each."""

from collections.abc import Callable

from blda_cli.core.choices import Training
from blda_cli.finetuning.methods.base import MethodContext, TrainingMethod
from blda_cli.finetuning.methods.cag import Cag
from blda_cli.finetuning.methods.cbst import Cbst
from blda_cli.finetuning.methods.dacs import Dacs
from blda_cli.finetuning.methods.source import SourceOnly

METHODS: dict[Training, Callable[[MethodContext], TrainingMethod]] = {
    Training.SOURCE: SourceOnly,
    Training.DACS: Dacs,
    Training.BLDA: Dacs,
    Training.ST: Cbst,
    Training.CBST: Cbst,
    Training.CBST_SP: Cbst,
    Training.CAG: Cag,
}
