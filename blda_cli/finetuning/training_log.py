"""Training logs: averaged metrics, detection of non-finite losses, TensorBoard events."""

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blda_cli.errors import BldaError, require_extra
from blda_cli.finetuning.methods.objective import Losses
from blda_cli.finetuning.trainer import StepReport
from blda_cli.runtime.process_group import all_sum
from blda_cli.runtime.shards import current_shard


class StepLog:
    """Sums of the logged metrics, on the device until they are read."""

    def __init__(self) -> None:
        self._losses: list[Losses] = []
        self._labelled: Tensor | float = 0.0
        self._kept: Tensor | float = 0.0
        self._since = time.perf_counter()

    def add(self, report: StepReport) -> None:
        """Add a step's metrics."""
        self._losses.append(report.losses)
        self._labelled = self._labelled + report.labelled
        self._kept = self._kept + report.kept

    def take(self, crops: int) -> dict[str, Any]:
        """Means since the last call; ``crops`` is the number of crops per step."""
        steps = self._losses
        means = [torch.stack([step[name] for step in steps]).mean() for name in steps[0]]
        averaged = all_sum(torch.stack(means)) / current_shard().world
        losses = dict(zip(steps[0], averaged.tolist(), strict=True))
        labelled, kept = (all_sum(torch.as_tensor(counts)) for counts in (self._labelled, self._kept))
        now = time.perf_counter()
        entry: dict[str, Any] = {
            "loss": sum(losses.values()),
            "losses": losses,
            "crops_per_second": crops * len(steps) / (now - self._since),
        }
        if bool(labelled.any()):
            entry["pseudo_share"] = (labelled / labelled.sum()).tolist()
            entry["kept_share"] = (kept / labelled).tolist()
        self._losses, self._labelled, self._kept, self._since = [], 0.0, 0.0, now
        return entry


class LossWatch:
    """Checks losses one step late, so that the host does not wait for the device."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, list[str], list[str], Tensor, torch.cuda.Event | None]] = deque()

    def see(self, step: int, files: list[str], report: StepReport) -> None:
        """Queue this step's losses and check the previous step's.

        Raises:
            BldaError: a loss of the previous step is not finite.
        """
        losses = torch.stack(list(report.losses.values()))
        event = None
        if losses.device.type == "cuda":
            losses = losses.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((step, files, list(report.losses), losses, event))
        while len(self._waiting) > 1:
            self._look()

    def settle(self) -> None:
        """Check all queued losses."""
        while self._waiting:
            self._look()

    def _look(self) -> None:
        step, files, names, losses, event = self._waiting.popleft()
        if event is not None:
            event.synchronize()
        for name, value in zip(names, losses.tolist(), strict=True):
            if not math.isfinite(value):
                raise BldaError(
                    f"iteration {step}: the {name} loss is {value}; the batch was {', '.join(dict.fromkeys(files))}. "
                    "The last checkpoint is kept: look at these files, or go on with a smaller --learning-rate or "
                    "without --amp"
                )


class EventLog:
    """TensorBoard events of the entries of ``metrics.jsonl``."""

    def __init__(self, path: Path, class_names: tuple[str, ...], step: int) -> None:
        """Open a log; events after ``step`` of an earlier run are dropped.

        Raises:
            BldaError: tensorboard is not installed.
        """
        require_extra("tensorboard", "tensorboard", "for --tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._names = class_names
        self._writer = SummaryWriter(str(path), purge_step=step + 1)

    def log(self, entry: dict[str, Any]) -> None:
        """Add an entry; lists are by class."""
        self._add("", entry, entry["iteration"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _add(self, name: str, value: Any, step: int) -> None:
        if isinstance(value, list):
            value = dict(zip(self._names, value, strict=True))
        if isinstance(value, dict):
            for key, one in value.items():
                self._add(f"{name}/{key}" if name else key, one, step)
        elif isinstance(value, int | float) and name != "iteration":
            self._writer.add_scalar(name, value, step)
