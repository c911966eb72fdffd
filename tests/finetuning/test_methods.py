"""A training method is one module and one entry."""

import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

from blda_cli.errors import BldaError
from blda_cli.finetuning.methods import CORRECTIONS, METHODS, CorrectionEntry, MethodEntry
from blda_cli.finetuning.settings import Settings
from blda_cli.settings import sections_of, settings_of

TOY = """
import torch

from blda_cli.finetuning.methods.base import MethodContext, TrainingMethod
from blda_cli.finetuning.methods.pseudo_labels import PseudoLabels


class Toy(TrainingMethod):
    # Every target pixel is of the first class.
    def __init__(self, context: MethodContext) -> None:
        pass

    def label(self, batch, outputs):
        labels = torch.zeros(batch.source_labels.shape, dtype=torch.long)
        return PseudoLabels(labels, torch.ones(labels.shape), torch.ones(labels.shape, dtype=torch.bool))
"""


def test_a_toy_method_is_one_module_and_one_entry(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BldaError, match='method = "toy" should be one of blda, dacs'):
        project.run(tmp_path / "run", training__method="toy")
    (tmp_path / "toymethod.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "toy", MethodEntry("toymethod:Toy", "all is road", options=("host.classmix",)))
    project.run(tmp_path / "run", training__method="toy", host__classmix=False, training__learning_rate=0.1)
    segmenter = project.segmenter()
    trained = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)["trainer"]["student"]
    rise = trained["network.classifier.bias"] - segmenter.module.classifier.bias
    assert int(rise.argmax()) == 0
    settings = Settings().with_values({"training.method": "toy"}, "test")
    assert settings.takes("host.classmix")
    assert not settings.takes("host.confidence")


def test_every_entry_names_what_there_is() -> None:
    entries: list[MethodEntry | CorrectionEntry] = [*METHODS.values(), *CORRECTIONS.values()]
    known = [f"{section}.{name}" for section, cls in sections_of(Settings).items() for name in settings_of(cls)]
    for entry in entries:
        assert isinstance(resolve_name(entry.make), type)
        for option in entry.options:
            assert any(re.fullmatch(option.replace("*", ".*"), name) for name in known), option
