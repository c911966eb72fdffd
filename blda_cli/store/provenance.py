"""How a file came to be: the record that statistics, ``run.json`` and reports keep."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self


@dataclass(frozen=True)
class Provenance:
    """How a file came to be.

    Attributes:
        command: the command line.
        options: the options that were given, by name (``--model``), as they are written; one that is on or off is
            true or false, one of several values a list. Files of earlier versions have none.
        date: ISO 8601.
        versions: of the program and what it uses.
        source: where the images are from, as it was given.
        labels: statistics: source, encoding and ignored value of the labels counted; predictions: encoding and
            mapping that the model's description gives for labels.
        norms: what batch norms were to normalise by: as ``--norms``.
        norm_shift: how far the images' averages lie from the network's own, see :class:`blda_cli.core.norms.Norms`.
        shard: which of a job's shards of the images this is, see :class:`blda_cli.runtime.shards.ArrayShard`.
        skipped: why each image that was passed over could not be read, by key.
        merged: of the files that this one is the sum of.
    """

    command: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    labels: Mapping[str, Any] | None = None
    norms: str = "source"
    norm_shift: float = 0.0
    shard: Mapping[str, Any] | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    merged: tuple["Provenance", ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_json` gave; what it does not know is left out.

        Raises:
            TypeError: it is no such record.
        """
        known = {one.name: content[one.name] for one in fields(cls) if one.name in content}
        known["merged"] = tuple(cls.from_json(part) for part in known.get("merged", ()))
        record = cls(**known)
        tables = (record.options, record.versions, record.skipped, record.labels or {}, record.shard or {})
        texts = (record.command, record.date, record.source or "", record.norms)
        fits = all(isinstance(one, Mapping) for one in tables) and all(isinstance(one, str) for one in texts)
        if not fits or not isinstance(record.norm_shift, int | float):
            raise TypeError("its provenance is no record of a command")
        return record

    def as_json(self) -> dict[str, Any]:
        """As JSON, without what is empty."""
        content = {name: value for name, value in asdict(self).items() if value}
        return {**content, "merged": [part.as_json() for part in self.merged]} if self.merged else content

    def common_options(self) -> dict[str, Any]:
        """The options, of a sum those that all its parts were made with."""
        parts = [part.common_options() for part in self.merged] or [dict(self.options)]
        return {name: value for name, value in parts[0].items() if all(part.get(name) == value for part in parts)}
