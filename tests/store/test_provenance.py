"""The record of how a file came to be, those of earlier versions included."""

import json
from typing import Any

import pytest

from blda_cli.store.provenance import Provenance


def test_a_record_survives_json() -> None:
    part = Provenance(
        "blda collect-stats",
        {"--model": "net.toml", "--flip": True, "--label-source": ["soft"]},
        "2026-01-02T03:04:05+00:00",
        {"blda": "1"},
        "frames",
        {"encoding": "ids", "ignore": None},
        "target",
        0.5,
        {"number": 1, "of": 2, "images": 9, "keys": "sha256:1"},
        {"a": "cut"},
    )
    whole = Provenance("blda merge", merged=(part, Provenance()))
    assert Provenance.from_json(json.loads(json.dumps(whole.as_json()))) == whole
    assert Provenance().as_json() == {"norms": "source"}


def test_what_earlier_versions_wrote_is_read() -> None:
    old: dict[str, Any] = {
        "command": "blda collect-stats --flip",
        "date": "x",
        "versions": {},
        "source": "frames",
        "labels": None,
    }
    assert Provenance.from_json(old) == Provenance("blda collect-stats --flip", date="x", source="frames")
    assert Provenance.from_json({"merged": [old], "mixtures/pseudo": "online"}).merged[0].source == "frames"


def test_the_options_of_a_sum_are_those_of_all_its_parts() -> None:
    one = Provenance(options={"--model": "net.toml", "--images": "a", "--flip": True})
    other = Provenance(options={"--model": "net.toml", "--images": "b"})
    whole = Provenance(options={"--output": "whole.h5"}, merged=(one, other))
    assert whole.common_options() == {"--model": "net.toml"}
    assert one.common_options() == one.options


@pytest.mark.parametrize(
    "content",
    [{"options": 3}, {"skipped": ["a"]}, {"command": 1}, {"merged": 1}, {"merged": [3]}, {"labels": "ids"}, 3, None],
)
def test_what_is_no_record_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match="provenance"):
        Provenance.from_json(content)  # type: ignore[arg-type]
