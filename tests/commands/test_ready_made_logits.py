from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.commands.conftest import Run

COUNT = 1200


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """Logits of a classifier of three classes that prefers the first, and what is right."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, COUNT)
    values = generator.normal(size=(COUNT, 3)) + 1.5 * np.eye(3)[labels] + [1.5, 0, 0]
    (tmp_path / "logits").mkdir()
    for index, row in enumerate(values):
        np.save(tmp_path / "logits" / f"{index:04}.npy", row.astype(np.float32))
    (tmp_path / "labels.csv").write_text("".join(f"{index:04},{label}\n" for index, label in enumerate(labels)))
    return tmp_path


def test_classifier_from_logits_to_predictions(run: Run, classifier: Path) -> None:
    options = ["--model", f"logits:{classifier / 'logits'}", "--images", classifier / "logits", "--device", "cpu"]
    stats, output = classifier / "s.h5", classifier / "a"
    counting = ["--labels", classifier / "labels.csv", "--label-source", "soft", "--label-source", "ground_truth"]
    result = run("collect-stats", *options, *counting, "--output", stats, "--json")
    assert json.loads(result.stdout)["pixels"] == COUNT
    with h5py.File(stats) as file:
        assert file["confusion"][()].sum() == COUNT
        assert file["cells/ground_truth/counts"][:, 0].sum() == COUNT
    form = ["--label-source", "soft", "--shift", "balanced", "--tau", "1"]
    run("align", *options, "--stats", stats, *form, "--output", output)
    assert {path.name for path in output.iterdir()} == {"run.json", "predictions.csv"}
    with (output / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [f"{index:04}" for index in range(COUNT)]
    assert {row["argmax_name"] for row in rows} == {"class 0", "class 1", "class 2"}
    before, after = (np.array([int(row[name]) for row in rows]) for name in ("argmax", "prediction"))
    values = np.stack([np.load(classifier / "logits" / f"{index:04}.npy") for index in range(COUNT)])
    np.testing.assert_array_equal(before, values.argmax(axis=1))
    labels = np.loadtxt(classifier / "labels.csv", delimiter=",", dtype=int)[:, 1]
    assert (after == labels).mean() > (before == labels).mean() + 0.05
    record = json.loads((output / "run.json").read_text())
    assert record["pixels_after"] == np.bincount(after, minlength=3).tolist()
    assert record["pixels_changed"] == (before != after).sum()


def test_classifier_goes_on_where_it_was(run: Run, classifier: Path) -> None:
    options = ["--model", f"logits:{classifier / 'logits'}", "--images", classifier / "logits", "--device", "cpu"]
    stats, output = classifier / "s.h5", classifier / "a"
    run("collect-stats", *options, "--output", stats)
    run("align", *options, "--stats", stats, "--output", classifier / "whole")
    bad = classifier / "logits" / "0700.npy"
    data = bad.read_bytes()
    bad.write_bytes(data[:20])
    assert "0700.npy: cannot be read" in run("align", *options, "--stats", stats, "--output", output, code=1).stderr
    assert not (output / "predictions.csv").exists()
    bad.write_bytes(data)
    assert "after 700 of 1200" in run("align", *options, "--stats", stats, "--output", output).stderr
    assert (output / "predictions.csv").read_bytes() == (classifier / "whole" / "predictions.csv").read_bytes()


def test_maps_of_logits_with_their_images(run: Run, tmp_path: Path, drawn: Callable[..., None]) -> None:
    drawn(tmp_path, 4, [(40, 48)])
    generator = np.random.default_rng(1)
    for path in (tmp_path / "images").rglob("*.png"):
        target = tmp_path / "logits" / path.relative_to(tmp_path / "images").with_suffix(".npz")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(target, logits=generator.normal(size=(4, 10, 12)).astype(np.float16))
    options = ["--model", f"logits:{tmp_path / 'logits'}", "--images", tmp_path / "images", "--device", "cpu"]
    run("align", *options, "--output", tmp_path / "a")
    pictures = sorted((tmp_path / "a" / "predictions").rglob("*.png"))
    assert len(pictures) == 4
    assert {Image.open(path).size for path in pictures} == {(48, 40)}


def test_more_than_255_classes_with_labels(run: Run, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    labels = generator.choice([3, 255, 257], (24, 32)).astype(np.uint16)
    labels[0] = 65535  # no class
    logits = generator.normal(size=(258, 24, 32)).astype(np.float32)
    np.put_along_axis(logits, np.where(labels < 258, labels, 3)[None].astype(int), 9, axis=0)
    for folder in ("logits", "labels"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "logits" / "a.npy", logits)
    Image.fromarray(labels).save(tmp_path / "labels" / "a.png")
    options = ["--model", f"logits:{tmp_path / 'logits'}", "--images", tmp_path / "logits", "--device", "cpu"]
    stats, output, page = tmp_path / "s.h5", tmp_path / "a", tmp_path / "report"
    counting = ["--labels", tmp_path / "labels", "--label-source", "ground_truth", "--bins", "16"]
    run("collect-stats", *options, *counting, "--output", stats)
    counted = np.bincount(labels[1:].ravel(), minlength=258)
    with h5py.File(stats) as file:
        np.testing.assert_array_equal(file["confusion"][:], np.diag(counted))
    run("align", *options, "--stats", stats, "--method", "none", "--output", output)
    np.testing.assert_array_equal(np.array(Image.open(output / "predictions" / "a.png"))[1:], labels[1:])
    run("report", "--stats", stats, "--aligned", output, "--labels", tmp_path / "labels", "--output", page)
    scores = json.loads((page / "report.json").read_text())
    assert scores["overall"]["runs"]["a"]["mean_iou"] == 1
