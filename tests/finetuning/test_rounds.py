import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.losses import cross_entropy
from blda_cli.core.spatial_priors import PositionCounts, at_size
from blda_cli.data.classes import class_set
from blda_cli.data.images import find_images
from blda_cli.data.labels import label_reader
from blda_cli.errors import BldaError
from blda_cli.finetuning.data.labelled import Labelled
from blda_cli.finetuning.data.rare_classes import HardSampleMiner
from blda_cli.finetuning.data.samples import Crop, Sampler, count_class_pixels
from blda_cli.finetuning.data.stored_labels import StoredLabels
from blda_cli.finetuning.methods.base import MethodContext
from blda_cli.finetuning.methods.cag import Cag
from blda_cli.finetuning.methods.objective import MixedTargets, Objective
from blda_cli.finetuning.networks.student import Outputs
from blda_cli.finetuning.settings import Settings, read_settings
from blda_cli.runtime.monitor import Interrupted, SilentMonitor
from blda_cli.segmenters.options import InferenceOptions
from tests.finetuning.test_run import checkpoint, lines, same

METHODS = ["st", "cbst", "cbst-sp", "cag"]


class Told(SilentMonitor):
    """Remembers what is said and done; is asked to stop after so many units of some work, if at all."""

    def __init__(self, stop_in: str = "", after: int = 0) -> None:
        self.stop_in, self.left = stop_in, after
        self.lines: list[str] = []
        self.work: list[str] = []

    def start(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:
        self.work.append(what)

    def advance(self, count: int) -> None:
        if self.work[-1] == self.stop_in:
            self.left -= count

    def say(self, line: str) -> None:
        self.lines.append(line)

    def check(self) -> None:
        if self.stop_in and self.left <= 0:
            raise Interrupted


def rounds(method: str, **changes: Any) -> dict[str, Any]:
    return {"training__method": method, "rounds__rounds": 2, "run__log_every": 1, **changes}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("correction", ["none", "blda"])
def test_every_method_runs_with_and_without_the_correction(
    project: Any, tmp_path: Path, method: str, correction: str
) -> None:
    monitor = Told()
    project.run(tmp_path / "run", monitor, **rounds(method, training__correction=correction))
    entries = lines(tmp_path / "run")
    assert [entry["iteration"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(entry["loss"]) for entry in entries)
    losses = {"source", "mixed"}
    losses |= {"source_density", "mixed_density"} if correction == "blda" else set()
    if method == "cag":
        losses |= {f"{domain}_{name}" for domain in ("source", "target") for name in ("distance", "discriminative")}
        for stage in (1, 2):
            with np.load(tmp_path / "run" / "centroids" / f"stage-{stage}.npz") as kept:
                assert kept["centroids"].shape == (4, 12)
                assert kept["classes"].tolist() == ["road", "tree", "car", "sky"]
    else:
        for number in (1, 2):
            folder = tmp_path / "run" / "pseudo_labels" / f"round-{number}"
            assert {path.name for path in folder.iterdir()} == {*(f"{n}.png" for n in range(5)), "round.json"}
            record = json.loads((folder / "round.json").read_text())
            assert record["portion"] == pytest.approx(0.15 + 0.05 * number)
            with Image.open(folder / "0.png") as picture:
                assert (picture.mode, picture.size) == ("P", (56, 40))
                assert set(np.unique(np.array(picture))) <= {0, 1, 2, 3, 255}
    assert set(entries[0]["losses"]) == losses


@pytest.mark.parametrize(
    ("method", "stop_in", "after"),
    [
        *(("cbst-sp", f"round {number}: {what}", 2) for number in (1, 2) for what in ("ranking", "labelling")),
        *(("cag", f"stage {number}: {what}", 2) for number in (1, 2) for what in ("centroids", "active pixels")),
        *((method, "training", step) for method in ("cbst-sp", "cag") for step in (1, 3, 4)),
    ],
)
def test_a_run_goes_on_from_the_middle_of_any_round(
    project: Any, tmp_path: Path, through: Callable[[str], Path], method: str, stop_in: str, after: int
) -> None:
    values = rounds(method, rounds__label_flip=True)
    halted = Told(stop_in, after)
    with pytest.raises(Interrupted):
        project.run(tmp_path / "halted", halted, **values)
    resumed = Told()
    project.run(tmp_path / "halted", resumed, resume=True, **values)
    assert same(checkpoint(through(method))["trainer"], checkpoint(tmp_path / "halted")["trainer"])
    for kept in through(method).glob("pseudo_labels/*/*"):
        assert kept.read_bytes() == (tmp_path / "halted" / kept.relative_to(through(method))).read_bytes()
    if stop_in == "training" and after < 4:
        # What was labelled is not labelled again.
        assert not any(what.startswith(("round 1", "stage 1")) for what in resumed.work)


@pytest.fixture(scope="module")
def through(project: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that nobody stopped."""

    @cache
    def run(method: str) -> Path:
        output = tmp_path_factory.mktemp("through") / method
        project.run(output, **rounds(method, rounds__label_flip=True))
        return output

    return run


def test_labels_are_those_of_the_rule(project: Any, through: Callable[[str], Path]) -> None:
    """The first round of CBST-SP from the paper: thresholds by sorting all target pixels, priors, the ratio."""
    segmenter = project.segmenter()
    files = find_images(project.folder / "dusk" / "images")
    positions = PositionCounts(4)
    for path in sorted((project.folder / "day" / "labels").iterdir()):
        positions.update(torch.from_numpy(np.array(Image.open(path))).unsqueeze(0))
    priors = at_size(positions.priors().double(), (40, 56))
    scores = {
        batch.files[0].key: priors * batch.logits[0].double().softmax(dim=0)
        for batch in segmenter.stream(files, InferenceOptions(flip=True))
    }
    ranked = torch.stack(list(scores.values())).movedim(1, -1).flatten(0, 2)
    highest, predicted = ranked.max(dim=1)
    thresholds = torch.ones(4, dtype=torch.float64)
    for c in range(4):
        own = highest[predicted == c].sort(descending=True).values
        if len(own):
            thresholds[c] = own[max(round(0.2 * len(own)), 1) - 1]
    for key, score in scores.items():
        ratio, label = (score / thresholds.view(4, 1, 1)).max(dim=0)
        label[ratio <= 1] = 255
        found = np.array(Image.open(through("cbst-sp") / "pseudo_labels" / "round-1" / f"{key}.png"))
        # What shares the ranked pixel's bin, a thousandth of k, is kept with it.
        clear = ratio.log().abs() > 2.0**-9 * -thresholds.log()[label.where(label != 255, 0)]
        np.testing.assert_array_equal(found[clear.numpy()], label[clear].numpy())
        assert float(clear.double().mean()) > 0.9


def test_stored_labels_are_cut_like_their_crops(
    project: Any, batches: Callable[..., Any], through: Callable[[str], Path]
) -> None:
    stored = StoredLabels(through("cbst-sp") / "pseudo_labels" / "round-1", 4)
    for batch in batches(project, [[number] for number in range(8)]):
        (crop,) = batch.target_crops
        whole = np.array(Image.open(stored.folder / f"{crop.file.key}.png"))
        window = whole[crop.top : crop.top + 32, crop.left : crop.left + 40]
        expected = window[:, ::-1] if crop.mirrored else window
        expected = np.where(expected == 255, IGNORE_INDEX, expected.astype(int))
        np.testing.assert_array_equal(stored.cut([crop])[0].numpy(), expected)


def test_labels_of_150_classes_are_kept_as_they_are(project: Any, tmp_path: Path) -> None:
    (file, *_) = find_images(project.folder / "dusk" / "images")
    stored = StoredLabels(tmp_path, 150)
    labels = torch.arange(40 * 56).view(40, 56) % 151
    labels[labels == 150] = IGNORE_INDEX
    stored.write(file, labels, class_set([f"class {number}" for number in range(150)]))
    assert torch.equal(stored.cut([Crop(file, (40, 56), 0, 0, (40, 56), mirrored=False)])[0], labels)


def test_the_portion_grows_to_its_limit(project: Any, tmp_path: Path) -> None:
    project.run(tmp_path / "run", **rounds("st", rounds__rounds=3, rounds__portion_limit=0.27))
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "run").glob("pseudo_labels/*/round.json"))]
    assert [record["portion"] for record in records] == pytest.approx([0.2, 0.25, 0.27])


def test_methods_in_rounds_leave_images_as_they_are_unless_told(project: Any) -> None:
    for method in METHODS:
        host = Settings().with_values({"training.method": method}, "test").host
        assert (host.classmix, host.color_jitter, host.blur, host.rare_class_sampling) == (False, 0, 0, False)
    told = Settings().with_values({"training.method": "cbst", "host.classmix": True}, "test")
    assert (told.host.classmix, told.host.blur) == (True, 0)
    assert read_settings(write_text(project.folder / "cag.toml", '[training]\nmethod = "cag"\n')).host == host


BIASED = """
from studentnet import make


def biased(**arguments):
    network = make(**arguments)
    network.classifier.bias.data[{never}] = -100.0
    return network
"""


@pytest.fixture
def biased(project: Any, tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    """Settings of a run whose network never predicts some classes."""

    def settings(never: str) -> dict[str, Any]:
        (tmp_path / "studentnet.py").write_text((project.folder / "studentnet.py").read_text())
        (tmp_path / "biased.py").write_text(BIASED.format(never=never))
        (tmp_path / "net.toml").write_text(Path(project.model).read_text().replace("studentnet:make", "biased:biased"))
        return {"data__model": str(tmp_path / "net.toml"), "training__iterations": 1, "rounds__rounds": 1}

    return settings


def test_a_class_never_predicted_is_told(project: Any, tmp_path: Path, biased: Callable[..., dict[str, Any]]) -> None:
    monitor = Told()
    project.run(tmp_path / "run", monitor, training__method="cbst", **biased("[0, 1, 2]"))
    assert "round 1: never predicted, so never labelled: road, tree, car" in monitor.lines
    record = json.loads((tmp_path / "run" / "pseudo_labels" / "round-1" / "round.json").read_text())
    assert record["labelled_pixels"]["car"] == record["predicted_share"]["road"] == 0
    assert record["threshold"]["car"] == 1
    assert {"road", "car"} <= set(record["preferred_in_the_source"][0])


def test_a_prior_that_is_zero_everywhere_is_told(project: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (project.folder / "day" / "labels").iterdir():
        values = np.array(Image.open(path))
        Image.fromarray(np.where(values == 1, 255, values).astype(np.uint8)).save(labels / path.name)
    monitor = Told()
    changes = rounds("cbst-sp", data__source_labels=str(labels), training__iterations=2)
    project.run(tmp_path / "run", monitor, **changes)
    said = "the source labels never hold tree: their spatial prior is 0 everywhere"
    assert monitor.lines.count(said) == 1
    for path in (tmp_path / "run" / "pseudo_labels").rglob("*.png"):
        assert not (np.array(Image.open(path)) == 1).any()


def test_a_stage_without_an_active_pixel_is_told(project: Any, tmp_path: Path) -> None:
    monitor = Told()
    project.run(tmp_path / "run", monitor, **rounds("cag", cag__margin=1e6))
    for stage in (1, 2):
        (line,) = [line for line in monitor.lines if line.startswith(f"stage {stage}: 0.0% of the target's features")]
        assert "no active pixel" in line
        assert "a smaller margin makes pixels active" in line


def test_a_network_that_knows_no_two_classes_gives_no_anchors(
    project: Any, tmp_path: Path, biased: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(BldaError, match=r"fewer than two classes .* \(--method source\)"):
        project.run(tmp_path / "run", training__method="cag", **biased("[0, 1, 3]"))


def test_hard_classes_are_drawn_from_images_that_hold_them() -> None:
    pixels = np.array([[9, 0, 0, 5], [9, 0, 4, 0], [9, 2, 0, 0], [9, 0, 0, 0], [9, 0, 7, 0], [9, 0, 0, 1]])
    assert HardSampleMiner(pixels, [[1], [2, 3]], 0.5).pool == [(1, 2), (3, 0), (2, 1)]
    assert HardSampleMiner(pixels, [[1], [2, 3]], 1.0).pool == [(1, 2), (3, 0), (2, 1), (2, 4), (3, 5)]
    assert HardSampleMiner(pixels[3:4], [[1], [2, 3]], 1.0).pool == []
    drawn = [HardSampleMiner(pixels, [[1], [2, 3]], 0.5).draw(np.random.default_rng(n)) for n in range(60)]
    assert set(drawn) == {(1, 2), (3, 0), (2, 1)}


def test_half_of_the_source_crops_are_mined(project: Any, batches: Callable[..., Any]) -> None:
    def share(sampler: Sampler) -> float:
        crops = [np.asarray(sampler.draw(number)["source_labels"]) for number in range(60)]
        return float(np.mean([np.any(crop == 3) for crop in crops]))

    settings = project.settings(training__method="cbst", training__crop=(8, 8), rounds__mined_share=1.0)
    source = find_images(settings.data.source_images)
    labels = label_reader(source, settings.data.source_labels, project.segmenter().classes, encoding="ids")
    pixels = count_class_pixels(source, labels, 4, 1, SilentMonitor())
    sampler = Sampler(Labelled(source, labels), find_images(settings.data.target_images), pixels, settings)
    before = share(sampler)
    sampler.prefer([[3], []])
    assert share(sampler) > 2 * before
    sampler.prefer(())
    assert share(sampler) == before


def test_what_a_round_prefers_is_drawn(project: Any, tmp_path: Path) -> None:
    students = []
    for share in (0.0, 1.0):
        values = rounds("cbst", rounds__mined_share=share, training__crop=(12, 12))
        project.run(tmp_path / str(share), **values)
        students.append(checkpoint(tmp_path / str(share))["trainer"]["student"])
    assert not same(*students)


def test_cag_labels_by_anchors_and_by_probability_and_averages_what_they_cost(project: Any) -> None:
    settings = project.settings(training__method="cag", cag__confidence=0.6)
    generator = torch.Generator().manual_seed(0)
    cag = Cag(MethodContext(settings, 4, torch.device("cpu"), nn.Identity(), Objective()))
    anchors, margin = torch.randn(4, 3, generator=generator), 0.4
    known = torch.ones(4, dtype=torch.bool)
    cag.load_state_dict({"centroids": anchors, "known": known, "margin": margin, "labeller": {}})
    features, logits = torch.randn(2, 3, 4, 5, generator=generator), 2 * torch.randn(2, 4, 8, 10, generator=generator)
    batch = SimpleNamespace(target_images=torch.zeros(2, 3, 8, 10))
    pseudo = cag.label(batch, Outputs(logits, features=features))  # type: ignore[arg-type]
    for n, row, column in np.ndindex(2, 8, 10):
        distance = (features[n, :, row // 2, column // 2] - anchors).norm(dim=1)
        nearest, second = distance.sort().values[:2]
        expected = int(distance.argmin()) if second - nearest > margin else IGNORE_INDEX
        assert int(pseudo.labels[n, row, column]) == expected
        probability = logits[n, :, row, column].softmax(dim=0)
        expected = int(probability.argmax()) if probability.max() >= 0.6 else IGNORE_INDEX
        assert int(pseudo.labels[2 + n, row, column]) == expected
    assert torch.equal(pseudo.weights, (pseudo.labels != IGNORE_INDEX).float())
    own = cag.feature_losses("target", Outputs(logits, features=features), pseudo.labels)
    by_anchors, by_probability = (
        cag.feature_losses("target", Outputs(logits, features=features), labels) for labels in pseudo.labels.split(2)
    )
    assert own == by_anchors
    assert own != by_probability
    student = Outputs(torch.randn(2, 4, 8, 10, generator=generator))
    targets = MixedTargets(pseudo.labels, pseudo.weights, torch.zeros(pseudo.labels.shape, dtype=torch.bool))
    loss = Objective().mixed_losses(student.repeated(2), targets)["mixed"]
    costs = [cross_entropy(student.logits, labels).mean() for labels in pseudo.labels.split(2)]
    torch.testing.assert_close(loss, (costs[0] + costs[1]) / 2)


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
