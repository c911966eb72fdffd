"""A network that learned drawn streets, described rightly and wrongly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from draw import DAY, DUSK, Domain, draw_scene
from PIL import Image

from blda_cli.data.images import find_images
from blda_cli.data.source import ImageSource
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.descriptions import common_descriptions, compare_descriptions, glance
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.preprocessing import Preprocessor
from blda_cli.segmenters.spec import PreprocessingSection, parse_model

STREETS = Path(__file__).parents[2] / "examples" / "streets"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RIGHT = PreprocessingSection(mean=MEAN, std=STD)
STARTS = {
    "right": RIGHT,
    "BGR": PreprocessingSection(color="bgr", mean=MEAN[::-1], std=STD[::-1]),
    "0..1": PreprocessingSection(),
    "0..255": PreprocessingSection(scale=1.0),
    "-1..1": PreprocessingSection(mean=(0.5,) * 3, std=(0.5,) * 3),
    "Caffe": PreprocessingSection(color="bgr", mean=(103.94, 116.78, 123.68), scale=1.0),
}


def scenes(domain: Domain, folder: Path, count: int = 4) -> list[ImageSource]:
    for index in range(count):
        Image.fromarray(draw_scene(domain, (0, index))[0]).save(folder / f"{index}.png")
    return list(find_images(folder))


def streets(section: PreprocessingSection) -> NetworkSegmenter:
    segmenter = load_segmenter(parse_model(str(STREETS / "streets.toml")), torch.device("cpu"))
    assert isinstance(segmenter, NetworkSegmenter)
    return replace(segmenter, preprocessor=Preprocessor(section, segmenter.device))


@pytest.mark.parametrize("domain", [DAY, DUSK], ids=lambda domain: domain.name)
@pytest.mark.parametrize("start", STARTS)
def test_the_right_description_is_found_from_every_start(start: str, domain: Domain, tmp_path: Path) -> None:
    comparison = compare_descriptions(streets(STARTS[start]), scenes(domain, tmp_path))
    best = comparison.best.description
    right = common_descriptions(RIGHT)[0]
    assert best.same_normalisation(right) or any(one.same_normalisation(right) for one in comparison.tied)
    assert best.section.color == "rgb"
    assert comparison.colour_told


@pytest.mark.parametrize("domain", [DAY, DUSK], ids=lambda domain: domain.name)
@pytest.mark.parametrize("start", STARTS)
def test_a_quick_look_doubts_wrong_normalisations_alone(start: str, domain: Domain, tmp_path: Path) -> None:
    found = glance(streets(STARTS[start]), scenes(domain, tmp_path))
    assert (found is not None) == (start not in ("right", "BGR"))
    if found is not None:
        assert found.best.fit.distance is not None
        assert found.best.fit.distance < 0.12


def test_a_description_that_fits_as_well_as_the_best_is_kept(tmp_path: Path) -> None:
    files = scenes(DUSK, tmp_path)
    comparison = compare_descriptions(streets(RIGHT), files)
    assert comparison.chosen is comparison.own
    # Cityscapes' numbers fit the dusk as well as ImageNet's, so they are kept too.
    cityscapes = next(one for one in common_descriptions(RIGHT) if one.name == "Cityscapes mean and deviation")
    comparison = compare_descriptions(streets(cityscapes.section), files)
    assert cityscapes == comparison.given
    assert comparison.chosen is comparison.own
    comparison = compare_descriptions(streets(STARTS["-1..1"]), files)
    assert comparison.chosen is comparison.best
