"""Provenance record of statistics, ``run.json`` and reports: command line, options, versions, timestamp."""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Self, get_type_hints

import h5py
import numpy
import torch

from blda_cli.typed import check_type
from blda_cli.version import __version__

DESCRIPTION_OPTIONS = ("--weights", "--weights-key", "--set", "--classes")
"""The options that change what a model's description says."""

INFERENCE_OPTIONS = ("--slide", "--stride", "--scales", "--flip", "--preset")
"""The options that change how images are run."""

_SHARD: dict[str, Any] = {"number": int, "of": int, "images": int, "keys": str}
_LABELS: dict[str, Any] = {
    "encoding": str | None,
    "mapping": Mapping[str, str] | None,
    "source": str | None,
    "ignore": int | None,
}


@dataclass(frozen=True)
class Provenance:
    """How an output was made.

    Attributes:
        command: the command line.
        options: the options that were given, by name (``--model``), as they are written; one that is on or off is
            true or false, one of several values a list. Files of earlier versions have none.
        date: ISO 8601.
        versions: of the program and its libraries.
        source: where the images are from, as it was given.
        labels: statistics: source, encoding and ignored value of the labels counted; predictions: encoding and
            mapping that the model's description gives for labels.
        norms: the norm source, as ``--norms``.
        norm_distance: how far the images' norm statistics lie from the network's own, see
            :attr:`blda_cli.segmenters.norms.ObservedNorms.distance`; of a sum the mean over its images.
        shard: which of a job's shards of the images this is, see :class:`blda_cli.runtime.shards.ArrayShard`.
        bits: how many of 16 bits the images' values use, where the model's description does not state it.
        skipped: why each image that was passed over could not be read, by key.
        merged: of the files that this one is the sum of.
        doubts: findings of the check before the run, one sentence per kind of finding (``weights``, ``description``).
        notes: statistics: the remarks that were made when they were collected, which commands that are given the file
            do not repeat.
    """

    command: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    labels: Mapping[str, Any] | None = None
    norms: str = "source"
    norm_distance: float | None = None
    shard: Mapping[str, Any] | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    merged: tuple["Provenance", ...] = ()
    doubts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bits: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read the JSON of :meth:`as_json`, ignoring unknown fields.

        Raises:
            ValueError: it is no such record; the message names the wrong entry.
        """
        check_type(content, Mapping[str, Any], "provenance")
        hints = get_type_hints(cls)
        if "norm_shift" in content:  # its name in earlier versions
            content = {"norm_distance": content["norm_shift"], **content}
        known = {one.name: content[one.name] for one in fields(cls) if one.name in content}
        parts = known.pop("merged", ())
        for name, value in known.items():
            check_type(value, hints[name], f"provenance.{name}")
        check_type(parts, list[Mapping[str, Any]], "provenance.merged")
        known["notes"] = tuple(known.get("notes", ()))
        record = cls(**known, merged=tuple(cls.from_json(part) for part in parts))
        if record.shard is not None:
            for name, hint in _SHARD.items():
                check_type(record.shard.get(name), hint, f"provenance.shard.{name}")
            if not 1 <= record.shard["number"] <= record.shard["of"] <= 10**6:
                raise ValueError(f"provenance.shard is {record.shard['number']} of {record.shard['of']}")
        for name, hint in _LABELS.items():
            check_type((record.labels or {}).get(name), hint, f"provenance.labels.{name}")
        return record

    def as_json(self) -> dict[str, Any]:
        """As JSON, without empty fields."""
        content = {name: value for name, value in asdict(self).items() if value or value == 0.0}
        return {**content, "merged": [part.as_json() for part in self.merged]} if self.merged else content

    def all_doubts(self) -> dict[str, str]:
        """The doubts, of a sum those of all its parts."""
        found = dict(self.doubts)
        for part in self.merged:
            found = {**part.all_doubts(), **found}
        return found

    def all_notes(self) -> set[str]:
        """The remarks, of a sum those of all its parts."""
        return {*self.notes, *(note for part in self.merged for note in part.all_notes())}

    def common_options(self) -> dict[str, Any]:
        """The options; for merged statistics, those that all parts share."""
        parts = [part.common_options() for part in self.merged] or [dict(self.options)]
        return {name: value for name, value in parts[0].items() if all(part.get(name) == value for part in parts)}


def option_words(options: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the given options that have one of some names, as words of a command line."""
    words = []
    for name in names:
        value = options.get(name, False)
        if isinstance(value, bool):
            words += [name] * value
        else:
            words += [word for one in (value if isinstance(value, list) else [value]) for word in (name, str(one))]
    return words


def current_provenance(command: str, options: Mapping[str, Any]) -> Provenance:
    """Provenance record of the present run: command, options, versions, timestamp.

    Args:
        command: the command line, or the call from Python.
        options: by name, as on a command line: ``{"--flip": True, "--tau": "0.3"}``.
    """
    return Provenance(
        command=command,
        options=options,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "blda": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": numpy.__version__,
            "h5py": h5py.__version__,
        },
    )
