"""What ``import blda_cli`` gives."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import blda_cli
from blda_cli.core.choices import Shift
from blda_cli.core.fitting import Evidence, fit_correction
from blda_cli.core.methods import PUBLISHED, AlignmentSettings, chosen_settings
from blda_cli.core.norms import Norms
from blda_cli.errors import BldaError
from blda_cli.store.provenance import Provenance
from blda_cli.store.statistics import StatisticsFile

C = 4


def logits(seed: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, C, 40, 50, generator=generator) + torch.tensor([1.5, 0, 0, -1]).view(1, C, 1, 1)


def counted(*sources: str, batches: int = 3) -> blda_cli.LogitStatistics:
    statistics = blda_cli.LogitStatistics(C, sources or ("pseudo", "soft"))
    for seed in range(batches):
        labels = torch.randint(0, C, (2, 40, 50), generator=torch.Generator().manual_seed(seed))
        statistics.update(logits(seed), labels if "ground_truth" in sources else None)
    return statistics


def test_importing_it_does_not_wait_for_torch() -> None:
    code = "import sys, blda_cli; print(sorted({'torch', 'numpy', 'h5py'} & set(sys.modules)), dir(blda_cli))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] ")
    assert all(repr(name) in done.stdout for name in blda_cli.__all__)
    assert all(hasattr(blda_cli, name) for name in blda_cli.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Aligment'"):
        _ = blda_cli.Aligment  # codespell:ignore


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"shift": "quantile", "tau": 0.4, "label_source": "soft", "density": "mixture"},
        {"method": "logit-adjust"},
        {"preset": "published"},
        {"preset": "published", "tau": 0.7},
    ],
    ids=str,
)
def test_it_predicts_what_the_fitted_correction_does(tmp_path: Path, choices: dict[str, Any]) -> None:
    statistics = counted()
    blda_cli.write_statistics(tmp_path / "s.h5", statistics, ["a", "b", "c", "d"])
    alignment = blda_cli.Alignment.from_file(tmp_path / "s.h5", **choices)
    settings = chosen_settings({key: value for key, value in choices.items() if key != "preset"}, choices.get("preset"))
    expected = fit_correction(settings, Evidence(statistics, statistics.cells[settings.label_source]))
    unseen = logits(9)
    assert torch.equal(alignment.predict(unseen), expected.predict(unseen))
    torch.testing.assert_close(alignment.scores(unseen), expected.scores(unseen))
    assert not torch.equal(alignment.predict(unseen), unseen.argmax(dim=1))
    again = blda_cli.Alignment.fit(statistics, **choices).to("cpu")
    assert torch.equal(again.predict(unseen), alignment.predict(unseen))
    assert again.settings == alignment.settings
    assert isinstance(alignment.settings.tau, float)
    assert alignment.classes.names == ("a", "b", "c", "d")


def test_norms_tell_a_network_that_is_sure_of_what_is_wrong(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, C, 1)).eval()
    before = {name: values.clone() for name, values in network.state_dict().items()}
    with torch.no_grad(), blda_cli.ObservedNorms(network) as norms:
        network(5 + torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert norms.distance > 0.1
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())
    sure = blda_cli.LogitStatistics(C, ["pseudo"])
    own = logits(0)
    sure.update(own + 9 * nn.functional.one_hot(own.argmax(dim=1), C).movedim(-1, 1))
    assert blda_cli.Alignment.fit(sure).settings.tau == 0
    away = blda_cli.Alignment.fit(sure, norm_distance=norms.distance)
    assert away.settings.tau != 0
    blda_cli.write_statistics(tmp_path / "s.h5", sure, norm_distance=norms.distance)
    assert blda_cli.Alignment.from_file(tmp_path / "s.h5").settings == away.settings
    with blda_cli.ObservedNorms(nn.Conv2d(3, 5, 1)) as none:
        pass
    assert none.distance == 0


def test_choices_are_those_of_the_command() -> None:
    assert chosen_settings({}).tau == "auto"
    assert chosen_settings({"shift": "quantile"}).shift is Shift.QUANTILE
    assert chosen_settings({}, "published") == PUBLISHED
    assert chosen_settings({"tau": 0.5}) == AlignmentSettings(tau=0.5)
    for choices in ({"strength": 1}, {"method": "bald"}, {"preset": "exact"}, {"preset": "strong"}):
        with pytest.raises(ValueError, match=r"strength|bald|exact|use collect_stats and align with it"):
            blda_cli.Alignment.fit(counted(), **choices)


def test_anchors_of_another_file(tmp_path: Path) -> None:
    for name, batches in (("target", 1), ("source", 3)):
        blda_cli.write_statistics(tmp_path / f"{name}.h5", counted(batches=batches))
    shift: dict[str, Any] = {"shift": "location", "tau": 1.0}
    own = blda_cli.Alignment.from_file(tmp_path / "target.h5", **shift)
    other = blda_cli.Alignment.from_file(tmp_path / "target.h5", anchors=tmp_path / "source.h5", **shift)
    assert not torch.equal(own.scores(logits(9)), other.scores(logits(9)))
    assert own.classes.names[0] == "class 0"


def test_logits_of_other_classes_are_refused() -> None:
    alignment = blda_cli.Alignment.fit(counted())
    for wrong in (torch.randn(1, C + 1, 5), torch.randn(C)):
        with pytest.raises(ValueError, match=r"tensor \[N, 4, H, W\], not"):
            alignment.predict(wrong)


def test_what_is_counted_is_told_per_class() -> None:
    told = counted("pseudo").compute()
    assert set(told) == {"predicted_share", "bias", "bias_low", "bias_high"}
    assert told["bias"].argmax() == 0
    assert told["predicted_share"].sum() == pytest.approx(1)
    assert bool((told["bias_low"] <= told["bias_high"]).all())
    labelled = counted("pseudo", "ground_truth")
    assert labelled.confusion is not None
    assert torch.equal(labelled.compute()["iou"], labelled.confusion.iou())
    assert torch.equal(labelled.compute()["true_bias"], labelled.confusion.bias())
    with pytest.raises(ValueError, match="labels are needed"):
        labelled.update(logits(0))


def test_images_without_names_are_told_apart() -> None:
    """The sample depends on the names: two updates of unnamed images are those of four named ones."""
    named = blda_cli.LogitStatistics(C)
    named.update(torch.cat([logits(0), logits(1), logits(2)]), keys=[str(number) for number in range(6)])
    assert torch.equal(counted().sample.priorities, named.sample.priorities)
    assert torch.equal(counted().sample.images, named.sample.images)


def test_statistics_are_written_and_read(tmp_path: Path) -> None:
    blda_cli.write_statistics(tmp_path / "s.h5", counted(), model={"name": "mine"})
    content = blda_cli.read_statistics(str(tmp_path / "s.h5"))
    assert content.statistics.images == 6
    assert content.model == {"name": "mine"}
    assert content.complete
    with pytest.raises(BldaError, match="19 classes are named, the statistics are of 4"):
        blda_cli.write_statistics(tmp_path / "t.h5", counted(), "cityscapes")


def test_a_report_in_one_call(tmp_path: Path) -> None:
    blda_cli.write_statistics(tmp_path / "s.h5", counted())
    report = blda_cli.report(tmp_path / "s.h5")
    assert report.named("over") == ["class 0"]
    assert not (tmp_path / "report").exists()
    blda_cli.report(str(tmp_path / "s.h5"), output=tmp_path / "report", compare=True)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.html", "report.json", "report.csv"}
    with pytest.raises(BldaError, match="exists already"):
        blda_cli.report(tmp_path / "s.h5", output=tmp_path / "report")


def test_former_names_still_work_and_name_the_new_one(tmp_path: Path) -> None:
    statistics = blda_cli.LogitStatistics(3)
    statistics.update(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    with pytest.warns(DeprecationWarning, match="norm_distance"):
        blda_cli.write_statistics(tmp_path / "old.h5", statistics, norm_shift=0.25)
    assert blda_cli.read_statistics(tmp_path / "old.h5").provenance.norm_distance == 0.25
    with pytest.warns(DeprecationWarning, match="norm_distance"):
        blda_cli.Alignment.fit(statistics, norm_shift=0.25)
    with blda_cli.ObservedNorms(torch.nn.Sequential()) as norms, pytest.warns(DeprecationWarning, match="distance"):
        assert norms.shift == 0


def test_what_an_older_file_does_not_hold_is_unknown() -> None:
    assert Provenance.from_json({"norm_shift": 0.25}).norm_distance == 0.25
    assert Provenance.from_json({}).norm_distance is None
    assert Provenance.from_json(Provenance(norm_distance=0.0).as_json()).norm_distance == 0.0


def test_commands_from_python(tmp_path: Path) -> None:
    drawn = tmp_path / "images"
    drawn.mkdir()
    for image in ("a", "b"):
        Image.fromarray(np.full((16, 16, 3), 128, dtype=np.uint8)).save(drawn / f"{image}.png")
        made = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(ord(image)))
        np.save(drawn / f"{image}.npy", made.numpy())
    options: dict[str, Any] = {"model": f"logits:{drawn}", "images": str(drawn / "*.png")}
    content = blda_cli.collect_stats(**options, output=tmp_path / "s.h5")
    assert isinstance(content, StatisticsFile)
    assert content.statistics.images == 2
    record = blda_cli.align(**options, stats=tmp_path / "s.h5", tau=0.5, output=tmp_path / "aligned")
    assert record.alignment.tau == 0.5
    assert record.provenance.options["--tau"] == "0.5"
    report = blda_cli.report(tmp_path / "s.h5", [tmp_path / "aligned"], output=tmp_path / "report")
    assert [run.name for run in report.runs] == ["aligned"]
    assert (tmp_path / "report" / "report.html").is_file()
    file = tmp_path / "s.h5"
    again: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (blda_cli.collect_stats, options | {"output": file}),
        (blda_cli.align, options | {"stats": file, "output": tmp_path / "aligned"}),
        (blda_cli.report, {"stats": file, "output": tmp_path / "report"}),
        (blda_cli.check, options | {"write_model": file}),
        (blda_cli.merge, {"parts": [file], "output": file}),
        (blda_cli.write_statistics, {"path": file, "statistics": counted()}),
    ]
    for function, given in again:
        with pytest.raises(blda_cli.BldaError, match=r"(?<!-)overwrite=True"):
            function(**given)
    with pytest.raises(blda_cli.BldaError, match="--tau = 2000 should be"):
        blda_cli.align(**options, tau=2000, output=tmp_path / "b")
    with pytest.raises(blda_cli.BldaError, match="--density does nothing with --method blda --shift negative"):
        blda_cli.align(**options, density="mixture", output=tmp_path / "b")
    with pytest.raises(TypeError, match="no option 'tua'"):
        blda_cli.align(**options, tua=1, output=tmp_path / "b")


def test_a_loop_with_the_commands_keys_predicts_what_the_command_does(tmp_path: Path) -> None:
    drawn = tmp_path / "images" / "drive"
    drawn.mkdir(parents=True)
    frames = {f"drive/{name}": logits(ord(name), 1) for name in "abc"}
    for key, values in frames.items():
        Image.fromarray(np.full((40, 50, 3), 128, dtype=np.uint8)).save(tmp_path / "images" / f"{key}.png")
        np.save(tmp_path / "images" / f"{key}.npy", values[0].numpy())
    options: dict[str, Any] = {"model": f"logits:{tmp_path / 'images'}", "images": str(tmp_path / "images/**/*.png")}
    blda_cli.collect_stats(**options, output=tmp_path / "s.h5")
    blda_cli.align(**options, stats=tmp_path / "s.h5", output=tmp_path / "aligned")
    statistics = blda_cli.LogitStatistics(C)
    for key, values in frames.items():
        statistics.update(values, keys=[key])
    alignment = blda_cli.Alignment.fit(statistics)
    assert alignment.settings.tau != 0
    for key, values in frames.items():
        written = np.asarray(Image.open(tmp_path / "aligned" / "predictions" / f"{key}.png"))
        assert np.array_equal(alignment.predict(values)[0].numpy(), written)


def normed() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, C, 1))
    return network.eval().requires_grad_(False)


def test_a_loop_with_mixed_norms_predicts_what_the_command_does(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    frames = {name: np.random.default_rng(ord(name)).integers(60, 200, (40, 50, 3), dtype=np.uint8) for name in "abc"}
    for name, pixels in frames.items():
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    network = normed()
    torch.save(network, tmp_path / "net.pt")
    (tmp_path / "net.py").write_text(
        "import pathlib, torch\n"
        "def network():\n    return torch.load(pathlib.Path(__file__).with_name('net.pt'), weights_only=False)\n"
    )
    description = f'[segmenter]\nkind = "python"\nfactory = "{tmp_path / "net.py"}:network"\n'
    description += (
        '[preprocessing]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n[classes]\nnames = ["a", "b", "c", "d"]\n'
    )
    (tmp_path / "net.toml").write_text(description)
    options: dict[str, Any] = {"model": str(tmp_path / "net.toml"), "images": str(tmp_path / "images")}
    blda_cli.align(**options, norm_weight=0.6, tau=0.5, output=tmp_path / "aligned")
    statistics = blda_cli.LogitStatistics(C)
    inputs = {name: torch.from_numpy(pixels).movedim(-1, 0)[None] / 255 for name, pixels in frames.items()}
    with blda_cli.InstanceNorms(network, 0.6):
        for name, image in inputs.items():
            statistics.update(network(image), keys=[name])
        blda_cli.write_statistics(tmp_path / "s.h5", statistics, norm_distance=0.1, norm_weight=0.6)
        alignment = blda_cli.Alignment.from_file(tmp_path / "s.h5", tau=0.5)
        aligned = {name: alignment.predict(network(image))[0].numpy() for name, image in inputs.items()}
    for name, found in aligned.items():
        assert np.array_equal(found, np.asarray(Image.open(tmp_path / "aligned" / "predictions" / f"{name}.png")))


def test_less_is_corrected_where_norms_were_mixed() -> None:
    own, mixed = (blda_cli.Alignment.fit(counted(), norm_distance=0.1, norm_weight=weight) for weight in (1.0, 0.6))
    assert own.settings == blda_cli.Alignment.fit(counted(), norm_distance=0.1).settings
    assert float(own.settings.tau) > float(mixed.settings.tau) > 0


def test_logits_of_other_norms_are_warned_of() -> None:
    network, images = normed(), torch.rand(2, 3, 40, 50)
    mixed = counted()
    alignment = blda_cli.Alignment.fit(mixed, norm_weight=0.6, tau=0.5)
    assert repr(alignment) == "Alignment(blda negative, τ 0.5, norm weight 0.6, 4 classes, on cpu)"
    for function in (alignment.predict, alignment.scores):
        with pytest.warns(
            UserWarning, match=r"norm weight 0\.6: use alignment\.module\(network\), or .* 0\.6\)"
        ) as warned:
            function(network(images))
        assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match=r"norm weight 0\.6"), blda_cli.InstanceNorms(network, 0.9):
        alignment.predict(network(images))
    target = replace(alignment, norms=Norms({}, images=8, source_images=8))
    assert "target norms" in repr(target)
    with pytest.warns(UserWarning, match=r"target norms: use alignment\.module\(network\)$"):
        target.predict(network(images))
    with warnings.catch_warnings(action="error"):
        with blda_cli.InstanceNorms(network, 0.6):
            expected = alignment.predict(network(images))
        assert torch.equal(alignment.module(network)(images).argmax(dim=1), expected)
        blda_cli.Alignment.fit(mixed, norm_weight=1.0).predict(network(images))
    with pytest.raises(BldaError, match=r"norm_weight = 1\.5 should be between 0 and 1"):
        blda_cli.Alignment.fit(mixed, norm_weight=1.5)


@pytest.mark.parametrize("choices", [{}, {"shift": "location"}, {"shift": "quantile"}, {"method": "logit-adjust"}])
def test_logits_of_a_network_that_learns_are_corrected(choices: dict[str, Any]) -> None:
    alignment = blda_cli.Alignment.fit(counted(), **choices)
    learning = logits(5).requires_grad_()
    assert torch.equal(alignment.predict(learning), alignment.predict(logits(5)))
    alignment.scores(learning).sum().backward()
    assert learning.grad is not None


def test_what_is_printed_is_short() -> None:
    assert repr(blda_cli.Alignment.fit(counted(), tau=0.5)) == "Alignment(blda negative, τ 0.5, 4 classes, on cpu)"
    assert repr(counted()) == "LogitStatistics(4 classes, 6 images, 12,000 pixels, pseudo, soft)"


def test_numpy_arrays_and_bad_input() -> None:
    statistics = counted()
    alignment = blda_cli.Alignment.fit(statistics, tau=0.5)
    values = logits(5)
    found = alignment.predict(values.numpy())
    assert isinstance(found, np.ndarray)
    assert (found == alignment.predict(values).numpy()).all()
    assert np.array_equal(alignment.scores(values.numpy()), alignment.scores(values).numpy())
    flipped = values.numpy()[:, :, ::-1]
    flipped.flags.writeable = False
    with warnings.catch_warnings(action="error"):
        assert np.array_equal(alignment.predict(flipped), found[:, ::-1])
    with pytest.raises(ValueError, match="channels last"):
        alignment.predict(values.movedim(1, -1))
    values[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        alignment.scores(values, check_finite=True)
    with pytest.warns(UserWarning, match="overcorrects"):
        blda_cli.Alignment.fit(statistics, tau=1.5)
    for tau in (float("nan"), -1, "strong"):
        with pytest.raises(ValueError, match=r"tau = .* should be"):
            blda_cli.Alignment.fit(statistics, tau=tau)


def test_a_file_is_replaced_only_if_asked_for(tmp_path: Path) -> None:
    blda_cli.write_statistics(tmp_path / "s.h5", counted())
    with pytest.raises(BldaError, match="exists already"):
        blda_cli.write_statistics(tmp_path / "s.h5", counted())
    blda_cli.write_statistics(tmp_path / "s.h5", counted(), overwrite=True)


@pytest.mark.parametrize("choices", [{}, {"shift": "location"}, {"shift": "quantile"}, {"method": "logit-adjust"}])
def test_logits_on_another_device_are_refused_by_name(choices: dict[str, Any]) -> None:
    alignment = blda_cli.Alignment.fit(counted(), **choices)
    elsewhere = logits(0).to("meta")
    for call in (alignment.predict, alignment.scores):
        with pytest.raises(ValueError, match="logits are on meta, the alignment on cpu"):
            call(elsewhere)
    assert alignment.to("meta").device == torch.device("meta")
