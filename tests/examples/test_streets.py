import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from draw import DAY, DOMAINS, DUSK, Domain, draw_scene
from street import BICYCLIST, CLASSES, HEIGHT, PEDESTRIAN, SIGN, SKY, TREE, UNLABELLED, WIDTH
from streetnet import streetnet

from blda_cli.data.classes import preset

STREETS = Path(__file__).parents[2] / "examples" / "streets"
TOML = tomllib.loads((STREETS / "streets.toml").read_text())
WEIGHTS = STREETS / "streetnet.pth"

each_domain = pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)


def draw_scenes(domain: Domain, count: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(draw_scene(domain, (0, scene)) for scene in range(count)), strict=True)
    return np.stack(images), np.stack(labels)


@each_domain
def test_equal_seeds_draw_equal_scenes(domain: Domain) -> None:
    image, label = draw_scene(domain, (3, 1))
    again, label_again = draw_scene(domain, (3, 1))
    other, _ = draw_scene(domain, (3, 2))
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    assert not np.array_equal(image, other)


@each_domain
def test_labels_are_classes_of_the_model(domain: Domain) -> None:
    images, labels = draw_scenes(domain, 12)
    assert images.shape == (12, HEIGHT, WIDTH, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (12, HEIGHT, WIDTH)
    assert set(np.unique(labels).tolist()) == {*range(len(CLASSES)), UNLABELLED}
    assert preset(TOML["classes"]["names"]).names == CLASSES


def test_labels_lie_where_things_are() -> None:
    # By day the sky is the bluest thing and trees are the greenest.
    images, labels = draw_scenes(DAY, 8)
    red, green, blue = np.moveaxis(images.astype(float), -1, 0)
    blueness, greenness = blue - red, green - np.maximum(red, blue)
    known = labels != UNLABELLED
    assert blueness[labels == SKY].mean() > 50 > 20 > blueness[known & (labels != SKY)].mean()
    assert greenness[labels == TREE].mean() > 10 > greenness[known & (labels != TREE)].mean()


def test_dusk_is_darker_and_has_other_class_frequencies() -> None:
    day, day_labels = draw_scenes(DAY, 24)
    dusk, dusk_labels = draw_scenes(DUSK, 24)
    assert dusk.mean() < 0.85 * day.mean()
    for rare in (SIGN, PEDESTRIAN, BICYCLIST):
        assert (dusk_labels == rare).mean() > 1.3 * (day_labels == rare).mean()
    assert (dusk_labels == SKY).mean() < 0.8 * (day_labels == SKY).mean()


def test_weights_are_small_and_load_strictly() -> None:
    assert WEIGHTS.stat().st_size < 500_000
    network = streetnet()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True), strict=True)


def test_network_knows_the_day_and_is_lost_at_dusk() -> None:
    network = streetnet()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    network.eval()
    mean, std = (torch.tensor(TOML["preprocessing"][key])[:, None, None] for key in ("mean", "std"))
    accuracy = {}
    for domain in DOMAINS:
        images, labels = draw_scenes(domain, 6)
        network_input = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.inference_mode():
            predictions = network(network_input).argmax(1).numpy()
        labels = labels[:, ::2, ::2]
        accuracy[domain.name] = np.mean([(predictions == c)[labels == c].mean() for c in np.unique(labels)[:-1]])
    assert accuracy["day"] > 0.7
    assert 0.2 < accuracy["dusk"] < 0.65
