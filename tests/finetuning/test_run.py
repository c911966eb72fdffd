import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from blda_cli.core.choices import LabelSource
from blda_cli.core.norms import MixedNorms
from blda_cli.data.classes import class_set
from blda_cli.data.images import find_images
from blda_cli.errors import BldaError
from blda_cli.finetuning.run_folder import RunFolder
from blda_cli.finetuning.settings import read_settings
from blda_cli.finetuning.trainer import Trainer
from blda_cli.pipelines.alignment_inputs import AlignmentInputs, StatisticsInput
from blda_cli.runtime.monitor import Interrupted, SilentMonitor
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.norms import take_norms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import parse_model
from blda_cli.store.statistics import read_statistics

CLASSES = ("road", "tree", "car", "sky")


def lines(output: Path) -> list[dict[str, Any]]:
    """What was logged, without what is seen of the network without labels."""
    entries = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "unlabelled" not in entry]


def checkpoint(output: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(output / "checkpoint.pth", weights_only=True)
    return state


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.fixture(scope="module")
def finished(project: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("runs") / "run"
    values = {
        "data__val_images": str(project.folder / "dusk" / "images"),
        "data__val_labels": str(project.folder / "dusk" / "labels"),
        "run__validate_every": 4,
        "run__pictures_every": 3,
    }
    return output, project.run(output, **values)


def test_a_run_folder_holds_all_it_should(finished: tuple[Path, dict[str, Any]], project: Any) -> None:
    output, result = finished
    weights = {"weights.safetensors"} if (output / "weights.safetensors").exists() else {"weights.pth"}
    assert {path.name for path in output.iterdir()} == {
        *("config.toml", "run.json", "metrics.jsonl", "checkpoint.pth", "source_classes.npz"),
        *("model.toml", "statistics.h5", "pictures", "metrics.svg"),
        *weights,
    }
    assert read_settings(output / "config.toml").training == project.settings().training
    record = json.loads((output / "run.json").read_text())
    assert record["command"] == "blda finetune"
    assert record["model"]["weights"].startswith("sha256:")
    assert result["model"] == str(output / "model.toml")
    assert sorted(path.name for path in (output / "pictures").iterdir()) == ["000003.png", "000006.png"]
    with Image.open(output / "pictures" / "000003.png") as picture:
        assert picture.size == (80, 64)


def test_metrics_tell_what_happened(finished: tuple[Path, dict[str, Any]]) -> None:
    entries = lines(finished[0])
    trained = [entry for entry in entries if "loss" in entry]
    assert [entry["iteration"] for entry in trained] == [2, 4, 6]
    assert [entry["learning_rate"] for entry in trained] == pytest.approx([5e-3 / 6, 3e-3 / 6, 1e-3 / 6])
    for entry in trained:
        assert entry["loss"] == pytest.approx(sum(entry["losses"].values()))
        assert entry["crops_per_second"] > 0
        assert sum(entry["pseudo_share"]) == pytest.approx(1)
        assert all(0 <= share <= 1 for share in entry["kept_share"] if share is not None)
        assert len(entry["estimated_bias"]) == 4
    validations = [entry for entry in entries if "validation" in entry]
    assert [entry["iteration"] for entry in validations] == [0, 4, 6]
    assert validations[-1]["validation"] == finished[1]["validation"]
    assert 0 <= finished[1]["validation"]["mean_iou"] <= 1


def test_validation_labels_have_an_encoding_of_their_own(project: Any, tmp_path: Path) -> None:
    """Roads, cars and skies by Cityscapes' label ids; trees have no label."""
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (project.folder / "dusk" / "labels").iterdir():
        city = np.array([7, 0, 26, 23, *[0] * 252], dtype=np.uint8)
        Image.fromarray(city[np.array(Image.open(path))]).save(labels / path.name)
    values: dict[str, Any] = {"data__val_images": str(project.folder / "dusk" / "images")}
    values |= {"data__val_labels": str(labels), "data__val_encoding": "cityscapes-ids", "training__iterations": 1}
    accuracy = project.run(tmp_path / "run", **values)["validation"]["accuracy"]
    assert [name for name in CLASSES if accuracy[name] == accuracy[name]] == ["road", "car", "sky"]


def test_the_model_is_one_for_the_other_commands(finished: tuple[Path, dict[str, Any]], project: Any) -> None:
    output = finished[0]
    segmenter = load_segmenter(parse_model(str(output / "model.toml")), torch.device("cpu"))
    state = segmenter.module.state_dict()
    assert same(dict(state), dict(checkpoint(output)["trainer"]["teacher"]))
    content = read_statistics(output / "statistics.h5")
    AlignmentInputs(StatisticsInput(content)).check(segmenter, InferenceOptions(), force=False)
    assert content.complete
    assert content.statistics.images == 5
    assert set(content.statistics.cells) == {LabelSource.PSEUDO}


class StopAt(SilentMonitor):
    """Is asked to stop after a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.said: list[str] = []

    def start(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:
        self.training = what == "training"

    def advance(self, count: int) -> None:
        self.step -= count if self.training else 0

    def say(self, line: str) -> None:
        self.said.append(line)

    def check(self) -> None:
        if self.step <= 0:
            raise Interrupted


@pytest.mark.parametrize("method", ["dacs", "blda"])
def test_an_interrupted_run_goes_on_bit_for_bit(project: Any, tmp_path: Path, method: str) -> None:
    values = {"training__method": method, "host__masked_consistency": 1.0, "training__accumulate": 2}
    project.run(tmp_path / "through", **values)
    with pytest.raises(Interrupted):
        project.run(tmp_path / "halted", StopAt(3), **values)
    assert checkpoint(tmp_path / "halted")["trainer"]["step"] == 3
    assert [entry["iteration"] for entry in lines(tmp_path / "halted")] == [2]
    project.run(tmp_path / "halted", resume=True, **values)
    assert same(checkpoint(tmp_path / "through")["trainer"], checkpoint(tmp_path / "halted")["trainer"])
    assert [entry["iteration"] for entry in lines(tmp_path / "halted")] == [2, 4, 6]


def test_a_run_with_a_smaller_default_crop_goes_on(project: Any, tmp_path: Path) -> None:
    values = {"training__crop": (512, 512), "training__method": "dacs"}
    with pytest.raises(Interrupted):
        project.run(tmp_path / "run", StopAt(3), **values)
    project.run(tmp_path / "run", resume=True, **values)
    assert checkpoint(tmp_path / "run")["trainer"]["step"] == 6
    assert read_settings(tmp_path / "run" / "config.toml").training.crop == (32, 32)


def test_what_was_logged_after_the_checkpoint_is_logged_once(project: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(Interrupted):
        project.run(output, StopAt(3))
    with (output / "metrics.jsonl").open("a") as stream:
        stream.write('{"iteration": 4}\n{"iterat')
    project.run(output, resume=True)
    assert [entry["iteration"] for entry in lines(output)] == [2, 4, 6]


def test_a_loss_that_is_not_finite_stops_the_run(project: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(BldaError, match=r"iteration \d+: the source loss is nan; the batch was .*day/images/\d.png"):
        project.run(output, training__learning_rate=1e30, run__checkpoint_every=1)
    state = checkpoint(output)
    assert 0 < state["trainer"]["step"] < 6
    assert all(
        torch.isfinite(value).all()
        for value in state["trainer"]["objective"]["source"].values()
        if torch.is_tensor(value)
    )


def test_weights_that_are_not_finite_leave_the_last_checkpoint(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient may be NaN under finite losses; the losses of the step tell nothing."""
    step = Trainer.train_step

    def failing(trainer: Trainer, batches: Any) -> Any:
        report = step(trainer, batches)
        if trainer.step == 3:
            next(trainer.student.parameters()).data[:] = torch.nan
        return report

    monkeypatch.setattr(Trainer, "train_step", failing)
    output = tmp_path / "run"
    with pytest.raises(BldaError, match=r"iteration 3: trainer\.student\..* is not .*The last checkpoint is kept"):
        project.run(output, run__checkpoint_every=1)
    assert checkpoint(output)["trainer"]["step"] == 2
    monkeypatch.undo()
    project.run(output, resume=True, run__checkpoint_every=1)
    assert checkpoint(output)["trainer"]["step"] == 6


def test_a_full_disk_loses_nothing(project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "run"
    with pytest.raises(Interrupted):
        project.run(output, StopAt(2))
    before = checkpoint(output)

    def full(state: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BldaError, match=r"checkpoint\.pth cannot be written: No space left"):
        project.run(output, resume=True)
    monkeypatch.undo()
    assert same(checkpoint(output), before)
    assert not [path for path in output.iterdir() if path.name.endswith(".part")]


def test_a_run_is_not_overwritten_and_not_mistaken(project: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(Interrupted):
        project.run(output, StopAt(2))
    with pytest.raises(BldaError, match="holds a run already: --resume"):
        project.run(output)
    with pytest.raises(BldaError, match=r"of another run: there training\.seed is 0, here 1"):
        project.run(output, resume=True, training__seed=1)
    project.run(output, resume=True, run__log_every=3)
    (output / "checkpoint.pth").write_bytes((output / "checkpoint.pth").read_bytes()[:1000])
    with pytest.raises(BldaError, match="cannot be read as a checkpoint"):
        project.run(output, resume=True)


def test_resuming_where_nothing_is_starts(project: Any, tmp_path: Path) -> None:
    monitor = StopAt(2)
    with pytest.raises(Interrupted):
        project.run(tmp_path / "run", monitor, resume=True)
    assert monitor.said[0] == f"{tmp_path / 'run'} holds no checkpoint: the run starts afresh"
    (tmp_path / "run" / "checkpoint.pth").unlink()  # killed before it wrote one
    project.run(tmp_path / "run", resume=True)
    assert [entry["iteration"] for entry in lines(tmp_path / "run")] == [2, 4, 6]
    logged = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert logged.count('"iteration": 0') == 1  # and not what the killed run saw before its first step


def test_the_metrics_are_plotted(finished: tuple[Path, dict[str, Any]]) -> None:
    """Every loss and every class's IoU is a curve with its last value; points lie where the values are."""
    output, result = finished
    drawn = ElementTree.parse(output / "metrics.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    charts = drawn.findall(f"{space}g")
    assert len(charts) == 2
    said = [[text.text or "" for text in chart.iter(f"{space}text")] for chart in charts]
    last = [entry for entry in lines(output) if "losses" in entry][-1]
    assert {f"{name} {value:.3g}" for name, value in last["losses"].items()} <= set(said[0])
    scores = result["validation"]
    known = {name: value for name, value in scores["iou"].items() if value == value}
    assert {f"{name} {100 * value:.3g}" for name, value in known.items()} <= set(said[1])
    assert f"mean {100 * scores['mean_iou']:.3g}" in said[1]
    heights = {}
    for circle in charts[1].iter(f"{space}circle"):
        heights[circle.get("fill")] = float(circle.get("cy") or 0)
    ranked = sorted(known, key=lambda name: known[name])
    palette = dict(zip(CLASSES, class_set(CLASSES).palette, strict=True))
    below = [heights[f"rgb{palette[name]}"] for name in ranked]
    assert below == sorted(below, reverse=True)


def test_a_checkpoint_of_other_weights_is_refused(project: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(Interrupted):
        project.run(output, StopAt(2))
    toml = Path(project.model)
    text = toml.read_text()
    try:
        toml.write_text(text.replace("dropout = 0.1", "dropout = 0.1, seed = 5"))
        with pytest.raises(BldaError, match="from other weights"):
            project.run(output, resume=True)
    finally:
        toml.write_text(text)


def test_bad_input_is_named(project: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BldaError, match="empty holds no images"):
        project.run(tmp_path / "a", data__target_images=str(empty))
    with pytest.raises(BldaError, match="empty"):
        project.run(tmp_path / "b", data__source_labels=str(empty))
    with pytest.raises(BldaError, match="larger than"):
        project.run(tmp_path / "c", training__crop=(64, 64))
    with pytest.raises(BldaError, match="--val-images needs --val-labels"):
        project.run(tmp_path / "d", data__val_images=str(project.folder / "dusk" / "images"))
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for number in range(6):
        Image.fromarray(np.full((40, 56), 255, dtype=np.uint8)).save(nothing / f"{number}.png")
    with pytest.raises(BldaError, match="no pixel has one of the model's classes"):
        project.run(tmp_path / "e", data__source_labels=str(nothing))
    for name in "abcde":
        assert not (tmp_path / name).exists()
    with pytest.raises(BldaError, match="nothing holds other things"):
        project.run(nothing)


def test_a_class_that_the_labels_never_hold_is_said(project: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    for number in range(6):
        with Image.open(project.folder / "day" / "labels" / f"{number}.png") as image:
            values = np.asarray(image).copy()
        values[values == 2] = 255
        Image.fromarray(values).save(labels / f"{number}.png")
    monitor = StopAt(1)
    with pytest.raises(Interrupted):
        project.run(tmp_path / "run", monitor, data__source_labels=str(labels))
    assert any("never hold car" in line for line in monitor.said)


def test_crops_of_a_network_that_resizes_are_warned_of(project: Any, tmp_path: Path) -> None:
    (tmp_path / "studentnet.py").write_text((project.folder / "studentnet.py").read_text())
    (tmp_path / "tiny.toml").write_text(Path(project.model).read_text() + "[preprocessing]\nsize = [80, 112]\n")
    for crop, warned in (((32, 40), True), ((40, 56), False)):
        monitor = StopAt(1)
        with pytest.raises(Interrupted):
            project.run(
                tmp_path / f"run{crop[0]}", monitor, data__model=str(tmp_path / "tiny.toml"), training__crop=crop
            )
        assert any("--crop 40x56 trains on whole ones" in line for line in monitor.said) == warned


def test_source_only_needs_no_target(project: Any, tmp_path: Path) -> None:
    result = project.run(tmp_path / "run", training__method="source", data__target_images="")
    assert Path(result["model"]).is_file()
    assert not (tmp_path / "run" / "statistics.h5").exists()
    assert "pseudo_share" not in lines(tmp_path / "run")[0]


def test_without_safetensors_the_weights_are_torchs(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    project.run(tmp_path / "run", training__method="source")
    assert (tmp_path / "run" / "weights.pth").is_file()
    load_segmenter(parse_model(str(tmp_path / "run" / "model.toml")), torch.device("cpu"))


def test_tensorboard_gets_the_metrics(project: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "run"
    project.run(output, tensorboard=True)
    events = accumulator.EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    assert {"loss", "losses/mixed", "learning_rate", "pseudo_share/sky"} <= set(events.Tags()["scalars"])
    told = [(event.step, event.value) for event in events.Scalars("losses/source")]
    assert told == [(entry["iteration"], pytest.approx(entry["losses"]["source"])) for entry in lines(output)]


def test_without_tensorboard_the_extra_is_named(project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(BldaError, match=r"blda-cli\[tensorboard\]"):
        project.run(tmp_path / "run", tensorboard=True)


def test_source_labels_are_read_through_once(project: Any, tmp_path: Path) -> None:
    folder, classes = RunFolder(tmp_path), class_set(["a", "b"])
    assert folder.class_pixels(["x", "y"], classes, "ids") is None
    folder.keep_class_pixels(["x", "y"], classes, "ids", np.array([[1, 2], [3, 4]]))
    kept = folder.class_pixels(["x", "y"], classes, "ids")
    assert kept is not None
    assert kept.tolist() == [[1, 2], [3, 4]]
    assert folder.class_pixels(["x", "z"], classes, "ids") is None
    assert folder.class_pixels(["x", "y"], class_set(["a", "c"]), "ids") is None
    assert folder.class_pixels(["x", "y"], classes, "others") is None


@pytest.mark.parametrize("change", ["mapping", "encoding"])
def test_a_run_begun_anew_counts_again_what_its_labels_mean_now(project: Any, tmp_path: Path, change: str) -> None:
    """The files and the classes are those of before; cars and trees are the other way round."""
    (tmp_path / "studentnet.py").write_text((project.folder / "studentnet.py").read_text())
    toml, mapping = (
        tmp_path / "tiny.toml",
        '[labels.mapping]\n0 = "road"\n{} = "tree"\n{} = "car"\n3 = "sky"\n',
    )
    toml.write_text(Path(project.model).read_text().replace('[labels]\nencoding = "ids"\n', ""))
    described, output, counts = toml.read_text(), tmp_path / "run", []
    for order in ((1, 2), (2, 1)):
        toml.write_text(described + (mapping.format(*order) if change == "mapping" or order == (2, 1) else ""))
        encoding = "ids" if change == "encoding" and order == (1, 2) else "auto"
        with pytest.raises(Interrupted):
            project.run(output, StopAt(1), data__model=str(toml), data__source_encoding=encoding)
        counts.append(np.load(output / "source_classes.npz")["pixels"])
        (output / "checkpoint.pth").unlink()
    assert np.array_equal(counts[1], counts[0][:, [0, 2, 1, 3]])
    assert not np.array_equal(counts[1], counts[0])


LARGE_ONLY = """

class Large(Tiny):
    def forward(self, images):
        if images.shape[2] < 36:
            raise ValueError("give at least 36 rows")
        return super().forward(images)


def make_large(**_):
    network = Large(4, 0.0, 0)
    network.encoder[1] = nn.BatchNorm2d(12)
    return network
"""


def test_sizes_are_looked_at_before_anything_is_run(normed_project: Any, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for number, size in enumerate([(56, 40), (56, 31)]):
        Image.new("RGB", size).save(small / f"{number}.png")
    monitor = StopAt(1)
    (tmp_path / "studentnet.py").write_text(Path(normed_project.folder, "studentnet.py").read_text() + LARGE_ONLY)
    (tmp_path / "net.toml").write_text(Path(normed_project.model).read_text().replace("net:make", "net:make_large"))
    with pytest.raises(BldaError, match=r"--crop 32x40 cannot be trained on: .*\[1, 3, 32, 40\].*at least 36 rows"):
        normed_project.run(tmp_path / "run", monitor, data__model=str(tmp_path / "net.toml"))
    with pytest.raises(BldaError, match=r"a crop of 32x40 is larger than .*1\.png \(31x56"):
        normed_project.run(tmp_path / "run", monitor, data__target_images=str(small))
    assert not hasattr(monitor, "training")  # no work was begun


@pytest.mark.parametrize("chosen", ["batch", "target"])
def test_what_batch_norms_normalise_by_is_chosen_once(
    normed_project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    """Where the costs come out otherwise on resuming, the run goes on as it began."""
    costs = {"batch": (1.0, 1.0), "target": (9.0, 1.0)}
    monkeypatch.setattr("blda_cli.finetuning.networks.norms._costs", lambda *_: costs[chosen])
    normed_project.run(tmp_path / "through")
    with pytest.raises(Interrupted):
        normed_project.run(tmp_path / "halted", StopAt(3))
    other = "target" if chosen == "batch" else "batch"
    monkeypatch.setattr("blda_cli.finetuning.networks.norms._costs", lambda *_: costs[other])
    normed_project.run(tmp_path / "halted", resume=True)
    through, halted = checkpoint(tmp_path / "through"), checkpoint(tmp_path / "halted")
    assert through["norms"] == halted["norms"] == chosen
    assert same(through["trainer"], halted["trainer"])
    assert (tmp_path / "halted" / "model.toml").read_text() == (tmp_path / "through" / "model.toml").read_text()


def test_the_weight_of_mixed_norms_is_found_once(
    normed_project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blda_cli.finetuning.networks.norms.choose_weight", lambda *_, **__: MixedNorms(0.7))
    normed_project.run(tmp_path / "through")
    with pytest.raises(Interrupted):
        normed_project.run(tmp_path / "halted", StopAt(3))
    monkeypatch.setattr("blda_cli.finetuning.networks.norms.choose_weight", lambda *_, **__: MixedNorms(1.0))
    normed_project.run(tmp_path / "halted", resume=True)
    through, halted = checkpoint(tmp_path / "through"), checkpoint(tmp_path / "halted")
    assert (through["norms"], through["norm_weight"]) == (halted["norms"], halted["norm_weight"]) == ("instance", 0.7)
    assert same(through["trainer"], halted["trainer"])
    for folder in ("through", "halted"):
        assert parse_model(str(tmp_path / folder / "model.toml")).segmenter.norm_weight == 0.7


@pytest.mark.parametrize("norms", ["target", "source", "batch"])
def test_a_run_begins_with_the_averages_it_is_told(normed_project: Any, tmp_path: Path, norms: str) -> None:
    """With nothing learnt, what is written is what the run began with."""
    output = tmp_path / "run"
    still = {"training__learning_rate": 0.0, "training__iterations": 2, "run__target_norms": False}
    normed_project.run(output, training__norms=norms, training__method="dacs", **still)
    segmenter = normed_project.segmenter()
    own = segmenter.module.encoder[1].running_mean.clone()
    averages = take_norms(segmenter, find_images(normed_project.folder / "dusk" / "images"), InferenceOptions())
    assert averages is not None
    trained = load_segmenter(parse_model(str(output / "model.toml")), torch.device("cpu"))
    written = trained.module.encoder[1].running_mean  # type: ignore[union-attr,index]
    assert torch.equal(written, own) == (norms == "source")
    assert torch.allclose(written, averages.averages["encoder.1.running_mean"]) == (norms == "target")
    assert trained.adapted_norms == (norms == "target")


def test_norms_of_the_target_need_target_images(normed_project: Any, tmp_path: Path) -> None:
    output = tmp_path / "run"
    values = {"training__method": "source", "training__norms": "target", "training__learning_rate": 0.0}
    normed_project.run(output, data__target_images="", **values)
    trained = load_segmenter(parse_model(str(output / "model.toml")), torch.device("cpu"))
    own = normed_project.segmenter().module.encoder[1].running_mean
    assert torch.equal(trained.module.encoder[1].running_mean, own)  # type: ignore[union-attr,index]


def test_a_run_that_ends_below_where_it_began_says_so(project: Any, tmp_path: Path) -> None:
    def scores(output: Path, said: list[str]) -> tuple[float, float]:
        first, last = (one["validation"]["mean_iou"] for one in lines(output) if "validation" in one)
        remarks = [line for line in said if "that the run began with" in line]
        assert [f"below the {first:.1%} that" in line for line in remarks] == [True] * (last < first)
        return first, last

    values: dict[str, Any] = {f"data__val_{kind}": str(project.folder / "dusk" / kind) for kind in ("images", "labels")}
    values |= {"training__method": "dacs", "training__warmup": 0, "host__teacher_momentum": 0.0}
    good, bad = StopAt(99), StopAt(99)
    project.run(tmp_path / "good", good, training__learning_rate=0.01, training__iterations=30, **values)
    first, last = scores(tmp_path / "good", good.said)
    assert last > first
    weights = next((tmp_path / "good").glob("weights.*"))
    project.run(tmp_path / "bad", bad, training__learning_rate=1.0, data__weights=str(weights), **values)
    assert scores(tmp_path / "bad", bad.said)[1] < last
