"""A job: the inputs of a command beyond its own options."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blda_cli.files import locked
from blda_cli.runtime.monitor import Monitor, SilentMonitor
from blda_cli.runtime.process_group import process_group
from blda_cli.runtime.shards import Shard, current_shard
from blda_cli.store.provenance import Provenance


@dataclass(frozen=True)
class Job:
    """Output, provenance, progress and process of a command.

    Attributes:
        output: the file or folder to write.
        overwrite: replace what is there, once the new output is complete.
        provenance: the command line, versions and time, recorded in the output.
        monitor: receives the progress, and passes on the user's request to stop.
        shard: this process among those of ``torchrun``.
    """

    output: Path
    overwrite: bool = False
    provenance: Provenance = Provenance()  # noqa: RUF009  # frozen
    monitor: Monitor = field(default_factory=SilentMonitor)
    shard: Shard = field(default_factory=current_shard)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Join the other processes, and hold the lock of the output.

        Raises:
            BldaError: another process writes the output, or the others cannot be reached.
        """
        with process_group(), self.lock():
            yield

    def lock(self) -> Any:
        """Hold the lock of the output; the first process does it for all."""
        return locked(self.output) if self.shard.first else nullcontext()

    def recording(self, **known: Any) -> "Job":
        """The same job whose provenance holds more: fields of :class:`Provenance`."""
        return replace(self, provenance=replace(self.provenance, **known))
