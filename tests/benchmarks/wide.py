"""Every correction over many networks and many images, from samples of their logits: what a default is chosen by.

    python tests/benchmarks/wide.py [--data DIR] [--json FILE] [--pairs]

Prints Markdown: a table with one row per correction, and with ``--pairs`` what each does to every pair. A pair is a
network and images it was not trained on, one file ``NETWORK__IMAGES__NORMS.npz``:

========= ================ =====================================================================================
logits    float16 [S, C]   of random pixels, at the resolution of the labels
labels    uint8 [S]        class ids; 255 where there is none
image     uint16 [S]       the image that a pixel is of
classes   text [C]         names
========= ================ =====================================================================================

``NORMS`` is ``source``, or ``target`` where the batch norms have the averages of these images. ``IMAGES`` that end in
``home`` are like those the network was trained on: a control, where a correction should do nothing. Labels serve for
scoring, and for rows that say so. A sampled pixel stands for :data:`PIXELS` of its image's, so that the least number
of pixels that a cell needs is counted in real ones. Whatever has a strength to choose is also scored with the strength
that the *other* networks would choose (*left out*): a number that the network itself had no part in.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.bias import sampled_bias
from blda_cli.core.choices import Favour, LabelSource, Shift
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.fitting import Evidence, fit_correction
from blda_cli.core.methods import PUBLISHED, AlignmentSettings
from blda_cli.core.statistics import LogitStatistics

ROOT = Path(__file__).parents[2]
VOID = 255
"""What the files' labels have where there is no class."""

PIXELS = 20
"""Pixels that a sampled one stands for."""

HARM = -0.5
"""Points of mIoU below which a pair counts as harmed."""

DRAWS = 3
"""Draws of labelled images."""


@dataclass(frozen=True)
class Pair:
    """A network and images, as the sample of their logits."""

    network: str
    images: str
    norms: str
    logits: Tensor
    labels: Tensor
    image: Tensor
    classes: list[str]

    @classmethod
    def read(cls, path: Path) -> "Pair":
        """Read a file of the format above."""
        network, images, norms = path.stem.split("__")
        with np.load(path, allow_pickle=False) as file:
            labels = torch.from_numpy(file["labels"].astype(np.int64))
            return cls(
                network=network,
                images=images,
                norms=norms,
                logits=torch.from_numpy(file["logits"]).float(),
                labels=torch.where(labels == VOID, IGNORE_INDEX, labels),
                image=torch.from_numpy(file["image"].astype(np.int64)),
                classes=[str(name) for name in file["classes"]],
            )

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.network}, {self.images}" + (", target norms" if self.norms == "target" else "")

    @property
    def at_home(self) -> bool:
        """Whether nothing should happen here."""
        return self.images.endswith("home")

    @cached_property
    def statistics(self) -> LogitStatistics:
        """What ``blda collect-stats`` would have counted."""
        return self.part(self.image.unique().tolist()).count([LabelSource.PSEUDO, LabelSource.SOFT])

    def part(self, images: Sequence[int]) -> "Pair":
        """The pixels of some images."""
        kept = torch.isin(self.image, torch.tensor(images))
        return replace(self, logits=self.logits[kept], labels=self.labels[kept], image=self.image[kept])

    def count(self, sources: Iterable[LabelSource]) -> LogitStatistics:
        """Statistics of the pixels, each counted as :data:`PIXELS`."""
        statistics = LogitStatistics(len(self.classes), sources)
        for image in self.image.unique().tolist():
            kept = self.image == image
            statistics.update(self.logits[kept].T[None], self.labels[kept][None], [str(image)])
        for cells in statistics.cells.values():
            cells.counts *= PIXELS
        return LogitStatistics.from_parts(
            space=statistics.space,
            cells=statistics.cells,
            confusion=statistics.confusion,
            positions=statistics.positions,
            sample=replace(statistics.sample, seen=statistics.sample.seen * PIXELS),
            images=statistics.images,
            pixels=statistics.pixels * PIXELS,
        )

    def confusion(self, settings: AlignmentSettings, labelled: LogitStatistics | None = None) -> ConfusionMatrix:
        """Predictions of all pixels under a correction fitted to them, against the labels."""
        statistics = self.statistics
        evidence = Evidence(statistics, statistics.cells[settings.label_source], labelled=labelled)
        matrix = ConfusionMatrix(len(self.classes))
        matrix.update(self.labels[None], fit_correction(settings, evidence).predict(self.logits.T[None].contiguous()))
        return matrix


@dataclass(frozen=True)
class Row:
    """A correction, or several that differ in strength alone."""

    name: str
    settings: tuple[AlignmentSettings, ...]


@dataclass(frozen=True)
class Gain:
    """Points of change against argmax."""

    miou: float
    accuracy: float


SOFT = LabelSource.SOFT


def _strengths(name: str, *taus: float, **choices: Any) -> Row:
    return Row(name, tuple(AlignmentSettings(tau=tau, **choices) for tau in taus))


def _default(name: str, **choices: Any) -> Row:
    return Row(name, (AlignmentSettings(**choices),))


ROWS = (
    _default("**the default**"),
    _default("the default, `--favour accuracy`", favour=Favour.ACCURACY),
    _strengths("negative", 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, shift=Shift.NEGATIVE),
    _strengths("two-pass", 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, shift=Shift.TWO_PASS),
    _strengths("balanced", 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, shift=Shift.BALANCED),
    _strengths("location", 0.3, 0.5, 0.7, 1.0, shift=Shift.LOCATION),
    _strengths("quantile, constant tails", 0.2, 0.5, 1.0, shift=Shift.QUANTILE),
    Row("published preset", (PUBLISHED,)),
    Row("published form", (replace(PUBLISHED, tau=1.0),)),
    _strengths("logit adjustment, predicted shares", 0.1, 0.2, 0.3, 0.5, 1.0, method="logit-adjust"),
    _strengths("logit adjustment, mean softmax", 0.1, 0.2, 0.3, 0.5, 1.0, method="logit-adjust", label_source=SOFT),
    _default("logit adjustment, label-free strength", method="logit-adjust"),
    _strengths("class-normalised confidence", 1.0, method="class-confidence"),
    _strengths("prior-shift EM", 1.0, method="prior-shift"),
)


def gain(before: ConfusionMatrix, after: ConfusionMatrix) -> Gain:
    """Points of mIoU and mean accuracy that predictions have gained."""
    return Gain(100 * (after.mean_iou() - before.mean_iou()), 100 * (after.mean_accuracy() - before.mean_accuracy()))


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data" / "wide")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all numbers.")
@click.option("--pairs", "each", is_flag=True, help="Also print what each correction does to every pair.")
@click.option("--norms", type=click.Choice(["source", "target"]), help="Only pairs with these norms.")
@click.option("--labelled/--no-labelled", default=True, help="Also score what a few labelled images bring.")
def main(data: Path, json_file: Path | None, each: bool, norms: str | None, labelled: bool) -> None:
    """Score every correction on every pair."""
    pairs = [Pair.read(path) for path in sorted(data.glob("*.npz"))]
    pairs = [pair for pair in pairs if norms in (None, pair.norms)]
    before = {pair.name: pair.confusion(AlignmentSettings(method="none")) for pair in pairs}
    gains: dict[str, dict[str, Gain]] = {}
    for row in ROWS:
        for settings in row.settings:
            name = row.name if len(row.settings) == 1 else f"{row.name}, τ {settings.tau}"
            gains[name] = {pair.name: gain(before[pair.name], pair.confusion(settings)) for pair in pairs}
        if len(row.settings) > 1:
            family = [gains[f"{row.name}, τ {settings.tau}"] for settings in row.settings]
            gains[f"{row.name}, left out"] = left_out(pairs, family)
            gains[f"{row.name}, best τ of each pair, by labels"] = {
                pair.name: max((one[pair.name] for one in family), key=lambda change: change.miou) for pair in pairs
            }
    print(table(pairs, gains))
    print(bias_table(pairs, before))
    found: dict[str, Any] = {
        "argmax": {name: [100 * one.mean_iou(), 100 * one.mean_accuracy()] for name, one in before.items()},
        "gains": {row: {name: asdict(one) for name, one in values.items()} for row, values in gains.items()},
        "bias": {pair.name: asdict(bias_agreement(pair, before[pair.name])) for pair in pairs},
    }
    if labelled:
        found["labelled"] = {}
        for count in (8, 3):
            values = labelled_scores([pair for pair in pairs if not pair.at_home], count)
            print(labelled_table(values, count))
            found["labelled"][count] = values
    if each:
        print(pair_table(pairs, before, gains))
    if json_file:
        json_file.write_text(json.dumps(found, indent=1))


def left_out(pairs: Sequence[Pair], family: Sequence[dict[str, Gain]]) -> dict[str, Gain]:
    """What each network gains by the strength with the best mean mIoU over the away pairs of the others."""
    chosen: dict[str, Gain] = {}
    for network in {pair.network for pair in pairs}:
        others = [pair.name for pair in pairs if pair.network != network and not pair.at_home]
        best = max(family, key=lambda gains: sum(gains[name].miou for name in others))
        chosen |= {pair.name: best[pair.name] for pair in pairs if pair.network == network}
    return chosen


def table(pairs: Sequence[Pair], gains: dict[str, dict[str, Gain]]) -> str:
    """Means over the pairs away from home, and what happens at home."""
    away = [pair.name for pair in pairs if not pair.at_home]
    home = [pair.name for pair in pairs if pair.at_home]
    lines = [
        f"{len(away)} pairs away from home, {len(home)} at home; points against argmax",
        "",
        "| | mIoU, mean | worst pair | pairs below −0.5 | mean accuracy | at home: mIoU, mean | worst |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, values in gains.items():
        miou, there = ([values[name].miou for name in names] for names in (away, home))
        accuracy = np.mean([values[name].accuracy for name in away])
        harmed = sum(value < HARM for value in miou)
        lines.append(
            f"| {row} | {np.mean(miou):+.1f} | {min(miou):+.1f} | {harmed} | {accuracy:+.1f} "
            + (f"| {np.mean(there):+.1f} | {min(there):+.1f} |" if there else "| | |")
        )
    return "\n".join([*lines, ""])


def pair_table(pairs: Sequence[Pair], before: dict[str, ConfusionMatrix], gains: dict[str, dict[str, Gain]]) -> str:
    """Every pair: argmax's scores, then what corrections without a choice to make change."""
    rows = [row for row in gains if "τ" not in row or "left out" in row]
    lines = ["| pair | argmax | " + " | ".join(rows) + " |", "| --- |" + " --- |" * (len(rows) + 1)]
    for pair in pairs:
        matrix = before[pair.name]
        cells = [f"{gains[row][pair.name].miou:+.1f} / {gains[row][pair.name].accuracy:+.1f}" for row in rows]
        scores = f"{100 * matrix.mean_iou():.1f} / {100 * matrix.mean_accuracy():.1f}"
        lines.append(f"| {pair.name} | {scores} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class BiasAgreement:
    """The label-free estimate of the bias beside the true one, over the classes that have labels.

    Attributes:
        ratio: summed estimate over summed truth.
        rank_correlation: Spearman's.
        called: classes whose interval excludes zero and whose true bias exceeds a point.
        right: those of them with the right sign.
    """

    estimated: float
    true: float
    rank_correlation: float
    called: int
    right: int

    @property
    def ratio(self) -> float:
        """Estimated over true."""
        return self.estimated / self.true


def bias_agreement(pair: Pair, before: ConfusionMatrix) -> BiasAgreement:
    """Hold the estimate against the truth."""
    estimate, truth = sampled_bias(pair.statistics.sample), before.bias()
    known = ~(estimate.bias.isnan() | truth.isnan())
    called = known & ((estimate.low > 0) | (estimate.high < 0)) & (truth.abs() > 0.01)
    return BiasAgreement(
        estimated=float(estimate.bias[known].abs().sum()),
        true=float(truth[known].abs().sum()),
        rank_correlation=float(spearmanr(estimate.bias[known], truth[known]).statistic),
        called=int(called.sum()),
        right=int((called & (estimate.bias.sign() == truth.sign())).sum()),
    )


def bias_table(pairs: Sequence[Pair], before: dict[str, ConfusionMatrix]) -> str:
    """The estimate's size, ranking and direction."""
    lines = [
        "| the label-free bias | Σ\\|Bias\\| over the true one, mean | Spearman, mean | lowest | direction right |",
        "| --- | --- | --- | --- | --- |",
    ]
    for where, chosen in (
        ("away", [one for one in pairs if not one.at_home]),
        ("home", [one for one in pairs if one.at_home]),
    ):
        found = [bias_agreement(pair, before[pair.name]) for pair in chosen]
        if found:
            ranks = [one.rank_correlation for one in found]
            right = sum(one.right for one in found) / max(sum(one.called for one in found), 1)
            ratio = np.mean([one.ratio for one in found])
            lines.append(f"| {where} | {ratio:.2f} | {np.mean(ranks):.2f} | {min(ranks):.2f} | {right:.0%} |")
    return "\n".join([*lines, ""])


def labelled_scores(pairs: Sequence[Pair], count: int) -> dict[str, dict[str, list[float]]]:
    """mIoU and mean accuracy on the other images when ``count`` have labels, the mean of :data:`DRAWS` draws."""
    default = AlignmentSettings()
    scores: dict[str, dict[str, list[float]]] = {}
    for pair in pairs:
        images = pair.image.unique().tolist()
        found: dict[str, list[list[float]]] = {}
        for seed in range(DRAWS):
            drawn = np.random.default_rng(seed).choice(images, count, replace=False).tolist()
            rest = pair.part([image for image in images if image not in drawn])
            few = pair.part(drawn)
            truth = few.count([LabelSource.GROUND_TRUTH, LabelSource.PSEUDO])
            matrices = {
                "argmax": rest.confusion(AlignmentSettings(method="none")),
                "the default, no labels": rest.confusion(default),
                "supervised": rest.confusion(AlignmentSettings(method="supervised"), truth),
            }
            for tau, matrix in matrix_scaled(rest, few, (0.2, 0.4, 0.6)).items():
                matrices[f"matrix scaling, logit adjustment τ {tau}"] = matrix
            for name, matrix in matrices.items():
                found.setdefault(name, []).append([100 * matrix.mean_iou(), 100 * matrix.mean_accuracy()])
        scores[pair.name] = {name: np.mean(values, axis=0).tolist() for name, values in found.items()}
    return scores


def matrix_scaled(rest: Pair, few: Pair, taus: Iterable[float]) -> dict[float, ConfusionMatrix]:
    """Matrix scaling (fiducio) fitted to the labelled images, then logit adjustment by their labels' shares."""
    import fiducio

    num_classes = len(few.classes)
    kept = few.labels != IGNORE_INDEX
    calibrator = fiducio.MatrixScaling().fit(few.logits[kept], few.labels[kept])
    logs = calibrator.transform(rest.logits).clamp(min=1e-12).log()
    shares = torch.bincount(few.labels[kept], minlength=num_classes).clamp(min=1) / int(kept.sum())
    matrices = {tau: ConfusionMatrix(num_classes) for tau in taus}
    for tau, matrix in matrices.items():
        matrix.update(rest.labels, (logs - tau * shares.log()).argmax(dim=1))
    return matrices


def labelled_table(scores: dict[str, dict[str, list[float]]], count: int) -> str:
    """Means over the pairs, and the worst pair against the default."""
    lines = [
        f"| {count} labelled images | mIoU | mean accuracy | mIoU against the default, worst pair |",
        "| --- | --- | --- | --- |",
    ]
    for row in next(iter(scores.values())):
        means = np.mean([values[row] for values in scores.values()], axis=0)
        worst = min(values[row][0] - values["the default, no labels"][0] for values in scores.values())
        lines.append(f"| {row} | {means[0]:.1f} | {means[1]:.1f} | {worst:+.1f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
