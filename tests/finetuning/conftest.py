from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blda_cli.finetuning.loop import Machine
from blda_cli.finetuning.run import train
from blda_cli.finetuning.settings import Settings
from blda_cli.finetuning.trainer import Trainer
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model
from blda_cli.store.provenance import Provenance
from tests.scene import COLORS

NETWORK = '''
import torch
from torch import nn


class Tiny(nn.Module):
    """An encoder and a classifier; group norm, so that a batch is no more than its images."""

    def __init__(self, outputs, dropout, seed):
        super().__init__()
        torch.manual_seed(seed)
        convolutions = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 1, 1)
        self.encoder = nn.Sequential(convolutions[0], nn.GroupNorm(3, 12), nn.ReLU(), convolutions[1])
        self.drop = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(12, outputs, 1)

    def forward(self, images):
        return self.classifier(self.drop(self.encoder(images).relu()))


def make(outputs=4, dropout=0.0, seed=0, batch_norm=False):
    network = Tiny(outputs, dropout, seed)
    if batch_norm:
        network.encoder[1] = nn.BatchNorm2d(12)
    return network
'''

TOML = """
[segmenter]
kind = "python"
factory = "studentnet:make"
arguments = {arguments}

[classes]
names = ["road", "tree", "car", "sky"]

[labels]
encoding = "ids"
"""


def draw(folder: Path, count: int, brightness: float, seed: int) -> None:
    """Blocks of the classes' colours, with noise; the last class is rare."""
    generator = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        blocks = generator.choice(4, (5, 7), p=[0.4, 0.3, 0.25, 0.05])
        labels = blocks.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
        image = brightness * COLORS[labels] + generator.normal(0, 12, (*labels.shape, 3))
        labels[:1] = 255
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")


@dataclass
class Project:
    """A tiny network and two drawn domains of 40x56 images."""

    folder: Path

    @property
    def model(self) -> str:
        return str(self.folder / "tiny.toml")

    def settings(self, **values: Any) -> Settings:
        """Settings of a short run, without own labels beside a source; keys have ``__`` for the dot."""
        given = {
            "data.model": self.model,
            "data.source_images": str(self.folder / "day" / "images"),
            "data.source_labels": str(self.folder / "day" / "labels"),
            "data.target_images": str(self.folder / "dusk" / "images"),
            "training.iterations": 6,
            "training.crop": (32, 40),
            "training.learning_rate": 1e-3,
            "host.rare_class_share": 0.02,
            "host.mask_block": 8,
            "run.log_every": 2,
            "start.own_labels": False,
            **{key.replace("__", "."): value for key, value in values.items()},
        }
        return Settings().with_values(given, "test").resolved()

    def segmenter(self) -> NetworkSegmenter:
        segmenter = load_segmenter(parse_model(self.model), torch.device("cpu"))
        assert isinstance(segmenter, NetworkSegmenter)
        return segmenter

    def trainer(self, **values: Any) -> Trainer:
        return Trainer(self.segmenter(), self.settings(**values))

    def run(
        self, output: Path, monitor: Any = None, *, resume: bool = False, tensorboard: bool = False, **values: Any
    ) -> dict[str, Any]:
        return train(
            self.settings(**values),
            output,
            resume=resume,
            machine=Machine(torch.device("cpu"), workers=2, tensorboard=tensorboard),
            provenance=Provenance("blda finetune"),
            monitor=monitor or SilentMonitor(),
        )


def make_project(folder: Path, arguments: str = "{dropout = 0.1}") -> Project:
    (folder / "studentnet.py").write_text(NETWORK)
    (folder / "tiny.toml").write_text(TOML.format(arguments=arguments))
    draw(folder / "day", 6, 1.0, seed=0)
    draw(folder / "dusk", 5, 0.6, seed=1)
    return Project(folder)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def still_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same without dropout."""
    return make_project(tmp_path_factory.mktemp("still"), "{dropout = 0.0}")


@pytest.fixture(scope="session")
def normed_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same with a batch norm."""
    return make_project(tmp_path_factory.mktemp("normed"), "{batch_norm = true}")


@pytest.fixture
def batches() -> Callable[..., Any]:
    """Batches of a project by their samples' numbers."""
    from blda_cli.data.images import find_images
    from blda_cli.data.labels import label_reader
    from blda_cli.finetuning.data.labelled import Labelled
    from blda_cli.finetuning.data.samples import Batch, Sampler, collate, count_class_pixels

    def draw_batches(project: Project, numbers: list[list[int]], **values: Any) -> list[Batch]:
        settings = project.settings(**values)
        source, target = find_images(settings.data.source_images), find_images(settings.data.target_images)
        labels = label_reader(source, settings.data.source_labels, project.segmenter().classes, encoding="ids")
        pixels = count_class_pixels(source, labels, 4, 1, SilentMonitor())
        sampler = Sampler(Labelled(source, labels), target, pixels, settings, wholes=settings.host.whole_images)
        return [collate([sampler.draw(number) for number in batch]).to(torch.device("cpu")) for batch in numbers]

    return draw_batches
