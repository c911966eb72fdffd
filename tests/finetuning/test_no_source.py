"""Training without source images: the target's own labels, what is refused, kills, Tent, a few labelled images."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import blda_cli
from blda_cli.commands import cli
from blda_cli.core.norms import MixedNorms
from blda_cli.data.images import find_images
from blda_cli.data.labels import LabelReader, label_reader
from blda_cli.data.pillow_images import PillowImage
from blda_cli.errors import BldaError, OptionError
from blda_cli.finetuning.data.labelled import Labelled, own_labelled
from blda_cli.finetuning.data.samples import Crop, Sampler, count_class_pixels
from blda_cli.finetuning.methods import METHODS
from blda_cli.finetuning.settings import PUBLISHED, Settings
from blda_cli.pipelines.requests import STRONG
from blda_cli.reporting.words import next_steps
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import parse_model
from blda_cli.store.statistics import read_statistics
from tests.finetuning.test_run import StopAt, checkpoint, lines, same

NO_SOURCE: dict[str, Any] = {
    "data__source": False,
    "data__source_images": "",
    "data__source_labels": "",
}


@pytest.fixture(scope="module")
def started(project: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without source, of one step."""
    output: Path = tmp_path_factory.mktemp("started") / "run"
    project.run(output, **NO_SOURCE, training__iterations=1, start__label_share=0.6)
    return output


def test_the_surest_share_of_each_class_is_labelled(project: Any, started: Path) -> None:
    """As the Python interface aligns the averaged views: the pictures hold the first 60 % of every predicted class."""
    segmenter = project.segmenter()
    alignment = blda_cli.Alignment.from_file(started / "start.h5")
    found, confidence, predicted = [], [], []
    for batch in segmenter.stream(find_images(project.folder / "dusk" / "images"), STRONG):
        scores = alignment.scores(batch.logits)[0]
        confidence.append(scores.max(dim=0).values.exp().double().flatten())
        predicted.append(scores.argmax(dim=0).flatten())
        with Image.open(started / "pseudo_labels" / "start" / f"{batch.files[0].key}.png") as picture:
            assert (picture.mode, picture.size) == ("P", (56, 40))
            found.append(torch.from_numpy(np.array(picture)).flatten())
    labels, sure, classes = torch.cat(found), torch.cat(confidence), torch.cat(predicted)
    record = json.loads((started / "pseudo_labels" / "start" / "labels.json").read_text())
    present = classes.unique().tolist()
    assert len(present) > 1
    for label in present:
        own = classes == label
        kept = own & (labels == label)
        recorded = record["labelled_pixels"][segmenter.classes.names[label]]
        assert int(kept.sum()) == int((labels == label).sum()) == recorded
        assert float(kept.sum() / own.sum()) == pytest.approx(0.6, abs=0.02)
        # What shares the ranked pixel's bin, a thousandth of the log, is kept with it.
        left_out = sure[own & ~kept].log().max() if bool((own & ~kept).any()) else torch.tensor(-torch.inf)
        assert float(sure[kept].log().min()) >= float(left_out) * 1.002
    assert set(labels.unique().tolist()) <= {*present, 255}


def test_labels_are_made_with_the_norms_of_training(normed_project: Any, tmp_path: Path) -> None:
    normed_project.run(tmp_path / "run", **NO_SOURCE, training__iterations=1, training__norm_weight=0.6)
    norms = read_statistics(tmp_path / "run" / "start.h5").norms
    assert isinstance(norms, MixedNorms)
    assert norms.weight == 0.6


def test_what_is_found_for_averaged_views_trains_and_labels(
    normed_project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One choice, with the views of preset strong: the written network has its weight, the labels its scales."""
    asked: dict[str, Any] = {}
    compared, shares = {1.0: 0.5, 0.6: 0.75}, {1.0: [0.25] * 4, 0.6: [0.25] * 4}
    mix = MixedNorms(0.6, 5, compared, compared, shares, scales=(0.5, 1.0))

    def found(segmenter: Any, files: Any, options: InferenceOptions, **given: Any) -> MixedNorms:
        asked.update(options=options, files=len(files), more=len(given["more"]), choose_scales=given["choose_scales"])
        return mix

    monkeypatch.setattr("blda_cli.finetuning.networks.norms.choose_weight", found)
    result = normed_project.run(tmp_path / "run", **NO_SOURCE, training__iterations=1)
    assert asked == {"options": STRONG, "files": 5, "more": 0, "choose_scales": True}
    assert parse_model(result["model"]).segmenter.norm_weight == 0.6
    labelled_by = read_statistics(tmp_path / "run" / "start.h5")
    assert labelled_by.norms == mix
    assert labelled_by.model["inference"]["scales"] == [0.5, 1.0]
    segmenter = normed_project.segmenter()
    segmenter.mix_norms(0.6)
    alignment, options = blda_cli.Alignment.from_file(tmp_path / "run" / "start.h5"), replace(STRONG, scales=(0.5, 1.0))
    for batch in segmenter.stream(find_images(normed_project.folder / "dusk" / "images"), options):
        predicted = alignment.predict(batch.logits)[0]
        with Image.open(tmp_path / "run" / "pseudo_labels" / "start" / f"{batch.files[0].key}.png") as picture:
            labels = torch.from_numpy(np.array(picture))
        assert bool(((labels == predicted) | (labels == 255)).all())


@pytest.mark.parametrize("method", ["dacs", "blda", "cbst"])
def test_methods_train_without_source(project: Any, tmp_path: Path, method: str) -> None:
    result = project.run(tmp_path / "run", **NO_SOURCE, training__method=method, rounds__rounds=2)
    entries = [entry for entry in lines(tmp_path / "run") if "losses" in entry]
    assert {"source", "mixed"} <= set(entries[0]["losses"])
    assert all(np.isfinite(entry["loss"]) for entry in entries)
    assert Path(result["model"]).is_file()
    before, after = project.segmenter().module, load_segmenter(parse_model(result["model"]), torch.device("cpu")).module
    assert not torch.equal(before.classifier.weight, after.state_dict()["classifier.weight"])


class KillAt(SilentMonitor):
    """Kills the run in the midst of some work: nothing is written on the way out."""

    class KilledError(BaseException):
        pass

    def __init__(self, work: str, after: int) -> None:
        self.work, self.left, self.now = work, after, ""

    def start(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:
        self.now = what

    def advance(self, count: int) -> None:
        if self.now == self.work:
            self.left -= count
            if self.left <= 0:
                raise self.KilledError


WITH_AND_WITHOUT = [
    *((method, True, False) for method, entry in METHODS.items() if entry.source != "unused"),
    *((method, False, False) for method, entry in METHODS.items() if entry.source != "needed"),
    ("dacs", True, True),
    ("blda", True, True),
    ("cbst", True, True),
]


@pytest.mark.parametrize(("method", "source", "own"), WITH_AND_WITHOUT)
def test_a_killed_run_ends_as_one_that_was_not(
    project: Any, normed_project: Any, tmp_path: Path, method: str, source: bool, own: bool
) -> None:
    values: dict[str, Any] = {"training__method": method, "run__checkpoint_every": 2, "rounds__rounds": 2}
    if method == "tent":
        project = normed_project
    values |= {} if source else NO_SOURCE
    values |= {"start__own_labels": own} if own else {}
    project.run(tmp_path / "through", **values)
    label = "ranking" if method != "tent" else "training"
    points = [("training", 1), ("training", 3), ("counting", 2)]
    for number, (work, after) in enumerate([*points, *([(label, 2)] if own or not source else [])]):
        output, monitor = tmp_path / str(number), KillAt(work, after)
        with pytest.raises(KillAt.KilledError):
            project.run(output, monitor, **values)
        project.run(output, resume=True, **values)
        assert same(checkpoint(tmp_path / "through")["trainer"], checkpoint(output)["trainer"]), (work, after)
        for kept in (tmp_path / "through").glob("pseudo_labels/**/*.png"):
            assert kept.read_bytes() == (output / kept.relative_to(tmp_path / "through")).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("source", [True, False])
def test_kill_9(project: Any, tmp_path: Path, source: bool) -> None:
    values = {} if source else NO_SOURCE
    settings = project.settings(run__checkpoint_every=2, run__log_every=1, training__iterations=60, **values)
    (tmp_path / "config.toml").write_text(settings.to_toml())

    def start(name: str, *more: str) -> "subprocess.Popen[bytes]":
        arguments = ["--config", str(tmp_path / "config.toml"), "--output", str(tmp_path / name), "--device", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen([sys.executable, "-m", "blda_cli", "finetune", *arguments, *more], env=environment)

    assert start("through").wait() == 0
    killed = 0
    for lines_first in (3, 20, 45):
        process, metrics = start("killed", "--resume"), tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None and (not metrics.exists() or metrics.read_text().count("losses") < lines_first):
            time.sleep(0.005)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed == 3
    assert start("killed", "--resume").wait() == 0
    assert same(checkpoint(tmp_path / "through")["trainer"], checkpoint(tmp_path / "killed")["trainer"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__source_images": ""}, "--source-images is missing: give it, or --no-source, and the target labels"),
        ({**NO_SOURCE, "training__method": "source"}, "--method source needs labelled source images: give --method"),
        ({**NO_SOURCE, "training__method": "cag"}, "--method blda or --method dacs or --method cbst with --no-source"),
        ({"data__source": False}, "--source-images does nothing with --no-source"),
        ({**NO_SOURCE, "data__target_images": ""}, "--target-images is missing"),
        ({"training__method": "tent"}, "--source-images does nothing with --method tent"),
        ({**NO_SOURCE, "data__labelled_images": "few"}, "--labelled-images needs --labelled-labels"),
    ],
)
def test_what_does_not_go_together_is_refused(project: Any, tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(BldaError, match=said):
        project.run(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_tent_lowers_the_entropy_by_the_norms_alone(normed_project: Any, tmp_path: Path) -> None:
    normed_project.run(
        tmp_path / "run", **NO_SOURCE, training__method="tent", training__iterations=40, training__learning_rate=0.05
    )
    losses = [entry["losses"]["entropy"] for entry in lines(tmp_path / "run")]
    assert losses[-1] < 0.95 * losses[0]
    trained = load_segmenter(parse_model(str(tmp_path / "run" / "model.toml")), torch.device("cpu")).module.state_dict()
    for name, value in normed_project.segmenter().module.state_dict().items():
        learnt = name in ("encoder.1.weight", "encoder.1.bias")
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, trained[name]) != learnt, name


def test_tent_needs_norms_to_train(project: Any, tmp_path: Path) -> None:
    segmenter = project.segmenter()
    assert segmenter.module.encoder[1].weight is not None  # group norms will do
    toml = tmp_path / "net.toml"
    (tmp_path / "barenet.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Conv2d(3, 4, 1)\n")
    toml.write_text('[segmenter]\nkind = "python"\nfactory = "barenet:make"\n[classes]\nnames = ["a", "b", "c", "d"]\n')
    with pytest.raises(BldaError, match="--method tent trains the weights of norms, and the network has none"):
        project.run(tmp_path / "run", **NO_SOURCE, training__method="tent", data__model=str(toml))


@pytest.mark.parametrize(
    ("weight", "distance", "changed", "refused"),
    [
        (1.0, 0.002, 0.0, "brings nothing"),
        (1.0, 0.03, 0.0, ""),
        (0.6, 0.002, 0.12, ""),
        (0.6, 0.03, 0.05, "changes the class of only 5% of the pixels"),
    ],
)
def test_images_in_domain_are_not_trained_on_without_source(
    normed_project: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weight: float,
    distance: float,
    changed: float,
    refused: str,
) -> None:
    """Nor near it, unless the check is left out, in the same folder, or other labels are given, too."""
    mix = MixedNorms(weight, 5, changed={1.0: 0.0, weight: changed})
    monkeypatch.setattr("blda_cli.finetuning.networks.norms.choose_weight", lambda *_, **__: mix)
    monkeypatch.setattr("blda_cli.segmenters.norms.ObservedNorms.distance", distance)
    checked = {**NO_SOURCE, "run__check": True, "training__iterations": 1}
    if refused:
        with pytest.raises(BldaError, match=rf"in domain, or nearly: mixing .* {refused}\. .* --no-check"):
            normed_project.run(tmp_path / "run", **checked)
        normed_project.run(tmp_path / "run", **{**checked, "run__check": False})
        normed_project.run(tmp_path / "both", start__own_labels=True, run__check=True, training__iterations=1)
        few = {f"data__labelled_{kind}": str(normed_project.folder / "dusk" / kind) for kind in ("images", "labels")}
        normed_project.run(tmp_path / "few", **checked, **few)
    else:
        normed_project.run(tmp_path / "run", **checked)


TIGHT = """
import studentnet


def make(most, batch_norm, least=0):
    def check(module, given):
        if given[0].shape[3] > most:
            raise MemoryError
        if given[0].shape[3] < least:
            raise ValueError

    network = studentnet.make(batch_norm=batch_norm)
    network.register_forward_pre_hook(check)
    return network
"""


@pytest.mark.parametrize(
    ("least", "most", "kept", "scales"),
    [
        (0, 90, (), [0.5, 0.75, 1.0, 1.25, 1.5]),
        (0, 60, (), [0.5, 0.75, 1.0]),
        (0, 60, (0.5, 1.0, 1.25), [0.5, 1.0]),
        (40, 90, (), [1.0]),
        (0, 40, (), None),
    ],
)
def test_labels_are_made_by_the_views_that_the_network_and_memory_allow(
    project: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    least: int,
    most: int,
    kept: tuple[float, ...],
    scales: list[float] | None,
) -> None:
    """Target images are 56 pixels wide, crops 40; ``kept`` are scales that were chosen with the norms' weight."""
    (project.folder / "tightnet.py").write_text(TIGHT)
    arguments = f"{{least = {least}, most = {most}, batch_norm = {str(bool(kept)).lower()}}}"
    model = Path(project.model).read_text().replace("studentnet", "tightnet").replace("{dropout = 0.1}", arguments)
    (project.folder / "tight.toml").write_text(model)
    if kept:
        compared = {1.0: 0.5, 0.6: 0.75}
        mix = MixedNorms(0.6, 5, compared, compared, {1.0: [0.25] * 4, 0.6: [0.25] * 4}, scales=kept)
        monkeypatch.setattr("blda_cli.finetuning.networks.norms.choose_weight", lambda *_, **__: mix)
    values = {"data__model": str(project.folder / "tight.toml"), "host__whole_images": False}
    if scales is None:
        with pytest.raises(BldaError, match=r"memory does not suffice to label whole target images.*--no-own-labels"):
            project.run(tmp_path / "run", **values, start__own_labels=True, training__iterations=1)
        return
    project.run(tmp_path / "run", **values, start__own_labels=True, training__iterations=1)
    assert read_statistics(tmp_path / "run" / "start.h5").model["inference"]["scales"] == scales


@pytest.mark.parametrize("value", [255, 0])
def test_given_labels_are_looked_at_before_the_target_is_labelled(project: Any, tmp_path: Path, value: int) -> None:
    """Own labels do not stand in for classes that the source lacks."""
    (tmp_path / "labels").mkdir()
    for number in range(6):
        Image.fromarray(np.full((40, 56), value, dtype=np.uint8)).save(tmp_path / "labels" / f"{number}.png")
    values = {"start__own_labels": True, "data__source_labels": str(tmp_path / "labels"), "training__iterations": 1}
    monitor = StopAt(100)
    if value == 255:
        with pytest.raises(BldaError, match="no pixel has one of the model's classes"):
            project.run(tmp_path / "run", monitor, **values)
        assert not (tmp_path / "run" / "pseudo_labels").exists()
    else:
        project.run(tmp_path / "run", monitor, **values)
        assert any("the source labels never hold tree, car, sky" in line for line in monitor.said)


def test_all_label_files_are_watched(tmp_path: Path) -> None:
    """Of three sets whose images are named alike."""
    sets = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for kind in ("image", "label"):
            Image.new("L", (1, 1)).save(tmp_path / name / f"{kind}.png")
        file = PillowImage(tmp_path / name / "image.png", "x")
        reader = LabelReader(lambda _: np.zeros((1, 1)), "test", {"x": tmp_path / name / "label.png"})
        sets.append(Labelled([file], reader, name))
    stamps = sets[0].beside(sets[1]).beside(sets[2]).stamps()
    assert {str(tmp_path / name / "label.png") for name in ("a", "b", "c")} <= set(stamps)


def test_a_run_goes_on_whatever_a_setting_says_that_has_no_effect(project: Any, tmp_path: Path) -> None:
    project.run(tmp_path / "run", **NO_SOURCE, training__iterations=1)
    project.run(tmp_path / "run", resume=True, **NO_SOURCE, training__iterations=1, start__own_labels=True)
    with pytest.raises(BldaError, match=r"there start\.label_share is 0\.8, here 0\.7"):
        project.run(tmp_path / "run", resume=True, **NO_SOURCE, training__iterations=1, start__label_share=0.7)


def test_own_labels_beside_those_of_the_source(project: Any, tmp_path: Path) -> None:
    """Source and target images, half of the draws each, train; the labels are those of a run without source."""
    students = []
    for name, changes in (("alone", {}), ("both", {"start__own_labels": True}), ("own", NO_SOURCE)):
        project.run(tmp_path / name, training__method="dacs", **changes)
        students.append(checkpoint(tmp_path / name)["trainer"]["student"])
        assert (tmp_path / name / "pseudo_labels" / "start").is_dir() == (name != "alone")
    assert not same(students[0], students[1])
    assert not same(students[1], students[2])
    for picture in (tmp_path / "own" / "pseudo_labels" / "start").glob("*.png"):
        assert picture.read_bytes() == (tmp_path / "both" / "pseudo_labels" / "start" / picture.name).read_bytes()
    counts = json.loads((tmp_path / "both" / "run.json").read_text())
    assert (counts["source"], counts["target"]) == (len(list((project.folder / "day" / "images").iterdir())) + 5, 5)


@pytest.mark.parametrize("fading", [True, False])
def test_own_labels_fade_beside_a_source(project: Any, fading: bool) -> None:
    """Five of eleven draws are of the target at first, none at the end; a class that only it has does not matter."""
    settings = project.settings(training__iterations=200, training__batch_size=2, host__rare_class_temperature=1e3)
    day, dusk = (find_images(project.folder / name / "images") for name in ("day", "dusk"))
    given = Labelled(day, label_reader(day, project.folder / "day" / "labels", project.segmenter().classes))
    both = own_labelled(dusk, lambda file: np.zeros(file.size(), np.int16), fading=fading).beside(given)
    pixels = np.zeros((11, 4), np.int64)
    pixels[:, 0] = 100
    crops = []
    for quarter in range(4):
        sampler = Sampler(both, dusk, pixels, settings)
        pixels[:5, 1] = 100 * (quarter == 2)  # in the last quarter, every second draw would be of the target for it
        crops += [sampler.draw(number)["source_crops"] for number in range(100 * quarter, 100 * quarter + 100)]
    own = np.reshape([isinstance(crop, Crop) and crop.file in dusk for crop in crops], (4, 100)).mean(axis=1)
    expected = np.array([7, 5, 3, 1]) / 8 if fading else np.ones(4)
    share = np.array([5, 5, 5, 8]) / 11
    assert own == pytest.approx(share * expected, abs=0.1)


def test_given_labels_of_a_target_image_count_more_than_its_own(project: Any) -> None:
    files = find_images(project.folder / "day" / "images")
    source = Labelled(files[:2], label_reader(files, project.folder / "day" / "labels", project.segmenter().classes))
    both = own_labelled(files, lambda file: np.full(file.size(), 3, np.int16), fading=True).beside(source)
    assert both.fading == {file.location for file in files[2:]}
    assert np.array_equal(both.labels(files[1]), source.labels(files[1]))
    assert bool((both.labels(files[2]) == 3).all())


def test_a_target_whose_images_all_have_labels_gets_no_others(project: Any, tmp_path: Path) -> None:
    target = str(project.folder / "day" / "images")
    project.run(tmp_path / "run", data__target_images=target, start__own_labels=True, training__iterations=1)
    assert not (tmp_path / "run" / "pseudo_labels").exists()


def test_own_labels_are_refused_where_no_label_is_read(project: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--own-labels does nothing with --method source: leave it out, or give"):
        project.settings(training__method="source").refuse_unused(["start.own_labels"])


def test_own_labels_are_a_default_and_not_published(project: Any) -> None:
    assert Settings().labels_itself
    assert not Settings().with_values(PUBLISHED, "test").labels_itself
    assert not Settings().with_values({"training.method": "cbst"}, "test").labels_itself
    with pytest.raises(OptionError, match="do nothing with --no-source: leave them out"):
        project.settings(**NO_SOURCE).refuse_unused(["start.own_labels"])


def test_a_share_of_labels_that_are_not_made_is_refused(project: Any) -> None:
    share = ["start.label_share"]
    with pytest.raises(OptionError, match="--label-share does nothing without --own-labels or --no-source"):
        project.settings().refuse_unused(share)
    project.settings(start__own_labels=True).refuse_unused(share)
    project.settings(**NO_SOURCE).refuse_unused(share)


@pytest.mark.parametrize(("few", "times"), [(1, (1, 5)), (2, (1, 2)), (5, (1, 1)), (11, (2, 1))])
def test_each_of_two_sets_is_half_of_what_is_drawn(tmp_path: Path, few: int, times: tuple[int, int]) -> None:
    def of(name: str, count: int) -> Labelled:
        for number in range(count):
            Image.new("RGB", (1, 1)).save(tmp_path / f"{name}{number}.png")
        files = [PillowImage(tmp_path / f"{name}{number}.png", f"{name}{number}") for number in range(count)]
        return Labelled(files, LabelReader(lambda file: np.full((1, 1), ord(file.key[0])), "test", {}), name)

    both = of("a", 5).beside(of("b", few))
    drawn = [both.files[index].key[0] for index in both.drawn]
    assert (drawn.count("a"), drawn.count("b")) == (5 * times[0], few * times[1])
    assert both.labels(both.files[0]).tolist() == [[ord("a")]]
    assert both.labels(both.files[-1]).tolist() == [[ord("b")]]


def test_a_few_labelled_images_are_half_of_what_is_drawn(project: Any, tmp_path: Path) -> None:
    """Those that the target holds, too, have the labels that are given, not the network's."""
    files = find_images(project.folder / "dusk" / "images")
    own = Labelled(files, label_reader(files, project.folder / "dusk" / "labels", project.segmenter().classes))
    (tmp_path / "few").mkdir()
    void = np.full((40, 56), 2, dtype=np.uint8)
    Image.fromarray(void).save(tmp_path / "few" / "1.png")
    few_files = [file for file in files if file.key == "1"]
    few = Labelled(few_files, label_reader(few_files, tmp_path / "few", project.segmenter().classes))
    both = own.beside(few)
    assert [file.key for file in both.files] == ["0", "2", "3", "4", "1"]
    assert both.drawn == [0, 1, 2, 3, 4, 4, 4, 4]
    assert bool((both.labels(both.files[4]) == 2).all())
    assert np.array_equal(both.labels(both.files[1]), own.labels(files[2]))
    pixels = count_class_pixels(both.files, both.labels, 4, 1, SilentMonitor())
    settings = project.settings(host__rare_class_temperature=100.0)  # nearly evenly over the classes
    sampler = Sampler(both, files, pixels, settings)
    crops = [sampler.draw(number)["source_crops"] for number in range(80)]
    drawn = [crop.file.key for crop in crops if isinstance(crop, Crop)]
    assert drawn.count("1") > 7  # half of some 20 draws for cars, all that it holds; unrepeated, a fifth of them


def test_a_few_labelled_images_take_part(project: Any, tmp_path: Path) -> None:
    students = []
    for name, changes in (
        ("without", {}),
        ("with", {f"data__labelled_{kind}": str(project.folder / "dusk" / kind) for kind in ("images", "labels")}),
    ):
        project.run(tmp_path / name, **NO_SOURCE, training__method="dacs", **changes)
        students.append(checkpoint(tmp_path / name)["trainer"]["student"])
    assert not same(*students)


def test_a_run_without_labels_says_when_its_network_seems_worse(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"agreement": 0.9, "share": {"road": 0.5, "tree": 0.3, "car": 0.2, "sky": 0.0}}
    after = {"agreement": 0.8, "share": {"road": 0.8, "tree": 0.2, "car": 0.001, "sky": 0.0}}
    looks = [before, after]
    monkeypatch.setattr("blda_cli.finetuning.loop.look", lambda *_: looks.pop(0))
    monitor = StopAt(99)
    project.run(tmp_path / "run", monitor, **NO_SOURCE)
    (agreement,) = [line for line in monitor.said if "agree less" in line]
    assert "(80.0%) than when the run began (90.0%)" in agreement
    (lost,) = [line for line in monitor.said if line.startswith("hardly predicted any more")]
    assert lost.startswith("hardly predicted any more on the target: car; ")
    assert f"{project.model} as it was may be the better one" in lost


def test_agreement_is_that_of_a_smaller_copy(project: Any, started: Path) -> None:
    """The last look of a run is at what it wrote: recomputed here image by image."""
    (entry,) = [
        json.loads(line)
        for line in (started / "metrics.jsonl").read_text().splitlines()
        if '"unlabelled"' in line and '"iteration": 1' in line
    ]
    segmenter = load_segmenter(parse_model(str(started / "model.toml")), torch.device("cpu"))
    files, agreeing, shares = find_images(project.folder / "dusk" / "images"), [], []
    for file in files:
        whole, smaller = (
            next(iter(segmenter.stream([file], InferenceOptions(scales=(scale,))))).logits.argmax(dim=1)
            for scale in (1.0, 0.75)
        )
        agreeing.append(float((whole == smaller).double().mean()))
        shares.append(torch.bincount(whole.flatten(), minlength=4) / whole.numel())
    assert entry["unlabelled"]["agreement"] == pytest.approx(np.mean(agreeing))
    assert list(entry["unlabelled"]["share"].values()) == pytest.approx(torch.stack(shares).mean(0).tolist())


def test_the_reports_advice_is_one_command_that_works(project: Any, tmp_path: Path) -> None:
    subject = {"model": project.model, "images": str(project.folder / "dusk" / "images"), "device": "cpu"}
    stats, aligned = tmp_path / "dusk.h5", tmp_path / "aligned"
    # Without the check, which finds that the network's weights were not loaded: then the advice is to load them.
    blda_cli.collect_stats(**subject, output=stats, check=False)
    blda_cli.align(**subject, stats=str(stats), output=aligned)
    for labels in (None, str(project.folder / "dusk" / "labels")):
        report = blda_cli.report(stats, [aligned], labels=labels)
        if labels:  # whatever the correction did to this network
            (run,) = report.runs
            assert run.after.scores is not None
            better = replace(run.after.scores, mean_iou=0.99, mean_accuracy=0.99)
            report = replace(report, runs=[replace(run, after=replace(run.after, scores=better))])
        (step,) = [step for step in next_steps(report) if step.command.startswith("blda finetune")]
        output = tmp_path / f"run {labels is None}"
        words = [str(output) if word == "run" else word for word in shlex.split(step.command)[1:]]
        result = CliRunner().invoke(cli, [*words, "--iterations", "1", "--device", "cpu", "--quiet"])
        assert result.exit_code == 0, result.stderr
        assert (output / "model.toml").is_file()


def test_from_python(project: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": project.model,
        "target_images": str(project.folder / "dusk" / "images"),
        "source": False,
    }
    settings: dict[str, Any] = {"iterations": 1, "crop": (32, 40), "device": "cpu", "method": "dacs"}
    result = blda_cli.finetune(output=tmp_path / "run", **options, **settings)
    assert Path(result["model"]).is_file()
    assert result["validation"] is None
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["command"] == "blda_cli.finetune"
    with pytest.raises(BldaError, match="finetune takes no option wrong"):
        blda_cli.finetune(output=tmp_path / "other", **options, wrong=1)
    with pytest.raises(BldaError, match="--portion does nothing with --method dacs"):
        blda_cli.finetune(output=tmp_path / "other", **options, **settings, portion=0.3)
