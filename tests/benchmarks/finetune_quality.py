"""What fine-tuning brings on real frames: CamVid by day to CamVid at dusk, ESPNet from its Cityscapes weights.

    python tests/benchmarks/finetune_quality.py [--data DIR] [--seeds 3] [--iterations 400] [--device cuda] [--jobs 8]

Trains every variant with every seed and scores the teacher on all dusk frames, before and after what ``blda align``
does unless told otherwise; once with the batch norms' averages of the target images, as it is exported, once with those
that training left. Prints a Markdown table (means over the seeds, ± their standard deviation) and writes everything,
with the classes' scores, as JSON. Runs that are in the JSON file already are not made again.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from blda_cli.core.choices import LabelSource
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.fitting import AlignmentSettings, Evidence, fit_correction, with_default_strength
from blda_cli.core.statistics import LogitStatistics
from blda_cli.data.images import find_images
from blda_cli.data.labels import label_reader
from blda_cli.finetuning.loop import Machine
from blda_cli.finetuning.run import finetune
from blda_cli.finetuning.run_folder import RunFolder
from blda_cli.finetuning.settings import Settings
from blda_cli.runtime.monitor import SilentMonitor
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.base import InferenceOptions
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.norms import enough_for_norms, take_norms, use_norms
from blda_cli.segmenters.spec import parse_model

ROOT = Path(__file__).parents[2]
ESPNET = ROOT / "examples" / "espnet" / "espnet.toml"

VARIANTS: dict[str, dict[str, Any]] = {
    "source only": {"training.method": "source"},
    "dacs": {"training.method": "dacs"},
    "blda": {"training.method": "blda"},
    "blda, τ 1": {"training.method": "blda", "blda.tau": 1.0},
    "blda + masked": {"training.method": "blda", "host.masked_consistency": 1.0},
    "blda, debiased labels": {"training.method": "blda", "blda.debias_pseudo_labels": True},
}
UNTRAINED = "no training"
NORMS = ("target's norms", "norms as trained")


@dataclass(frozen=True)
class Job:
    """One run: a variant with a seed, or no training (seed None)."""

    variant: str
    seed: int | None
    settings: dict[str, Any]
    data: Path
    device: str
    runs: Path | None

    @property
    def key(self) -> str:
        """Its name in the JSON file."""
        return self.variant if self.seed is None else f"{self.variant}, seed {self.seed}"


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--iterations", default=400, show_default=True)
@click.option("--crop", default=192, show_default=True)
@click.option("--learning-rate", default=3e-4, show_default=True)
@click.option("--teacher-momentum", default=0.99, show_default=True, help="The published 0.999 is for 40 000 steps.")
@click.option("--head-factor", default=1.0, show_default=True, help="All layers are pretrained here.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="A setting of all runs, as JSON.")
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="Only these variants; repeatable.")
@click.option("--jobs", default=1, show_default=True, help="Runs at a time.")
@click.option("--runs", type=click.Path(path_type=Path), help="Where run folders are kept.  [default: nowhere]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Where the results are kept.")
def main(
    data: Path,
    device: str,
    seeds: int,
    iterations: int,
    crop: int,
    learning_rate: float,
    teacher_momentum: float,
    head_factor: float,
    changes: tuple[str, ...],
    only: tuple[str, ...],
    jobs: int,
    runs: Path | None,
    json_file: Path | None,
) -> None:
    """Train and score."""
    common: dict[str, Any] = {
        "training.iterations": iterations,
        "training.crop": (crop, crop),
        "training.learning_rate": learning_rate,
        "training.head_factor": head_factor,
        "host.teacher_momentum": teacher_momentum,
        **{key: json.loads(value) for key, _, value in (change.partition("=") for change in changes)},
    }
    results: dict[str, Any] = json.loads(json_file.read_text()) if json_file and json_file.exists() else {}
    todo = [Job(UNTRAINED, None, {}, data, device, runs)] + [
        Job(variant, seed, {**common, **VARIANTS[variant]}, data, device, runs)
        for seed in range(seeds)
        for variant in only or VARIANTS
    ]
    todo = [job for job in todo if job.key not in results]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for key, result in pool.imap_unordered(run, todo):
            results[key] = result
            print(f"{key}: {result['seconds']:.0f} s, {describe(result['scores'])}", flush=True)
            if json_file:
                json_file.write_text(json.dumps(results, indent=1))
    print(f"\n{iterations} steps, crops of {crop}, 2 + 2 a step, AdamW {learning_rate:g}; torch {torch.__version__}\n")
    print("\n".join(table(results)))


def run(job: Job) -> tuple[str, dict[str, Any]]:
    """Train one variant and score what comes out."""
    torch.set_num_threads(1)
    device = torch.device(job.device)
    start = time.perf_counter()
    weights = job.data / "weights" / "espnet_cityscapes_p2_q8.pth"
    camvid = job.data / "camvid"
    spec = parse_model(str(ESPNET), weights)
    if job.seed is None:
        scores = score_norms(load_segmenter(spec, device), camvid)
        return job.key, {"scores": scores, "seconds": time.perf_counter() - start}
    settings = Settings().with_values(
        {
            "data.model": str(ESPNET),
            "data.weights": str(weights),
            "data.source_images": str(camvid / "day" / "images"),
            "data.source_labels": str(camvid / "day" / "labels"),
            "data.target_images": str(camvid / "dusk" / "images"),
            "training.seed": job.seed,
            "run.target_norms": False,
            **job.settings,
        },
        "benchmark",
    )
    with tempfile.TemporaryDirectory() as folder:
        output = (job.runs or Path(folder)) / job.key
        machine = Machine(device, workers=2)
        finetune(settings.resolved(), output, resume=False, machine=machine, provenance={}, monitor=SilentMonitor())
        seconds = time.perf_counter() - start
        run_folder = RunFolder(output)
        metrics = [json.loads(line) for line in run_folder.metrics.read_text().splitlines()]
        scores = score_norms(load_segmenter(parse_model(str(run_folder.model)), device), camvid)
    return job.key, {"scores": scores, "seconds": seconds, "settings": job.settings, "metrics": metrics}


def score_norms(segmenter: Any, camvid: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores with the batch norms' averages as they are, and as the target's images give them."""
    assert isinstance(segmenter, NetworkSegmenter)
    as_trained = score(segmenter, camvid)
    files = find_images(camvid / "dusk" / "images")
    use_norms(segmenter, take_norms(segmenter, enough_for_norms(files), InferenceOptions(), keep_source=False))
    return dict(zip(NORMS, (score(segmenter, camvid), as_trained), strict=True))


def score(segmenter: Any, camvid: Path) -> dict[str, dict[str, Any]]:
    """Scores on all dusk frames by argmax, and after the default alignment with the frames' own statistics."""
    files = find_images(camvid / "dusk" / "images")
    labels = label_reader(files, camvid / "dusk" / "labels", segmenter.classes)
    count = len(segmenter.classes)
    counted = LogitStatistics.empty(count, (LabelSource.PSEUDO,), device=segmenter.device)
    argmax, aligned = ConfusionMatrix(count), ConfusionMatrix(count)
    kept = list(segmenter.stream(files, InferenceOptions(), labels))
    for batch in kept:
        counted.update(batch.logits, None, [file.key for file in batch.files])
        argmax.update(batch.labels, batch.logits.argmax(dim=1))
    default = with_default_strength(AlignmentSettings())
    correction = fit_correction(default, Evidence(counted, counted.cells[LabelSource.PSEUDO]))
    for batch in kept:
        aligned.update(batch.labels, correction.predict(batch.logits))
    return {name: summary(one, segmenter.classes.names) for name, one in (("argmax", argmax), ("aligned", aligned))}


def summary(confusion: ConfusionMatrix, names: tuple[str, ...]) -> dict[str, Any]:
    """What is reported of a confusion matrix, in percent."""
    values = {"iou": confusion.iou(), "accuracy": confusion.accuracy(), "bias": confusion.bias()}
    return {
        "mean_iou": 100 * confusion.mean_iou(),
        "mean_accuracy": 100 * confusion.mean_accuracy(),
        "iou_spread": 100 * confusion.iou_spread(),
        **{name: dict(zip(names, (100 * value).tolist(), strict=True)) for name, value in values.items()},
    }


def table(results: dict[str, Any]) -> Iterator[str]:
    """The Markdown table: a row per variant and norms."""
    yield "| mIoU / mean accuracy / std of class IoU | seeds | argmax | after `blda align` |"
    yield "| --- | --- | --- | --- |"
    for norms in NORMS:
        for variant in [UNTRAINED, *VARIANTS]:
            runs = [result["scores"] for key, result in results.items() if key.partition(", seed ")[0] == variant]
            scores = [one[norms] for one in runs]
            if scores:
                cells = [" / ".join(spread(scores, way, what) for what in SHOWN) for way in ("argmax", "aligned")]
                yield f"| {variant}, {norms} | {len(scores)} | {' | '.join(cells)} |"


SHOWN = ("mean_iou", "mean_accuracy", "iou_spread")


def spread(scores: list[dict[str, dict[str, Any]]], way: str, what: str) -> str:
    """Mean, and standard deviation where there are several."""
    values = [one[way][what] for one in scores]
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def describe(scores: dict[str, Any]) -> str:
    """One line of scores."""
    return "; ".join(
        f"{norms} {way} " + " / ".join(f"{one[way][what]:.1f}" for what in SHOWN)
        for norms, one in scores.items()
        for way in ("argmax", "aligned")
    )


if __name__ == "__main__":
    main()
