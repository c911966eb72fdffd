import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blda_cli.core import IGNORE_INDEX
from blda_cli.errors import BldaError
from blda_cli.finetuning.networks.feature_distance import FeatureDistance
from blda_cli.finetuning.networks.student import Outputs, Student, run_student
from blda_cli.finetuning.trainer import Trainer


def parts(project: Any, things: tuple[str, ...] = ()) -> tuple[Any, Student, FeatureDistance]:
    segmenter = project.segmenter()
    initial = copy.deepcopy(segmenter.module)
    student = Student(segmenter, density=False, feature_layer=None, crop=(32, 40))
    return segmenter, student, FeatureDistance(initial, student.encoder, segmenter.classes.names, things)


def outputs_of(segmenter: Any, student: Student) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    return run_student(segmenter, student, student, 255 * torch.rand(2, 3, 32, 40, generator=generator))


def test_it_is_zero_at_the_start_and_grows_with_the_encoder(project: Any) -> None:
    segmenter, student, distance = parts(project)
    labels = torch.full((2, 32, 40), 2)
    assert float(distance.loss(outputs_of(segmenter, student), labels).detach()) == 0
    with torch.no_grad():
        student.network.get_parameter("encoder.3.bias").add_(0.5)
    loss = distance.loss(outputs_of(segmenter, student), labels)
    torch.testing.assert_close(float(loss.detach()), float(torch.full((12,), 0.5).norm()))
    loss.backward()
    assert student.network.get_parameter("encoder.3.bias").grad is not None


def test_the_initial_encoder_is_in_evaluation_mode() -> None:
    """Its dropout is off, and its norms have the averages it came with."""
    network = nn.Sequential(OrderedDict(encoder=nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))))
    distance = FeatureDistance(network.train(), "encoder", ("car",), ())
    images = 2 + torch.rand(1, 3, 8, 8)
    outputs = Outputs(images, encoder_features=images + 1, encoder_inputs=((images,), {}))
    loss = float(distance.loss(outputs, torch.zeros(1, 8, 8, dtype=torch.long)))
    assert loss == pytest.approx(3**0.5, rel=1e-4)


def test_it_is_zero_at_the_start_with_mixed_norms(normed_project: Any, batches: Callable[..., Any]) -> None:
    segmenter = normed_project.segmenter()
    segmenter.mix_norms(0.5)
    values = {"training__method": "source", "host__feature_distance": 1.0}
    trainer = Trainer(segmenter, normed_project.settings(**values), holds_norms=True)
    report = trainer.train_step(batches(normed_project, [[0, 1]], **values))
    assert float(report.losses["feature_distance"]) == pytest.approx(0, abs=1e-5)


def test_it_takes_what_a_stem_in_half_precision_leaves(project: Any, tmp_path: Path, batches: Any) -> None:
    (tmp_path / "studentnet.py").write_text((project.folder / "studentnet.py").read_text() + STEMMED)
    (tmp_path / "net.toml").write_text(Path(project.model).read_text().replace("studentnet:make", "studentnet:stemmed"))
    stemmed = replace(project, folder=tmp_path)
    (tmp_path / "net.toml").rename(tmp_path / "tiny.toml")
    for domain in ("day", "dusk"):
        (tmp_path / domain).symlink_to(project.folder / domain)
    values = {"training__amp": True, "host__feature_distance": 0.005}
    report = stemmed.trainer(**values).train_step(batches(stemmed, [[0, 1]], **values))
    assert bool(torch.isfinite(report.losses["feature_distance"]))


STEMMED = """

class Stemmed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, 1, 1)
        self.encoder = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.GroupNorm(3, 12))
        self.classifier = nn.Conv2d(12, 4, 1)

    def forward(self, images):
        return self.classifier(self.encoder(self.stem(images)).relu())


def stemmed(**_):
    return Stemmed()
"""


def test_only_features_that_are_mostly_of_one_thing_count(project: Any) -> None:
    segmenter, student, distance = parts(project)
    with torch.no_grad():
        student.network.get_parameter("encoder.3.bias").add_(0.5)
    outputs = outputs_of(segmenter, student)
    labels = torch.zeros(2, 32, 40, dtype=torch.long)  # roads are no things
    assert float(distance.loss(outputs, labels).detach()) == 0
    labels[:, ::2, ::2] = 2  # a quarter of each feature's pixels
    assert float(distance.loss(outputs, labels).detach()) == 0
    labels[:] = IGNORE_INDEX
    assert float(distance.loss(outputs, labels).detach()) == 0
    labels[0, :2, :2] = 2
    labels[0, 0, 0] = 0  # three quarters
    assert float(distance.loss(outputs, labels).detach()) > 1


def test_things_are_known_by_name_or_named(project: Any) -> None:
    assert parts(project)[2].things.tolist() == [False, False, True, False, False]
    assert parts(project, ("sky", "tree"))[2].things.tolist() == [False, True, False, True, False]
    with pytest.raises(BldaError, match="no class 'boat'"):
        parts(project, ("boat",))
    with pytest.raises(BldaError, match="no class is known as a thing"):
        FeatureDistance(project.segmenter().module, "encoder", ("road", "sky"), ())


def test_a_network_without_an_encoder_is_refused(project: Any) -> None:
    with pytest.raises(BldaError, match="no part called encoder or backbone"):
        FeatureDistance(project.segmenter().module, None, ("car",), ())
