"""Every correction over many networks and many images, from samples of their logits: what a default is chosen by.

    python tests/benchmarks/wide.py [--data DIR] [--json FILE] [--pairs] [--fields]

Prints Markdown: the default field by field, without a reference and with one; a table with one row per correction
(``--fields`` leaves it out); and with ``--pairs`` what each does to every pair. A pair is a
network and images it was not trained on, one file ``NETWORK__IMAGES__NORMS.npz``:

========= ================ =====================================================================================
logits    float16 [S, C]   of random pixels, at the resolution of the labels
labels    uint8 [S]        class ids; 255 where there is none
image     uint16 [S]       the image that a pixel is of
classes   text [C]         names
========= ================ =====================================================================================

``NORMS`` is ``source``, or ``target`` where the batch norms have the averages of these images. ``IMAGES`` that end in
``home`` are like those the network was trained on: a control, where a correction should do nothing, and in the targets'
classes (:data:`GROUPS`) a reference; of these themselves, one half of the images is the reference of the other. Labels
serve for scoring, and for rows that say so. A sampled pixel stands for :data:`PIXELS` of its image's, so that the least
number of pixels that a cell needs is counted in real ones. Whatever has a strength to choose is also scored with the
strength that the *other* networks would choose (*left out*): a number that the network itself had no part in.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
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
"""Draws of labelled images, and of halves."""

FIELDS = {"face": "faces", "wnet": "retina", "ade20k": "ADE20K", "voc": "objects", "": "streets"}
"""The field of a network, by the first of these that its name holds."""

GROUPS: dict[str, dict[str, Sequence[str]]] = {
    "streets": {
        "sky": ["sky"],
        "building": ["building", "wall"],
        "pole": ["pole"],
        "road": ["road"],
        "pavement": ["sidewalk"],
        "tree": ["vegetation", "terrain"],
        "sign": ["traffic light", "traffic sign"],
        "fence": ["fence"],
        "car": ["car", "truck", "bus", "train"],
        "pedestrian": ["person"],
        "bicyclist": ["rider", "motorcycle", "bicycle"],
    },
    "faces": {
        "eyes": ["l_eye", "r_eye", "eye_g"],
        "mouth": ["mouth", "u_lip", "l_lip"],
        "skin": ["skin", "l_brow", "r_brow", "l_ear", "r_ear", "neck"],
        "hair": ["hair"],
        "nose": ["nose"],
        "background": ["background", "hat", "ear_r", "neck_l", "cloth"],
    },
}
"""The targets' classes, as groups of those of the samples in domain."""


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
    def in_domain(self) -> bool:
        """Whether nothing should happen here."""
        return self.images.split("-")[-1] == "home"

    @property
    def field(self) -> str:
        """What the images show, told by the network."""
        return next(field for mark, field in FIELDS.items() if mark in self.network)

    def grouped(self, groups: Mapping[str, Sequence[str]]) -> "Pair":
        """The same pixels in other classes: a group's logit is the logsumexp of its members'."""
        members = [[self.classes.index(name) for name in names] for names in groups.values()]
        labels = torch.full_like(self.labels, IGNORE_INDEX)
        for group, indices in enumerate(members):
            labels[torch.isin(self.labels, torch.tensor(indices))] = group
        logits = torch.stack([self.logits[:, indices].logsumexp(dim=1) for indices in members], dim=1)
        return replace(self, logits=logits, labels=labels, classes=list(groups))

    def halves(self, seed: int) -> tuple["Pair", "Pair"]:
        """The pixels of one half of the images, drawn at random, and those of the other."""
        images = np.random.default_rng(seed).permutation(self.image.unique().tolist()).tolist()
        return self.part(images[: len(images) // 2]), self.part(images[len(images) // 2 :])

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

    def confusion(
        self,
        settings: AlignmentSettings,
        labelled: LogitStatistics | None = None,
        reference: LogitStatistics | None = None,
    ) -> ConfusionMatrix:
        """Predictions of all pixels under a correction fitted to them, against the labels."""
        statistics = self.statistics
        cells = statistics.cells[settings.label_source]
        evidence = Evidence(statistics, cells, labelled=labelled, reference=reference)
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
    """Points of change against argmax: mIoU, mean accuracy, pixel accuracy, frequency-weighted IoU."""

    miou: float
    accuracy: float
    pixels: float
    weighted: float


SOFT = LabelSource.SOFT


def _strengths(name: str, *taus: float, **choices: Any) -> Row:
    return Row(name, tuple(AlignmentSettings(tau=tau, **choices) for tau in taus))


def _default(name: str, **choices: Any) -> Row:
    return Row(name, (AlignmentSettings(**choices),))


ROWS = (
    _default("**the default**"),
    _default("the default, `--favour accuracy`", favour=Favour.ACCURACY),
    _default("the default, `--favour pixels`", favour=Favour.PIXELS),
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
    """Points that predictions have gained."""
    one, other = (
        (matrix.mean_iou(), matrix.mean_accuracy(), matrix.pixel_accuracy(), matrix.frequency_weighted_iou())
        for matrix in (before, after)
    )
    return Gain(*(100 * (new - old) for old, new in zip(one, other, strict=True)))


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data" / "wide")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all numbers.")
@click.option("--pairs", "each", is_flag=True, help="Also print what each correction does to every pair.")
@click.option("--norms", type=click.Choice(["source", "target"]), help="Only pairs with these norms.")
@click.option("--fields", "fields_only", is_flag=True, help="Only the default, field by field.")
@click.option("--labelled/--no-labelled", default=True, help="Also score what a few labelled images bring.")
def main(data: Path, json_file: Path | None, each: bool, norms: str | None, fields_only: bool, labelled: bool) -> None:
    """Score every correction on every pair."""
    pairs = [Pair.read(path) for path in sorted(data.glob("*.npz"))]
    pairs = [pair for pair in pairs if norms in (None, pair.norms)]
    before = {pair.name: pair.confusion(AlignmentSettings(method="none")) for pair in pairs}
    print(field_tables(pairs))
    if fields_only:
        return
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
            values = labelled_scores([pair for pair in pairs if not pair.in_domain], count)
            print(labelled_table(values, count))
            found["labelled"][count] = values
    if each:
        print(pair_table(pairs, before, gains))
    if json_file:
        json_file.write_text(json.dumps(found, indent=1))


def field_tables(pairs: Sequence[Pair]) -> str:
    """The default field by field, without a reference and, where there are images in domain, with one."""
    default, plain = AlignmentSettings(), AlignmentSettings(method="none")
    references = {}
    for pair in pairs:
        if pair.in_domain and pair.field in GROUPS:
            groups, others = GROUPS[pair.field], [one for one in pairs if one.network == pair.network]
            names = next((one.classes for one in others if set(one.classes) == groups.keys()), list(groups))
            references[pair.network] = pair.grouped({name: groups[name] for name in names})
    alone: list[tuple[Pair, Gain]] = []
    beside: list[tuple[Pair, Gain]] = []
    for pair in pairs:
        before = pair.confusion(plain)
        alone.append((pair, gain(before, pair.confusion(default))))
        reference = references.get(pair.network)
        if pair.in_domain:
            wholes = [pair, reference] if reference else [pair]
            for half, other in (whole.halves(seed) for whole in wholes for seed in range(DRAWS)):
                corrected = half.confusion(default, reference=other.statistics)
                beside.append((half, gain(half.confusion(plain), corrected)))
        elif reference and reference.classes == pair.classes:
            beside.append((pair, gain(before, pair.confusion(default, reference=reference.statistics))))
    return "\n".join(
        [
            "mIoU / mean accuracy / pixel accuracy / frequency-weighted IoU of the default, points against argmax; "
            "means over classes that have labels, predictions of others count as wrong",
            "",
            _by_field("without a reference", alone),
            _by_field("with a reference", beside),
        ]
    )


def _by_field(title: str, gains: Sequence[tuple[Pair, Gain]]) -> str:
    out = [(pair, one) for pair, one in gains if not pair.in_domain]
    within = [(pair, one) for pair, one in gains if pair.in_domain]
    rows = {f"{field}, out of domain": [one for pair, one in out if pair.field == field] for field in FIELDS.values()}
    means = [_mean(found) for found in rows.values() if found]
    rows |= {
        "2 to 9 classes": [one for pair, one in out if len(pair.classes) < 10],
        "more than 100 classes": [one for pair, one in out if len(pair.classes) > 100],
        "all pairs": [one for _, one in out],
        "norms as trained": [one for pair, one in out if pair.norms == "source"],
    }
    rows["**mean of the fields**"] = [Gain(*np.mean([list(vars(one).values()) for one in means], axis=0))]
    rows |= {f"{field}, in domain": [one for pair, one in within if pair.field == field] for field in FIELDS.values()}
    lines = [f"| {title} | pairs | mean | worst mIoU |", "| --- | --- | --- | --- |"]
    for name, found in rows.items():
        if found:
            mean = " / ".join(f"{value:+.1f}" for value in vars(_mean(found)).values())
            lines.append(f"| {name} | {len(found)} | {mean} | {min(one.miou for one in found):+.1f} |")
    return "\n".join([*lines, ""])


def _mean(gains: Sequence[Gain]) -> Gain:
    return Gain(*np.mean([list(vars(one).values()) for one in gains], axis=0))


def left_out(pairs: Sequence[Pair], family: Sequence[dict[str, Gain]]) -> dict[str, Gain]:
    """What each network gains by the strength with the best mean mIoU over the others' pairs out of domain."""
    chosen: dict[str, Gain] = {}
    for network in {pair.network for pair in pairs}:
        others = [pair.name for pair in pairs if pair.network != network and not pair.in_domain]
        best = max(family, key=lambda gains: sum(gains[name].miou for name in others))
        chosen |= {pair.name: best[pair.name] for pair in pairs if pair.network == network}
    return chosen


def table(pairs: Sequence[Pair], gains: dict[str, dict[str, Gain]]) -> str:
    """Means over the pairs out of domain, and what happens in domain."""
    away = [pair.name for pair in pairs if not pair.in_domain]
    home = [pair.name for pair in pairs if pair.in_domain]
    lines = [
        f"{len(away)} pairs out of domain, {len(home)} in domain; points against argmax",
        "",
        "| | mIoU, mean | worst pair | pairs below −0.5 | mean accuracy | pixel accuracy | in domain: mIoU | worst |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, values in gains.items():
        miou, there = ([values[name].miou for name in names] for names in (away, home))
        accuracy, pixels = (np.mean([getattr(values[name], key) for name in away]) for key in ("accuracy", "pixels"))
        harmed = sum(value < HARM for value in miou)
        lines.append(
            f"| {row} | {np.mean(miou):+.1f} | {min(miou):+.1f} | {harmed} | {accuracy:+.1f} | {pixels:+.1f} "
            + (f"| {np.mean(there):+.1f} | {min(there):+.1f} |" if there else "| | |")
        )
    return "\n".join([*lines, ""])


def pair_table(pairs: Sequence[Pair], before: dict[str, ConfusionMatrix], gains: dict[str, dict[str, Gain]]) -> str:
    """Every pair: argmax's scores, then what corrections without a choice to make change."""
    rows = [row for row in gains if "τ" not in row or "left out" in row]
    lines = ["| pair | argmax | " + " | ".join(rows) + " |", "| --- |" + " --- |" * (len(rows) + 1)]
    for pair in pairs:
        matrix = before[pair.name]
        found = [gains[row][pair.name] for row in rows]
        cells = [f"{one.miou:+.1f} / {one.accuracy:+.1f} / {one.pixels:+.1f}" for one in found]
        scores = " / ".join(
            f"{100 * one:.1f}" for one in (matrix.mean_iou(), matrix.mean_accuracy(), matrix.pixel_accuracy())
        )
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
        ("out of domain", [one for one in pairs if not one.in_domain]),
        ("in domain", [one for one in pairs if one.in_domain]),
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
