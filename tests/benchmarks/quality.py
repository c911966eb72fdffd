"""What every method does to a segmenter's predictions, from the commands alone, on any folder with labels.

    python tests/benchmarks/quality.py --model MODEL --images DIR --labels DIR --home-images DIR --home-labels DIR

Prints Markdown, and with ``--json FILE`` writes all numbers. Every row is ``blda collect-stats`` and ``blda align``,
scored from the PNG files they write. The network runs once over each folder; its logits are kept as float16 arrays,
and the commands read those, so the numbers are those of the network itself up to float16's rounding. Target labels
serve for scoring; rows that use them otherwise say so.
"""

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image
from rivals import rivals, scores_with  # type: ignore[import-not-found]  # beside this script
from scipy.stats import spearmanr

from blda_cli.commands import cli
from blda_cli.core.bias import estimated_bias, sampled_bias
from blda_cli.core.choices import LabelSource
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.data.encodings import VOID
from blda_cli.pipelines.requests import LabelRequest, SubjectRequest
from blda_cli.pipelines.subject import load_subject, read_labels
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.norm_choice import CHOICE_IMAGES, choose_weight
from blda_cli.segmenters.norms import enough_for_norms
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.store.predictions import PREDICTIONS, RECORD, read_record
from blda_cli.store.statistics import read_statistics

STRENGTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
"""Strengths of logit adjustment; its best is found with labels."""

CALIBRATION_PIXELS = 200_000


@dataclass(frozen=True)
class Row:
    """One way to correct predictions.

    Attributes:
        name: what the tables call it.
        options: of ``blda align``.
        stats: which statistics: ``unlabelled``, or ``own`` with the ground truth of the very images.
        family: of rows that differ in strength alone; the tables show the best of them, which labels chose.
    """

    name: str
    options: tuple[str, ...]
    stats: str = "unlabelled"
    family: str | None = None


@dataclass(frozen=True)
class Scores:
    """Of one folder of predictions, in %, pooled over pixels; and the strength it was made with."""

    tau: float

    miou: float
    accuracy: float
    bias: float
    spread: float


@dataclass(frozen=True)
class Domain:
    """A folder of logits and one of labels (class ids, 255 where there is none), with equal names."""

    model: Path
    logits: Path
    labels: Path
    num_classes: int

    @property
    def names(self) -> list[str]:
        """Of the images."""
        return sorted(path.stem for path in self.logits.glob("*.npy"))


QUANTILE = ("--shift", "quantile")
SOFT = ("--label-source", "soft")
TRUTH = ("--label-source", "ground_truth")
FULL = ("--tau", "1")
AUTO = ("--tau", "auto")


def _published(tau: float, *options: str) -> tuple[str, ...]:
    return ("--preset", "published", "--tau", str(tau), *options)


def _adjusted(tau: float | str, *options: str) -> tuple[str, ...]:
    return ("--method", "logit-adjust", "--tau", str(tau), *options)


def _family(name: str, *options: str) -> tuple[Row, ...]:
    return tuple(Row(f"{name}, τ {tau}", _adjusted(tau, *options), family=name) for tau in STRENGTHS)


ROWS = (
    Row("argmax", ("--method", "none")),
    Row("published preset (τ 0.2)", ("--preset", "published")),
    *(Row(f"published form, τ {tau}", _published(tau)) for tau in (0.1, 0.5, 1.0)),
    Row("quantile, constant tails, τ 1", QUANTILE),
    Row("quantile, soft cells, τ 0.5", (*QUANTILE, *SOFT, "--tau", "0.5")),
    Row("quantile, soft cells, τ auto", (*QUANTILE, *SOFT, "--tau", "auto")),
    Row("logit-adjust, predicted shares, τ auto", _adjusted("auto")),
    Row("logit-adjust, mean softmax, τ auto", _adjusted("auto", *SOFT)),
    *_family("logit-adjust, predicted shares"),
    *_family("logit-adjust, mean softmax", *SOFT),
    Row("prior-shift", ("--method", "prior-shift")),
    Row("class-confidence", ("--method", "class-confidence")),
    Row("location, τ 1", ("--shift", "location", *FULL)),
    Row("location, τ auto", ("--shift", "location", *AUTO)),
    Row("balanced, τ 1", ("--shift", "balanced", *FULL)),
    Row("balanced, τ auto", ("--shift", "balanced", *AUTO)),
    Row("balanced, soft cells, τ 1", ("--shift", "balanced", *SOFT, *FULL)),
    Row("two-pass, τ 1", FULL),
    Row("two-pass, soft cells, τ 1", (*SOFT, *FULL)),
    Row("**the default**: two-pass, τ auto", ()),
    Row("own ground truth: published form, τ 1", _published(1.0, *TRUTH), "own"),
    Row("own ground truth: quantile, constant tails", (*QUANTILE, *TRUTH), "own"),
    Row("own ground truth: two-pass, τ 1", (*TRUTH, *FULL), "own"),
    Row("own ground truth: supervised", ("--method", "supervised"), "own"),
)


def score(predictions: Path, labels: Path, num_classes: int) -> ConfusionMatrix:
    """The confusion matrix of a tree of PNG files."""
    matrix = ConfusionMatrix(num_classes)
    for path in sorted(predictions.glob("*.png")):
        matrix.update(*(torch.from_numpy(np.array(Image.open(folder / path.name))) for folder in (labels, predictions)))
    return matrix


def scores_of(folder: Path, domain: Domain) -> Scores:
    """What the tables show of a folder that ``blda align`` wrote."""
    matrix = score(folder / PREDICTIONS, domain.labels, domain.num_classes)
    return Scores(
        tau=read_record(folder / RECORD).settings["tau"],
        miou=100 * matrix.mean_iou(),
        accuracy=100 * matrix.mean_accuracy(),
        bias=100 * float(matrix.bias().abs().nansum()),
        spread=100 * matrix.iou_spread(),
    )


def blda(*arguments: Any) -> None:
    """Run a command; its error ends the benchmark."""
    result = CliRunner().invoke(cli, [*map(str, arguments), "--quiet", "--overwrite"])
    if result.exit_code:
        raise click.ClickException(f"blda {' '.join(map(str, arguments))}: {result.output}")


def aligned(domain: Domain, images: Path, work: Path, *options: Any) -> Scores:
    """Run ``blda align`` on images of a domain and score what it writes."""
    folder = work / "aligned"
    blda("align", "--model", domain.model, "--images", images, "--output", folder, "--device", "cpu", *options)
    return scores_of(folder, domain)


def collected(domain: Domain, images: Path, output: Path, labelled: bool, *options: Any) -> Path:
    """Run ``blda collect-stats``."""
    given = ("--labels", domain.labels, "--label-encoding", "ids", "--ignore-label", VOID) if labelled else ()
    blda(
        "collect-stats",
        *("--model", domain.model, "--images", images, "--output", output, "--device", "cpu"),
        *given,
        *options,
    )
    return output


def run_network(
    model: str, weights: Path | None, images: str, labels: str, folder: Path, device: str, limit: int | None
) -> Domain:
    """Keep a network's logits and the images' labels, unless an earlier run did.

    Args:
        model: as ``--model``.
        weights: as ``--weights``.
        images: as ``--images``.
        labels: as ``--labels``.
        folder: where to keep them.
        device: as ``--device``.
        limit: take so many images, spread evenly; all by default.

    Returns:
        Where they are.
    """
    subject = load_subject(SubjectRequest(model=model, weights=weights, images=images), device)
    files = subject.images
    if limit is not None and limit < len(files):
        files = [files[index] for index in np.linspace(0, len(files) - 1, limit).round().astype(int)]
    names = {file.key: file.key.replace("/", "__") for file in files}
    classes = subject.segmenter.classes
    domain = Domain(folder / "logits.toml", folder / "logits", folder / "labels", len(classes))
    made_of = {"model": subject.segmenter.identity, "labels": labels, "files": list(names)}
    note = folder / "made-of.json"
    if note.is_file() and json.loads(note.read_text()) == json.loads(json.dumps(made_of)):
        return domain
    shutil.rmtree(folder, ignore_errors=True)
    for needed in (domain.logits, domain.labels):
        needed.mkdir(parents=True)
    reader = read_labels(replace(subject, share=files), LabelRequest(labels=labels))
    for batch in subject.segmenter.stream(files, InferenceOptions(), reader):
        assert batch.labels is not None
        for file, logits, label in zip(batch.files, batch.logits, batch.labels, strict=True):
            np.save(domain.logits / f"{names[file.key]}.npy", logits.half().cpu().numpy())
            Image.fromarray(label.to(torch.uint8).cpu().numpy()).save(domain.labels / f"{names[file.key]}.png")
    domain.model.write_text(
        f'[segmenter]\nkind = "logits"\npath = "logits"\n[classes]\nnames = {json.dumps(list(classes.names))}\n'
    )
    note.write_text(json.dumps(made_of, indent=1))
    return domain


def whole_table(domain: Domain, work: Path) -> dict[str, Any]:
    """All rows on all images of a domain, and how well the label-free bias ranks its classes."""
    stats = {
        "unlabelled": collected(domain, domain.logits, work / "unlabelled.h5", False),
        "own": collected(domain, domain.logits, work / "own.h5", True),
    }
    rows: dict[str, Scores] = {}
    for row in ROWS:
        rows[row.name] = aligned(domain, domain.logits, work, "--stats", stats[row.stats], *row.options)
        say(f"{row.name}: {rows[row.name].miou:.1f} / {rows[row.name].accuracy:.1f}")
    unlabelled = read_statistics(stats["unlabelled"])
    confusion = read_statistics(stats["own"]).statistics.confusion
    assert confusion is not None
    true = confusion.bias()
    estimates = {
        "from debiased scores (what blda report shows)": sampled_bias(unlabelled.statistics.sample).bias,
        "from channels taken as independent": estimated_bias(unlabelled.statistics.cells[LabelSource.PSEUDO]),
    }
    return {
        "images": len(domain.names),
        "rows": {name: asdict(value) for name, value in rows.items()},
        "bias": {
            "classes": list(unlabelled.classes.names),
            "true": true.tolist(),
            **{
                name: {"bias": estimate.tolist(), "spearman": rank_correlation(estimate, true)}
                for name, estimate in estimates.items()
            },
        },
    }


def rival_table(
    model: str, weights: Path | None, images: str, labels: str, device: str, limit: int | None, layer: str | None
) -> dict[str, tuple[float, float, float]]:
    """Mixed norms and their rivals at test time: mIoU, mean accuracy and pixel accuracy, in %."""
    subject = load_subject(SubjectRequest(model=model, weights=weights, images=images), device)
    files, segmenter = subject.images, subject.segmenter
    if limit is not None and limit < len(files):
        files = [files[index] for index in np.linspace(0, len(files) - 1, limit).round().astype(int)]
    assert isinstance(segmenter, NetworkSegmenter)
    reader = read_labels(replace(subject, share=files), LabelRequest(labels=labels))
    assert reader is not None
    chosen = choose_weight(segmenter, enough_for_norms(files, CHOICE_IMAGES), InferenceOptions())
    say(f"auto: {chosen}")
    ways = {**rivals(segmenter, layer), f"auto ({chosen.weight:g})": partial(scores_with, segmenter, chosen.weight)}
    matrices = {name: ConfusionMatrix(len(segmenter.classes)) for name in ways}
    for file in files:
        pixels = torch.from_numpy(segmenter.read(file))[None].to(segmenter.device)
        truth = torch.from_numpy(np.asarray(reader(file))).long()
        for name, scores in ways.items():
            matrices[name].update(truth, scores(pixels).argmax(dim=1)[0].cpu())
    found = {}
    for name, matrix in matrices.items():
        right = float(matrix.counts.diagonal().sum() / matrix.counts.sum())
        found[name] = (100 * matrix.mean_iou(), 100 * matrix.mean_accuracy(), 100 * right)
        click.echo(f"| {name} | {' / '.join(f'{value:.1f}' for value in found[name])} |")
    return found


def rank_correlation(estimate: torch.Tensor, true: torch.Tensor) -> float:
    """Spearman's, over the classes that both know."""
    known = ~(estimate.isnan() | true.isnan())
    return float(spearmanr(estimate[known].numpy(), true[known].numpy()).statistic)


def few_labels(domain: Domain, work: Path, unlabelled: Path, few: int, draws: int) -> list[dict[str, Scores]]:
    """Per draw of ``few`` labelled images, the scores of methods on the others.

    Unlabelled statistics are those of all images: that they exist is all that is known of them.
    """
    return [dict(_one_draw(domain, work, unlabelled, few, seed)) for seed in range(draws)]


def _one_draw(domain: Domain, work: Path, unlabelled: Path, few: int, seed: int) -> Iterator[tuple[str, Scores]]:
    names = domain.names
    chosen = set(np.random.default_rng(seed).choice(len(names), few, replace=False).tolist())
    lists = {"few": work / f"few{seed}.txt", "others": work / f"others{seed}.txt"}
    for key, path in lists.items():
        kept = [name for index, name in enumerate(names) if (index in chosen) == (key == "few")]
        path.write_text("".join(f"{domain.logits.resolve() / name}.npy\n" for name in kept))
    stats = collected(domain, lists["few"], work / f"few{seed}.h5", True)

    def run(name: str, *options: Any) -> tuple[str, Scores]:
        result = aligned(domain, lists["others"], work, *options)
        say(f"draw {seed}, {name}: {result.miou:.1f} / {result.accuracy:.1f}")
        return name, result

    yield run("argmax", "--stats", unlabelled, "--method", "none")
    yield run("no labels: the default", "--stats", unlabelled)
    yield run("published preset (τ 0.2)", "--stats", stats, "--preset", "published", *TRUTH)
    yield run("published form, τ 1", "--stats", stats, *_published(1.0, *TRUTH))
    yield run("quantile, constant tails, τ 1", "--stats", stats, *QUANTILE, *TRUTH)
    yield run("two-pass, τ 1", "--stats", stats, *TRUTH, *FULL)
    yield run("**supervised**", "--stats", stats, "--method", "supervised")
    yield run(
        "**supervised, unlabelled statistics beside**",
        *("--stats", unlabelled, "--labelled", stats, "--method", "supervised"),
    )
    calibrator = fitted_calibrator(domain, [names[index] for index in sorted(chosen)], work / f"matrix{seed}.pt", seed)
    if calibrator is None:
        return
    behind = ("--calibrator", calibrator)
    calibrated = collected(domain, lists["few"], work / f"calibrated{seed}.h5", True, *behind)
    rival = (*behind, "--stats", calibrated)
    yield run("matrix scaling", *rival, "--method", "none")
    for tau in STRENGTHS:
        yield run(f"matrix scaling, logit-adjust τ {tau}", *rival, *_adjusted(tau, *TRUTH))
    yield run("matrix scaling, two-pass from the labels, τ 1", *rival, *TRUTH, *FULL)
    everywhere = collected(domain, domain.logits, work / f"everywhere{seed}.h5", False, *behind)
    yield run("matrix scaling, the default from unlabelled statistics", *behind, "--stats", everywhere)


def fitted_calibrator(domain: Domain, names: Sequence[str], path: Path, seed: int) -> Path | None:
    """fiducio's matrix scaling, fitted to random labelled pixels of images; None where fiducio is not installed."""
    try:
        import fiducio
    except ImportError:
        say("fiducio is not installed: the rows with matrix scaling are left out")
        return None
    logits = np.concatenate(
        [np.load(domain.logits / f"{name}.npy").reshape(domain.num_classes, -1).T for name in names]
    )
    labels = np.concatenate([np.array(Image.open(domain.labels / f"{name}.png")).ravel() for name in names])
    kept = np.flatnonzero(labels != VOID)
    kept = np.random.default_rng(seed).permutation(kept)[:CALIBRATION_PIXELS]
    calibrator = fiducio.MatrixScaling(optimizer="lbfgs")
    calibrator.fit(torch.from_numpy(logits[kept]).float(), torch.from_numpy(labels[kept]).long())
    fiducio.save_calibrator(calibrator, path)
    return path


def mean_over(draws: Sequence[Mapping[str, Scores]]) -> dict[str, dict[str, float]]:
    """The mean of every row over the draws."""
    return {
        name: {key: float(np.mean([asdict(draw[name])[key] for draw in draws])) for key in asdict(draws[0][name])}
        for name in draws[0]
    }


def markdown(results: dict[str, Any]) -> Iterator[str]:
    """The tables."""
    domains = {name: results[name] for name in ("target", "home") if name in results}
    yield "mIoU / mean class accuracy / Σ|Bias| / standard deviation of the classes' IoU, in %, pooled over pixels.\n"
    yield "| | " + " | ".join(f"{name}, {one['images']} images" for name, one in domains.items()) + " |"
    yield "| --- |" + " --- |" * len(domains)
    for family, rows in itertools.groupby(ROWS, key=lambda row: row.family or row.name):
        names = [row.name for row in rows]
        best = [max(names, key=lambda name: one["rows"][name]["miou"]) for one in domains.values()]
        chosen = [one["rows"][name] for one, name in zip(domains.values(), best, strict=True)]
        cells = [_cell(row) for row in chosen]
        if len(names) > 1:
            family += ", best mIoU, *chosen with labels*"
        if len(names) > 1 or "auto" in family:
            cells = [f"{cell} (τ {row['tau']:g})" for cell, row in zip(cells, chosen, strict=True)]
        yield f"| {family} | {' | '.join(cells)} |"
    yield "\nRank correlation (Spearman) of the label-free bias with the true one.\n"
    yield "| | " + " | ".join(domains) + " |"
    yield "| --- |" + " --- |" * len(domains)
    for name in [key for key in results["target"]["bias"] if key not in ("classes", "true")]:
        yield f"| {name} | " + " | ".join(f"{one['bias'][name]['spearman']:.2f}" for one in domains.values()) + " |"
    if "few" in results:
        few = results["few"]
        yield f"\n{few['labelled']} labelled images, scored on the others: the mean of the draws, then each.\n"
        yield "| | mean | " + " | ".join(f"draw {index}" for index in range(len(few["draws"]))) + " |"
        yield "| --- | --- |" + " --- |" * len(few["draws"])
        for name, mean in few["mean"].items():
            each = (f"{draw[name]['miou']:.1f} / {draw[name]['accuracy']:.1f}" for draw in few["draws"])
            yield f"| {name} | {_cell(mean)} | " + " | ".join(each) + " |"


def _cell(row: Mapping[str, float]) -> str:
    return f"{row['miou']:.1f} / {row['accuracy']:.1f} / {row['bias']:.0f} / {row['spread']:.1f}"


def say(line: str) -> None:
    """Progress, on stderr."""
    click.echo(line, err=True)


@click.command()
@click.option("--model", required=True, help="As for the commands.")
@click.option("--weights", type=click.Path(path_type=Path), help="As for the commands.")
@click.option("--images", required=True, help="The target's images.")
@click.option("--labels", required=True, help="Their labels, for scoring.")
@click.option("--home-images", help="Images like those the network was trained on: nothing must get worse there.")
@click.option("--home-labels", help="Their labels.")
@click.option("--few", default=8, show_default=True, help="Labelled target images of a draw; 0 leaves that part out.")
@click.option("--draws", default=3, show_default=True, help="How many draws of them, seeded 0, 1, ...")
@click.option("--limit", type=int, help="Take so many images of each folder only.")
@click.option("--device", default="auto", show_default=True, help="Where the network runs.")
@click.option("--rivals", "only_rivals", is_flag=True, help="Mixed norms against DIGA and InTEnt, and nothing else.")
@click.option("--feature-layer", help="The network's classifier layer, for DIGA's prototypes; left out without.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep logits and statistics here and use them again.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the numbers here.")
def main(
    model: str,
    weights: Path | None,
    images: str,
    labels: str,
    home_images: str | None,
    home_labels: str | None,
    few: int,
    draws: int,
    limit: int | None,
    device: str,
    only_rivals: bool,
    feature_layer: str | None,
    output: Path | None,
    json_file: Path | None,
) -> None:
    """Compare all methods on images with labels."""
    if only_rivals:
        rival_table(model, weights, images, labels, device, limit, feature_layer)
        return
    if (home_images is None) != (home_labels is None):
        raise click.UsageError("--home-images and --home-labels go together")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = output or Path(temporary)
        results: dict[str, Any] = {}
        sources = {"target": (images, labels)}
        if home_images is not None and home_labels is not None:
            sources["home"] = (home_images, home_labels)
        for name, (pictures, truth) in sources.items():
            work = folder / name
            say(f"{name}: {pictures}")
            domain = run_network(model, weights, pictures, truth, work / "network", device, limit)
            results[name] = whole_table(domain, work)
            if name == "target" and few:
                drawn = few_labels(domain, work, work / "unlabelled.h5", few, draws)
                results["few"] = {
                    "labelled": few,
                    "mean": mean_over(drawn),
                    "draws": [{row: asdict(value) for row, value in draw.items()} for draw in drawn],
                }
    results["seconds"] = time.monotonic() - start
    for line in markdown(results):
        click.echo(line)
    if json_file:
        json_file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
