import json
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from blda_cli.core.methods import AlignmentSettings
from blda_cli.data.pillow_images import PillowImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.store.predictions import (
    ARGMAX,
    PREDICTIONS,
    SCORES,
    PredictionWriter,
    RunRecord,
    merge_records,
    prediction_path,
    read_record,
    write_classifications,
    write_record,
)
from blda_cli.store.provenance import Provenance


def record(**changes: object) -> RunRecord:
    content: dict[str, object] = {
        "classes": ["road", "tree", "car"],
        "palette": [[10, 20, 30], [40, 50, 60], [70, 80, 90]],
        "ids": [0, 1, 2],
        "model": {"kind": "python"},
        "settings": {**asdict(AlignmentSettings()), "scores": False},
        "statistics": {"file": "s.h5", "sha256": "sha256:1"},
        "images": {"a": "/x/a.png"},
        "pixels_before": [0, 0, 0],
        "pixels_after": [0, 0, 0],
    }
    return RunRecord(**{**content, **changes})  # type: ignore[arg-type]


def image(key: str) -> ImageSource:
    return PillowImage(Path(f"{key}.png"), key)


def test_record_comes_back(tmp_path: Path) -> None:
    one = record(changed={"a": 0.5}, provenance=Provenance("blda align", skipped={"b": "cut"}))
    write_record(tmp_path / "run.json", one)
    assert read_record(tmp_path / "run.json") == one
    assert one.class_set.palette[2] == (70, 80, 90)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as the record"),
        ("[]", "cannot be read as the record"),
        ("{}", "cannot be read as the record"),
        ('{"format": "other", "format_version": 1}', "not a record of predictions"),
        ('{"format": "blda-predictions", "format_version": 2}', "format version 2, this blda reads up to 1"),
        ('{"format": "blda-predictions", "format_version": 1, "extra": 1}', "cannot be read as the record"),
    ],
)
def test_other_records_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(BldaError, match=message):
        read_record(tmp_path / "run.json")


def test_folder_without_a_record(tmp_path: Path) -> None:
    with pytest.raises(BldaError, match=r"holds no run\.json; blda align makes such a folder"):
        read_record(tmp_path / "run.json")


def test_pictures_counts_and_scores(tmp_path: Path) -> None:
    before = np.array([[0, 0, 1], [2, 2, 2]], dtype=np.uint8)
    after = np.array([[0, 1, 1], [2, 0, 2]], dtype=np.uint8)
    scores = torch.randn(3, 2, 3).half()
    with PredictionWriter(tmp_path, record(ids=[7, 8, 300])) as writer:
        for key in ("town/a", "town/b", "c"):
            writer.write(image(key), before, after, scores)
        writer.flush()
    done = writer.record
    assert done.pixels_before == [6, 3, 9]
    assert done.pixels_after == [6, 6, 6]
    assert done.pixels_changed == 6
    assert done.changed == {key: pytest.approx(1 / 3) for key in ("town/a", "town/b", "c")}
    ids = np.array([7, 8, 300])
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "predictions/town/b.png")), ids[after])
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "argmax/town/b.png")), ids[before])
    with h5py.File(tmp_path / "scores/c.h5") as h5:
        assert h5["scores"].dtype == np.float16
        np.testing.assert_array_equal(h5["scores"][:], scores)
        assert list(h5.attrs["classes"]) == ["road", "tree", "car"]


def test_palette(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2]], dtype=np.uint8)
    with PredictionWriter(tmp_path, record(ids=[0, 5, 9])) as writer:
        writer.write(image("a"), labels, labels, None)
        writer.flush()
    with Image.open(tmp_path / "predictions/a.png") as picture:
        assert picture.mode == "P"
        assert np.array(picture).tolist() == [[0, 5, 9]]
        assert np.array(picture.convert("RGB")).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


def test_one_picture_that_cannot_be_written_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "argmax").mkdir()
    (tmp_path / "argmax" / "b").write_text("a file where a folder should be")
    labels = np.zeros((2, 2), dtype=np.uint8)
    with PredictionWriter(tmp_path, record()) as writer:
        for key in ("a", "b/x", "c"):
            writer.write(image(key), labels, labels, None)
        with pytest.raises(BldaError, match=r"x\.png cannot be written"):
            writer.flush()
    assert sorted(writer.record.changed) == ["a", "c"]
    assert writer.record.pixels_before == [8, 0, 0]
    assert not list(tmp_path.rglob("*.part"))


def test_classifier(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path, record(ids=[10, 20, 30])) as writer:
        writer.write(image("b"), np.array(2), np.array(1), None)
        writer.write(image("a"), np.array(0), np.array(0), None)
        writer.flush()
    write_classifications(tmp_path, writer.record)
    assert (tmp_path / "predictions.csv").read_text().splitlines() == [
        "key,argmax,argmax_name,prediction,prediction_name",
        "a,10,road,10,road",
        "b,30,car,20,tree",
    ]
    assert writer.record.changed == {"b": 1.0, "a": 0.0}
    assert not (tmp_path / "predictions").exists()


@pytest.mark.parametrize("key", ["../a", "a/../../../b", "/etc/passwd", ".."])
@pytest.mark.parametrize("kind", [PREDICTIONS, ARGMAX, SCORES])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, key: str, kind: str) -> None:
    if key == "..":  # "...png" is a name like any other
        assert prediction_path(tmp_path, key, kind).parent == tmp_path / kind
        return
    with pytest.raises(BldaError, match="leads out of"):
        prediction_path(tmp_path, key, kind)
    with PredictionWriter(tmp_path / "out", record()) as writer:
        writer.write(image(key), np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), None)
        with pytest.raises(BldaError, match="leads out of"):
            writer.flush()
    assert not list(tmp_path.rglob("*.png"))


def test_a_name_is_looked_at_as_it_stands_and_not_on_the_disk(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out" / PREDICTIONS).mkdir(parents=True)
    (tmp_path / "out" / PREDICTIONS / "east").symlink_to(elsewhere)  # as somebody short of room would move it
    assert prediction_path(tmp_path / "out", "east/1").parent.samefile(elsewhere)


def test_records_of_several_processes_add_up() -> None:
    parts = [
        record(
            images={key: f"/x/{key}.png"},
            pixels_before=[1, 2, 3],
            pixels_after=[3, 2, 1],
            pixels_changed=2,
            changed={key: 0.25},
            classified={key: [0, 1]},
            provenance=Provenance("blda align", skipped={f"not {key}": "cut"}),
        )
        for key in ("a", "b")
    ]
    whole = merge_records(parts)
    assert whole.images == {"a": "/x/a.png", "b": "/x/b.png"}
    assert (whole.pixels_before, whole.pixels_after, whole.pixels_changed) == ([2, 4, 6], [6, 4, 2], 4)
    assert whole.changed == {"a": 0.25, "b": 0.25}
    assert whole.classified == {"a": [0, 1], "b": [0, 1]}
    assert whole.provenance == Provenance("blda align", skipped={"not a": "cut", "not b": "cut"})


def test_record_is_plain_json(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", record(provenance=Provenance("blda align")))
    read = json.loads((tmp_path / "run.json").read_text())
    assert read.pop("format") == "blda-predictions"
    assert read.pop("format_version") == 1
    assert read == {**asdict(record()), "provenance": {"command": "blda align", "norms": "source"}}
