"""The weight of instance norms, chosen by what an image and its smaller copy have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from blda_cli.core.agreement import count_pairs, information_gain, mutual_information
from blda_cli.core.choices import LabelSource
from blda_cli.core.fitting import Evidence, fit_correction
from blda_cli.core.methods import AlignmentSettings
from blda_cli.core.norms import MixedNorms
from blda_cli.core.statistics import LogitStatistics
from blda_cli.data import divided_images
from blda_cli.data.images import find_images, masked
from blda_cli.data.labels import LabelReader
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters import base, norm_choice
from blda_cli.segmenters.network import NetworkSegmenter, network_segmenter
from blda_cli.segmenters.norm_choice import WEIGHTS, choose_weight
from blda_cli.segmenters.norms import use_norms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import parse_model


def segmenter(mean: float, variance: float) -> NetworkSegmenter:
    """Three classes by brightness, told apart where the norm makes the brightness normal."""
    norm = nn.BatchNorm2d(1, affine=False)
    norm.running_mean, norm.running_var = torch.tensor([mean]), torch.tensor([variance])
    grey, levels = nn.Conv2d(3, 1, 1, bias=False), nn.Conv2d(1, 3, 1)
    grey.weight.data.fill_(1 / 3)
    levels.weight = nn.Parameter(torch.tensor([-4.0, 0, 4]).view(3, 1, 1, 1))
    levels.bias = nn.Parameter(torch.tensor([-2.0, 0, -2]))
    return network_segmenter(
        parse_model("a:b"), nn.Sequential(grey, norm, levels).eval(), torch.device("cpu"), {"kind": "python"}
    )


@pytest.fixture
def stripes(tmp_path: Path) -> list[ImageSource]:
    """Two images with three dark levels and a little noise."""
    generator = np.random.default_rng(0)
    for name in "ab":
        levels = np.repeat([10.0, 40.0, 70.0], 16)[:, None, None] + generator.normal(0, 4, (48, 40, 3))
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    return find_images(tmp_path)


def information(segmenter: NetworkSegmenter, files: list[ImageSource], weight: float) -> tuple[float, float]:
    """By hand, over the pixels of all images: shared information and agreement."""
    segmenter.norm_weight = weight
    one, other = (
        np.concatenate(
            [
                batch.logits.argmax(dim=1).numpy().ravel()
                for batch in segmenter.stream(files, InferenceOptions(scales=how))
            ]
        )
        for how in ((1.0,), (0.75,))
    )

    def entropy(values: np.ndarray) -> float:
        shares = np.unique(values, return_counts=True)[1] / len(values)
        return float(-(shares * np.log(shares)).sum())

    return entropy(one) + entropy(other) - entropy(3 * one + other), float((one == other).mean())


def test_the_weight_is_that_of_most_shared_information(stripes: list[ImageSource]) -> None:
    """Dark images: as trained all is the darkest class, which agrees perfectly and says nothing."""
    away = segmenter(0.4, 0.004)
    identity = dict(away.identity)
    advanced: list[int] = []
    found = choose_weight(away, stripes, InferenceOptions(scales=(0.5, 1.0), flip=True), advance=advanced.append)
    assert away.norm_weight == 1
    assert away.identity == identity
    assert (found.images, sum(advanced)) == (2, 2)
    assert tuple(found.agreements) == tuple(found.information) == WEIGHTS
    for weight in WEIGHTS:
        expected = information(segmenter(0.4, 0.004), stripes, weight)
        assert (found.information[weight], found.agreements[weight]) == pytest.approx(expected, abs=1e-6)
    assert found.agreements[1.0] == 1
    assert found.information[1.0] == 0
    gains = {weight: value + 0.05 * weight for weight, value in found.information.items()}
    assert found.weight == max(gains, key=lambda weight: gains[weight])
    assert found.weight < 0.8
    assert str(found).startswith(f"mixed with each image's own statistics, weight {found.weight:g}: ")


def test_parts_of_large_images_are_compared_under_every_weight(
    stripes: list[ImageSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two norms the second one's statistics depend on the weight."""
    monkeypatch.setattr(divided_images, "BLOCK", 24)
    monkeypatch.setattr(divided_images, "LARGE", 1000)
    monkeypatch.setattr(base, "PART_WINDOW", (20, 20))
    parts = find_images(stripes[0].path.parent)
    away = segmenter(0.4, 0.004)
    away.network = nn.Sequential(nn.BatchNorm2d(3, affine=False), away.module).eval()
    found = choose_weight(away, parts, InferenceOptions())
    assert found.images == len(parts) == 8
    for weight in WEIGHTS:
        expected = information(away, parts, weight)
        assert (found.information[weight], found.agreements[weight]) == pytest.approx(expected, abs=1e-6)


def tables(information: Sequence[float]) -> torch.Tensor:
    """Two classes, one table of 2 million pixels an image, that share so much information in units of log 2."""
    found = []
    for wanted in information:
        low, high = 0.5, 1.0  # shares of equal classes: the information grows with it
        for _ in range(50):
            equal = (low + high) / 2
            one = torch.tensor([[equal, 1 - equal], [1 - equal, equal]]) * 1_000_000
            low, high = (equal, high) if mutual_information(one) < wanted * np.log(2) else (low, equal)
        found.append(one.round().long())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("information", "expected"),
    [
        ({0.7: [0.5, 0.5], 0.8: [0.6, 0.6], 0.85: [0.5, 0.5], 0.9: [0.9, 0.9]}, 0.8),  # the first fall ends it
        ({0.7: [0.5, 0.5], 0.8: [0.4, 0.4]}, 0.7),
        ({0.7: [0.5, 0.5], 0.8: [0.496, 0.496], 0.85: [0.4, 0.4]}, 0.8),  # as much, and more of the network's own
        ({0.7: [0.5, 0.5], 0.8: [0.3, 0.65], 0.85: [0.3, 0.3]}, 0.8),  # less by 0.025, which is within the error
        ({0.7: [0.5, 0.5], 0.8: [0.44, 0.47], 0.85: [0.9, 0.9]}, 0.7),  # less in both: it is not
        ({0.7: [0.5], 0.8: [0.47], 0.85: [0.9]}, 0.7),  # a single image has no error
        # What is within the error of the one before has to be within that of the best.
        ({0.7: [0.5, 0.5], 0.8: [0.45, 0.51], 0.85: [0.41, 0.5], 0.9: [0.38, 0.45]}, 0.85),
        ({0.7: [0.3], 0.8: [0.4], 0.85: [0.5], 0.9: [0.6]}, 0.9),  # never as trained: single views have refuted that
    ],
)
def test_averaged_views_raise_the_weight(
    stripes: list[ImageSource], information: dict[float, list[float]], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_choice, "_shared_by_halves", lambda *given: tables(information[given[3]]))
    found = norm_choice._raised(segmenter(0.4, 0.004), stripes, InferenceOptions(), 0.7, lambda _: None)
    assert found == expected


def test_the_error_of_a_gain_is_the_jackknifes() -> None:
    one, other = torch.randint(1, 50, (2, 5, 3, 3), generator=torch.Generator().manual_seed(0))
    gain, error = information_gain(one, other)
    without = [
        mutual_information(one.sum(dim=0) - a) - mutual_information(other.sum(dim=0) - b)
        for a, b in zip(one, other, strict=True)
    ]
    assert gain == pytest.approx(mutual_information(one.sum(dim=0)) - mutual_information(other.sum(dim=0)))
    assert error == pytest.approx(np.sqrt(4 / 5 * np.square(np.array(without) - np.mean(without)).sum()))


@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0)])
def test_the_halves_of_the_views_are_averaged_and_aligned_each(
    stripes: list[ImageSource], scales: tuple[float, ...], tmp_path: Path
) -> None:
    (tmp_path / "mirrored").mkdir()
    for file in stripes:  # the right side is brighter, so that mirroring matters
        pixels = np.array(Image.open(file.path)).astype(float) + np.linspace(0, 40, 40)[None, :, None]
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(file.path)
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored" / file.path.name)
    away = segmenter(0.4, 0.004)
    options = InferenceOptions(scales=scales, flip=True)
    found = norm_choice._shared_by_halves(away, stripes, options, 0.6, lambda _: None)
    predicted = []
    for mirrored, files in enumerate((stripes, find_images(tmp_path / "mirrored"))):
        statistics, logits = LogitStatistics(3), []
        for file, batch in zip(stripes, away.stream(files, InferenceOptions(scales=scales)), strict=True):
            turned = batch.logits.flip(-1) if mirrored else batch.logits
            statistics.update(turned, keys=[file.key])
            logits.append(turned)
        cells = statistics.cells[LabelSource.PSEUDO]
        correction = fit_correction(AlignmentSettings(), Evidence(statistics, cells, norms_adapted=True))
        predicted.append(torch.cat(logits).movedim(1, -1).reshape(1, -1, 3).movedim(-1, 1))
        predicted[-1] = correction.predict(predicted[-1])
    assert len(found) == len(stripes)
    assert torch.equal(found.sum(dim=0), count_pairs(predicted[0], predicted[1], 3))
    assert mutual_information(found[0]) > 0.1


@pytest.mark.parametrize(
    ("shared", "kept"),
    [
        ({0.5: 0.9, 1.0: 1.0, 1.25: 0.95, 1.5: 0.91}, (0.5, 1.0, 1.25, 1.5)),
        ({0.5: 0.5, 1.0: 1.0, 1.25: 0.95, 1.5: 0.89}, (0.5, 1.0, 1.25)),  # smaller ones stay
        ({0.5: 1.0, 1.0: 0.8, 1.25: 0.8, 1.5: 0.8}, (0.5, 1.0)),
    ],
)
def test_enlarged_views_that_tell_less_are_dropped(
    stripes: list[ImageSource], shared: dict[float, float], kept: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the information that plain and mirrored views of a scale share; shares of log 2 here."""

    def half(*given: Any) -> torch.Tensor:
        (scale,), mirrored = given[3].scales, given[5]
        pairs = tables([shared[scale]])[0]  # rows and columns of 1 million pixels each
        plain = torch.arange(2).repeat_interleave(1_000_000)
        other = torch.cat([torch.arange(2).repeat_interleave(row) for row in pairs])
        return torch.nn.functional.one_hot(other if mirrored else plain, 3).T[None].float()

    monkeypatch.setattr(norm_choice, "_half", half)
    options = InferenceOptions(scales=tuple(shared), flip=True)
    assert norm_choice._telling_scales(segmenter(0.4, 0.004), stripes, options, lambda _: None) == kept


def test_the_weight_is_raised_by_the_views_that_are_left(
    stripes: list[ImageSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On further images, too; the scales are kept where they are asked to be chosen."""
    asked: list[tuple[tuple[float, ...], int]] = []
    weights: list[float] = []

    def shared_by_halves(_: object, files: Sequence[ImageSource], options: InferenceOptions, *__: object) -> Any:
        asked.append((options.scales, len(files)))
        return tables([0.5] * len(files))

    def telling(given: NetworkSegmenter, *_: object) -> tuple[float, ...]:
        weights.append(given.norm_weight)
        return 0.5, 1.0

    monkeypatch.setattr(norm_choice, "_shared_by_halves", shared_by_halves)
    monkeypatch.setattr(norm_choice, "_telling_scales", telling)
    options = InferenceOptions(scales=(0.5, 1.0, 1.5), flip=True)
    away, (first, second) = segmenter(0.4, 0.004), stripes
    single = choose_weight(away, [first], InferenceOptions()).weight
    found = choose_weight(away, [first], options, more=[second], choose_scales=True)
    assert found.scales == (0.5, 1.0)
    assert found.weight == 0.9
    assert set(asked) == {((0.5, 1.0), 2)}
    assert weights == [single]
    asked.clear()
    assert choose_weight(away, [first], options).scales == ()
    assert set(asked) == {((0.5, 1.0, 1.5), 1)}
    given = choose_weight(away, [first], options, given=0.7, choose_scales=True)
    assert (given.weight, given.scales) == (0.7, (0.5, 1.0))
    pixels = np.array(Image.open(first.path)).mean(axis=2) / 255
    home = segmenter(float(pixels.mean()), float(pixels.var()))
    assert choose_weight(home, [first], options, choose_scales=True).weight == 1
    assert weights == [single, 0.7, 1]


def test_pixels_without_data_do_not_count(stripes: list[ImageSource], tmp_path: Path) -> None:
    """Whatever lies at them, the weight and the logits elsewhere are the same."""
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((48, 40), bool)
    mask[:, :30] = True
    found, logits = [], []
    for fill in (0, 255):
        for file in stripes:
            pixels = np.array(Image.open(file.path))
            pixels[~mask] = fill
            Image.fromarray(pixels).save(file.path)
            Image.fromarray(mask).save(masks / file.path.name)
        files = masked(stripes, str(masks))
        away = segmenter(0.4, 0.004)
        labels = LabelReader(lambda _: np.zeros((48, 40), np.int16), "ids", {})
        found.append(choose_weight(away, files, InferenceOptions(), labels=labels))
        assert [int(one.counts.sum()) for one in found[-1].confusions.values()] == [2 * 48 * 30] * 2
        away.mix_norms(0.5)
        logits += [batch.logits[..., :30] for batch in away.stream(files, InferenceOptions(batch_size=2))]
    assert found[0].weight == found[1].weight
    assert found[0].information == pytest.approx(found[1].information, abs=0.05)  # copies mix the pixels at the edge
    careless = choose_weight(away, stripes, InferenceOptions())
    assert abs(careless.information[0.5] - found[1].information[0.5]) > 0.1
    torch.testing.assert_close(logits[0], logits[1])


def test_images_without_any_data_are_passed_over(stripes: list[ImageSource], tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for file, value in zip(stripes, (0, 255), strict=True):
        Image.new("L", (40, 48), value).save(tmp_path / "masks" / file.path.name)
    files = masked(stripes, str(tmp_path / "masks"))
    views = InferenceOptions(scales=(0.75, 1.0), flip=True)
    assert choose_weight(segmenter(0.4, 0.004), files, views).images == 1
    with pytest.raises(BldaError, match="nothing to choose the norms by"):
        choose_weight(segmenter(0.4, 0.004), files[:1], views)


def test_a_network_in_domain_keeps_its_norms(stripes: list[ImageSource]) -> None:
    pixels = np.stack([np.array(Image.open(file.path)) for file in stripes]).mean(axis=3) / 255
    home = segmenter(float(pixels.mean()), float(pixels.var()))
    found = choose_weight(home, stripes, InferenceOptions())
    assert found.weight == 1
    use_norms(home, found)
    assert home.norm_weight == 1
    assert "norms" not in home.identity
    shared = f"the classes of an image and of its smaller copy share {information(home, stripes, 1.0)[0]:.3f} nats of"
    assert home.notes[-1] == (
        f"batch norms: as trained: {shared} information, no other weight is clearly ahead (2 images)"
    )


def test_a_segmenter_says_what_it_mixes(stripes: list[ImageSource]) -> None:
    away = segmenter(0.4, 0.004)
    for _ in range(2):
        use_norms(away, MixedNorms(0.8))
    assert away.norm_weight == 0.8
    assert away.identity["norms"] == {"weight": 0.8}
    notes = [note for note in away.notes if "batch norms" in note]
    assert notes == ["batch norms: mixed with each image's own statistics, weight 0.8"]


def test_unreadable_images_count_nothing(stripes: list[ImageSource]) -> None:
    stripes[0].path.write_text("no picture")
    with pytest.raises(BldaError, match="not an image"):
        choose_weight(segmenter(0.4, 0.004), stripes, InferenceOptions())
    assert choose_weight(segmenter(0.4, 0.004), stripes, InferenceOptions(on_error="skip")).images == 1
    with pytest.raises(BldaError, match="no image with data could be read"):
        choose_weight(segmenter(0.4, 0.004), stripes[:1], InferenceOptions(on_error="skip"))
