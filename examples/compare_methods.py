"""Train a network by every method on the same data and write one table: what each method brings, and what it costs.

    python examples/compare_methods.py --config examples/streets/compare.toml --output comparison/

The config is one of ``blda finetune``, with validation images. Network, data, seeds, optimiser and the number of
images shown are its and the same for all; a method brings only what it was published with. The two methods that end up
best are trained once more with masked consistency. ``comparison/table.md`` and ``table.json`` are written anew after
every run; runs that are done are not made again, and one that was stopped goes on.
"""

import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch

from blda_cli.errors import BldaError
from blda_cli.files import to_json
from blda_cli.finetuning.loop import Machine
from blda_cli.finetuning.run import train
from blda_cli.finetuning.run_folder import RunFolder
from blda_cli.finetuning.settings import Settings, read_settings
from blda_cli.runtime.device import choose_device
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.store.provenance import Provenance

UNTRAINED = "no training"
METHODS: dict[str, dict[str, Any]] = {
    UNTRAINED: {"training.method": "source", "training.learning_rate": 0.0, "training.iterations": 1},
    "source only": {"training.method": "source"},
    "ST": {"training.method": "st"},
    "CBST": {"training.method": "cbst"},
    "CBST-SP": {"training.method": "cbst-sp"},
    "CAG": {"training.method": "cag"},
    "DACS": {"training.method": "dacs"},
    "DACS + BLDA": {"training.method": "blda"},
}
MASKED = {"host.masked_consistency": 1.0}
WITH_MASKED = " + masked consistency"
SCORES = {"mean_iou": "mIoU", "mean_accuracy": "mean accuracy", "iou_spread": "std of class IoU"}


@click.command()
@click.option("--config", type=click.Path(path_type=Path, exists=True), required=True, help="Of blda finetune.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A folder for runs and tables.")
@click.option("--seeds", default=1, show_default=True, help="Runs of each method.")
@click.option("--only", multiple=True, type=click.Choice(list(METHODS)), help="Only these methods; repeatable.")
@click.option("--masked", default=2, show_default=True, help="So many of the best once more, with masked consistency.")
@click.option("--device", default="auto", show_default=True)
def main(config: Path, output: Path, seeds: int, only: tuple[str, ...], masked: int, device: str) -> None:
    """Train, score, and write the table."""
    common = read_settings(config)
    results: dict[str, list[dict[str, Any]]] = {}

    def train(name: str, changes: dict[str, Any]) -> None:
        results[name] = []
        for seed in range(1 if name == UNTRAINED else seeds):
            settings = common.with_values({**changes, "training.seed": seed}, name).resolved()
            results[name].append(result_of(settings, output / name.replace(" ", "-") / f"seed-{seed}", device))
            write(results, output)
            print(f"{name}, seed {seed}: " + " / ".join(cells(results[name][-1:])[:3]), flush=True)

    for name in only or METHODS:
        train(name, METHODS[name])
    trained = [name for name in results if name not in (UNTRAINED, "source only")]
    best = sorted(trained, key=lambda name: -mean(results[name], "mean_iou"))[:masked]
    for name in best:
        train(name + WITH_MASKED, {**METHODS[name], **MASKED})
    print((output / "table.md").read_text())


def result_of(settings: Settings, folder: Path, device: str) -> dict[str, Any]:
    """What a run leaves: scores, seconds a step, bytes at the peak; from an earlier call, where that made it."""
    kept = folder / "result.json"
    if not kept.exists():
        # A process of its own, so that its peak of memory is its own.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            try:
                kept.write_text(to_json(pool.apply(run, (settings, folder, device))))
            except BldaError as error:
                raise click.ClickException(str(error)) from error
    result: dict[str, Any] = json.loads(kept.read_text())
    return result


def run(settings: Settings, folder: Path, name: str) -> dict[str, Any]:
    """Train once, going on where an earlier call was stopped."""
    device = choose_device(name)
    machine = Machine(device, workers=2)
    resume = RunFolder(folder).checkpoint.exists()
    clock = Clock(device)
    ended = train(settings, folder, resume=resume, machine=machine, provenance=Provenance(), monitor=clock)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"validation": ended["validation"], "seconds_per_iteration": clock.seconds / clock.steps, "peak_bytes": peak}


class Clock(SilentMonitor):
    """Measures the training with what a method looks at in between; not the validation and the export.

    Seconds of the processor where it does the work, as other programs may be running beside this one.

    Attributes:
        seconds: so far.
        steps: in them.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds, self.steps = 0.0, 0
        self._now = time.perf_counter if device.type == "cuda" else time.process_time
        self._training, self._since = False, self._now()

    def start(self, what: str, total: int, done: int = 0, unit: str = "images") -> None:  # noqa: ARG002
        """See :class:`Monitor`; before the first stage or step, labels are read, and after the last, statistics."""
        if what.startswith("reading labels"):
            self._since = self._now()
        self._training = what == "training"

    def advance(self, count: int) -> None:
        """See :class:`Monitor`."""
        if self._training:
            self.steps += count
            self.seconds += self._now() - self._since
            self._since = self._now()


def write(results: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """Write ``table.json`` and ``table.md``."""
    (output / "table.json").write_text(json.dumps(results, indent=1))
    (output / "table.md").write_text("\n".join(table(results)) + "\n")


def table(results: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Markdown: a row per method, means over the seeds and their standard deviation, in percent."""
    classes = list(next(iter(results.values()))[0]["validation"]["iou"])
    heads = ["method", *SCORES.values(), *classes, "s / iteration", "peak memory"]
    yield f"| {' | '.join(heads)} |"
    yield "|" + " --- |" * len(heads)
    for name, runs in results.items():
        if runs:
            yield f"| {name} | {' | '.join(cells(runs))} |"


def cells(runs: list[dict[str, Any]]) -> list[str]:
    """A row of the table."""
    row = []
    for what in SCORES:
        values = [100 * one["validation"][what] for one in runs]
        row.append(f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(runs) > 1 else ""))
    for name in runs[0]["validation"]["iou"]:
        values = [one["validation"]["iou"][name] for one in runs]
        row.append("–" if None in values else f"{100 * statistics.mean(values):.1f}")
    seconds = statistics.mean(one["seconds_per_iteration"] for one in runs)
    return [*row, f"{seconds:.2f}", f"{max(one['peak_bytes'] for one in runs) / 1e9:.2f} GB"]


def mean(runs: list[dict[str, Any]], what: str) -> float:
    """Of a score over the seeds."""
    return float(statistics.mean(one["validation"][what] for one in runs))


if __name__ == "__main__":
    main()
