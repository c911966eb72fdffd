"""Mutated files, read and then used: every outcome works or is a `BldaError`.

Bytes are flipped, cut and repeated; JSON, TOML and HDF5 also lose, gain and swap values of other types. What can still
be read is put to use: statistics are fitted and added up, records described and written again.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from blda_cli.core.methods import AlignmentSettings
from blda_cli.data.images import find_images
from blda_cli.data.label_files import read_label_file
from blda_cli.data.labels import label_reader
from blda_cli.data.logit_arrays import read_array
from blda_cli.data.pillow_images import image_size, read_image
from blda_cli.errors import BldaError
from blda_cli.finetuning.data.labelled import Labelled
from blda_cli.finetuning.data.samples import Sampler, collate
from blda_cli.finetuning.run import go_on_from, resumed_state
from blda_cli.finetuning.run_folder import RunFolder
from blda_cli.finetuning.settings import Settings
from blda_cli.finetuning.trainer import Trainer
from blda_cli.pipelines.alignment_inputs import AlignmentInputs, StatisticsInput, fit
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model, to_toml
from blda_cli.store.predictions import merge_records, read_record, write_record
from blda_cli.store.statistics import merge_statistics, read_statistics
from tests.hostile.world import World

ODD: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\0", "../../x", "\ud800"),
    *([], [[]], [None], {}, {"": None}, {"x": {"x": [1]}}, ["x"] * 3, [1e9] * 3),
]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Bytes after one to four accidents."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed) + 1)
        match draw.randrange(5):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << draw.randrange(8)
            case 1 if changed:
                changed[place % len(changed)] = draw.choice([0, 1, 127, 128, 255])
            case 2:
                del changed[place : place + draw.randint(1, 64)]
            case 3:
                changed[place:place] = changed[place : place + draw.randint(1, 64)]
            case _:
                changed[place : place + 8] = draw.choice([bytes(8), b"\xff" * 8, draw.randbytes(8)])
    return bytes(changed)


def edited(value: Any, draw: random.Random, odd: Sequence[Any] = ODD) -> Any:
    """JSON, or a checkpoint, with one value of another type, missing or added."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        if draw.random() < 0.15:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: edited(value[key], draw, odd)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        return [*value[:place], edited(value[place], draw, odd), *value[place + 1 :]]
    return draw.choice(odd)


def survives(use: Callable[[], Any]) -> bool:
    """Whether it works; anything but a `BldaError` fails the test."""
    try:
        use()
    except BldaError:
        return False
    return True


def use_record(path: Path) -> None:
    record = read_record(path)
    record.alignment.describe()
    merge_records([record, record])
    assert len(record.class_set) == len(record.palette)
    write_record(path.with_name("again.json"), record)
    read_record(path.with_name("again.json"))


def use_description(path: Path) -> None:
    assert to_toml(parse_model(str(path)), path.parent)


def use_statistics(path: Path) -> None:
    content = read_statistics(path)
    if content.statistics.pixels:
        fit(AlignmentSettings(), AlignmentInputs(StatisticsInput(content)).evidence(AlignmentSettings()))
    _ = merge_statistics([(path, content)]).statistics + content.statistics


def use_picture(path: Path) -> None:
    survives(lambda: image_size(path))
    survives(lambda: read_label_file(path))
    read_image(path)


class Training:
    """A run after its first of three steps, and going on with it."""

    def __init__(self, world: World) -> None:
        given = {
            "data.model": str(world.toml),
            "data.source_images": str(world.images),
            "data.source_labels": str(world.labels),
            "data.target_images": str(world.images),
            "training.crop": (8, 8),
            "training.iterations": 3,
        }
        self.settings = Settings().with_values(given, "test").resolved()
        segmenter = load_segmenter(parse_model(str(world.toml)), torch.device("cpu"))
        assert isinstance(segmenter, NetworkSegmenter)
        files = find_images(world.images)
        labels = label_reader(files, str(world.labels), segmenter.classes, encoding="ids")
        sampler = Sampler(Labelled(files, labels), files, np.ones((len(files), 3), np.int64), self.settings)
        self.batch = collate([sampler.draw(0)]).to(torch.device("cpu"))
        self.initial = segmenter.identity
        self.trainer = Trainer(segmenter, self.settings)
        self.trainer.train_step([self.batch])
        self.state = copy.deepcopy(
            {
                "settings": self.settings.to_toml(),
                "model": self.initial,
                "trainer": self.trainer.state_dict(),
                "norms": "batch",
                "norm_weight": None,
            }
        )
        self.folder = RunFolder(world.root / "run")
        self.folder.path.mkdir(exist_ok=True)
        self.folder.start(self.settings, {"data": {}})
        self.folder.save_checkpoint(self.state)

    def go_on(self, _: Path) -> None:
        """What ``--resume`` does with a checkpoint, and the next step."""
        state = resumed_state(self.folder, self.settings)
        assert state is not None
        go_on_from(state, self.folder, self.trainer, self.initial)
        if self.trainer.step < self.settings.training.iterations:
            self.trainer.train_step([self.batch])
        self.trainer.exported()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "use", "count"),
    [
        ("images/east/1.png", use_picture, 6_000),
        ("images/east/1.bmp", use_picture, 4_000),
        ("images/east/1.tif", use_picture, 4_000),
        ("logits/east/1.npy", read_array, 25_000),
        ("tiny.toml", use_description, 12_000),
        ("aligned/run.json", use_record, 12_000),
        ("stats.h5", use_statistics, 2_000),
    ],
)
def test_mutated_bytes(world: World, name: str, use: Callable[[Path], Any], count: int) -> None:
    path = world.root / name
    if not path.exists():
        Image.open(world.first).save(path)
    mutate_bytes(path, use, count)


def mutate_bytes(path: Path, use: Callable[[Path], Any], count: int) -> None:
    """Mutate a file so often, using what comes of it."""
    data, draw = path.read_bytes(), random.Random(path.name)
    good = 0
    for _ in range(count):
        path.write_bytes(mutated(data, draw))
        good += survives(lambda: use(path))
    print(f"{path.name}: {count} mutated, {good} of them worked")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutated_checkpoints(world: World) -> None:
    training = Training(world)
    training.go_on(training.folder.checkpoint)
    mutate_bytes(training.folder.checkpoint, training.go_on, 8_000)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutated_fields_of_a_checkpoint(world: World) -> None:
    training, draw = Training(world), random.Random(4)
    tensors = [torch.tensor(torch.nan), torch.zeros(0), torch.full((3,), torch.inf), torch.ones(3).to_sparse()]
    tensors += [torch.zeros(3, dtype=torch.complex64), torch.zeros(3, device="meta"), torch.full((3, 3, 1, 1), 1e30)]
    good = 0
    for _ in range(5_000):
        torch.save(edited(training.state, draw, [*ODD, *tensors]), training.folder.checkpoint)
        good += survives(lambda: training.go_on(training.folder.checkpoint))
    print(f"{good} of them worked")
    assert good


@pytest.mark.slow
def test_mutated_fields_of_a_record(world: World) -> None:
    path, draw = world.aligned / "run.json", random.Random(1)
    content = json.loads(path.read_text())
    for _ in range(14_000):
        path.write_text(json.dumps(edited(content, draw)))
        survives(lambda: use_record(path))


@pytest.mark.slow
def test_mutated_fields_of_a_description(world: World) -> None:
    draw = random.Random(2)
    content = {
        "segmenter": {"kind": "python", "factory": "tiny:make", "arguments": {"bias": 0.5}, "channels": 3},
        "preprocessing": {"color": "bgr", "mean": [0.1, 0.2, 0.3], "std": [0.1, 0.2, 0.3], "size": [16, 20]},
        "classes": {"names": ["road", "tree", "car"], "groups": {"way": ["road"], "else": ["tree", "car"]}},
        "labels": {"encoding": "ids", "mapping": {"7": "road"}},
    }
    import tomli_w

    for _ in range(6_000):
        try:
            world.toml.write_text(tomli_w.dumps(edited(content, draw)))
        except (TypeError, AttributeError, UnicodeEncodeError):  # TOML has no null, its keys and texts are UTF-8
            continue
        survives(lambda: use_description(world.toml))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutated_fields_of_statistics(world: World) -> None:
    draw, names = random.Random(3), []
    shutil.copy(world.stats, world.root / "whole.h5")
    with h5py.File(world.stats) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        attributes = list(file.attrs)
    odd: list[Any] = [np.nan, -1, 2**62, 1e300, "text", np.zeros(0), np.zeros((2, 2)), np.full((3, 3), np.inf), b"\xff"]
    for _ in range(2_000):
        shutil.copy(world.root / "whole.h5", world.stats)
        with h5py.File(world.stats, "r+") as file:
            name = draw.choice([*names, *attributes])
            if name in attributes:
                file.attrs[name] = draw.choice(odd)
            elif draw.random() < 0.5 and file[name].shape and file[name].dtype.kind in "if":
                values = file[name][...]
                values.flat[draw.randrange(values.size or 1) : draw.randrange(1, 99)] = draw.choice([0, -1, 7, 1 << 20])
                del file[name]
                file[name] = values
            else:
                del file[name]
                file[name] = draw.choice(odd)
        survives(lambda: use_statistics(world.stats))
