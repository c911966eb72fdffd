import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.spatial_priors import PositionCounts, at_size
from blda_cli.data.images import find_images
from blda_cli.finetuning.settings import Settings, read_settings
from blda_cli.finetuning.stored_labels import StoredLabels
from blda_cli.runtime.monitor import Interrupted, SilentMonitor
from blda_cli.segmenters.base import InferenceOptions
from tests.finetuning.test_run import checkpoint, same

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
    entries = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(entry["loss"]) for entry in entries)
    losses = {"source", "mixed"}
    losses |= {"source_density", "mixed_density"} if correction == "blda" else set()
    if method == "cag":
        losses |= {f"{domain}_{name}" for domain in ("source", "target") for name in ("distance", "discriminative")}
        for stage in (1, 2):
            with np.load(tmp_path / "run" / "anchors" / f"stage-{stage}.npz") as kept:
                assert kept["anchors"].shape == (4, 12)
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
        *(("cag", f"stage {number}: {what}", 2) for number in (1, 2) for what in ("anchors", "active pixels")),
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


def test_methods_in_rounds_leave_images_as_they_are_unless_told(project: Any) -> None:
    for method in METHODS:
        host = Settings().with_values({"training.method": method}, "test").host
        assert (host.classmix, host.color_jitter, host.blur, host.rare_class_sampling) == (False, 0, 0, False)
    told = Settings().with_values({"training.method": "cbst", "host.classmix": True}, "test")
    assert (told.host.classmix, told.host.blur) == (True, 0)
    assert read_settings(write_text(project.folder / "cag.toml", '[training]\nmethod = "cag"\n')).host == host


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
