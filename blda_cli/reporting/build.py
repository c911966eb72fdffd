"""From statistics and counted predictions to the numbers of a report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from blda_cli.core.bias import estimated_bias, sampled_bias
from blda_cli.core.choices import LabelSource
from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.core.fitting.strength import DomainGap, domain_gap, predicted_means
from blda_cli.core.histogram import LogitHistogram
from blda_cli.core.neighbours import Blocks
from blda_cli.core.norms import MixedNorms
from blda_cli.core.shifts import MINIMUM_PIXELS, additive_fit, location_shifts, occupied
from blda_cli.core.statistics import LogitStatistics
from blda_cli.reporting.model import (
    Candidate,
    Domain,
    Estimate,
    Predictions,
    Reference,
    Report,
    Run,
    Scores,
    scores_of,
    shares,
)
from blda_cli.store.predictions import RunRecord
from blda_cli.store.statistics import StatisticsFile

_FEWEST_TO_RANK = 3


def build_report(
    content: StatisticsFile,
    runs: Sequence[tuple[str, RunRecord]],
    confusions: tuple[ConfusionMatrix, Sequence[ConfusionMatrix]] | None,
    candidates: Sequence[Candidate],
    made: Mapping[str, Any],
    remarks: Sequence[str],
    reference: tuple[str, StatisticsFile] | None = None,
) -> Report:
    """Assemble the report.

    Args:
        content: the statistics.
        runs: folder and record of each folder of corrected predictions, all of the same images.
        confusions: of the network's own predictions and of each run's, where there are labels; None without runs
            takes what the statistics counted.
        candidates: corrections compared on the sampled pixels.
        made: how the report was made.
        remarks: sentences about the input.
        reference: name and content of statistics of images of the training domain, shown beside these.

    Returns:
        The report.
    """
    statistics = content.statistics
    source = estimate_source(statistics)
    shown = picture_source(statistics)
    remarks = [*remarks, *_remarks(content)]
    before_confusion = confusions[0] if confusions else (None if runs else statistics.confusion)
    before = Predictions(
        share=shares(runs[0][1].pixels_before) if runs else statistics.predicted_share().tolist(),
        scores=scores_of(before_confusion) if before_confusion is not None else None,
    )
    estimates, blocks = _estimates(content, source, labelled=before_confusion is not None)
    names = _names([folder for folder, _ in runs])
    return Report(
        classes=content.classes,
        images=statistics.images,
        pixels=statistics.pixels,
        source="sample" if len(statistics.sample) else str(source),
        estimates=estimates,
        mean_shifts=mean_shifts(statistics.cells[shown]),
        shift_source=str(shown),
        before=before,
        runs=[
            _run(name, folder, record, confusions[1][index] if confusions else None, runs[0][1])
            for index, (name, (folder, record)) in enumerate(zip(names, runs, strict=True))
        ],
        candidates=list(candidates),
        rank_correlation=_rank_correlation(estimates, before),
        made=made,
        provenance=content.provenance,
        remarks=remarks,
        norms_changed=_norms_changed(content),
        steps=_steps(content, before, dict(zip(names, (record for _, record in runs), strict=True))),
        first_scores=_first_scores(content) if before.scores is not None else {},
        gap=_gap(content, reference[1] if reference else None),
        reference=_beside(statistics, *reference) if reference else None,
        blocks=blocks,
        norms_adapted=runs[0][1].norms_adapted if runs else content.norms_adapted,
    )


def _gap(content: StatisticsFile, reference: StatisticsFile | None) -> DomainGap | None:
    sample, usual = content.statistics.sample, reference.statistics.sample if reference else None
    if not len(sample):
        return None
    shifted = content.norms_shifted and not (reference and reference.norms_shifted)
    return domain_gap(sample, shifted, usual if usual is not None and len(usual) else None, content.norms_adapted)


def _beside(statistics: LogitStatistics, file: str, reference: StatisticsFile) -> Reference:
    return Reference(file, reference.statistics.images, _domain(statistics), _domain(reference.statistics))


def _domain(statistics: LogitStatistics) -> Domain:
    sample = statistics.sample
    means, pixels = predicted_means(sample)
    counted = pixels >= MINIMUM_PIXELS
    probability = sample.logits.double().softmax(dim=1).amax(dim=1)
    total = torch.zeros(len(pixels), dtype=torch.float64).index_add_(0, sample.predicted, probability)
    confidence = total / torch.bincount(sample.predicted, minlength=len(pixels))
    levels = additive_fit(means, pixels).levels
    return Domain(
        share=statistics.predicted_share().tolist(),
        confidence=torch.where(counted, confidence, torch.nan).tolist(),
        level=torch.where(counted, levels, torch.nan).tolist(),
    )


def estimate_source(statistics: LogitStatistics) -> LabelSource:
    """The cells that represent the target: those without labels where there are any."""
    return _first(statistics, LabelSource.PSEUDO, LabelSource.SOFT, LabelSource.GROUND_TRUTH)


def picture_source(statistics: LogitStatistics) -> LabelSource:
    """The cells that distributions and shifts are shown of: the true ones where there are any."""
    return _first(statistics, LabelSource.GROUND_TRUTH, LabelSource.PSEUDO, LabelSource.SOFT)


def _first(statistics: LogitStatistics, *sources: LabelSource) -> LabelSource:
    return next(source for source in sources if source in statistics.cells)


def mean_shifts(cells: LogitHistogram) -> list[list[float]]:
    """How far each cell's mean lies below that of its anchor, ``[C][C]``; NaN for labels with too few pixels."""
    shifts = location_shifts(cells.means(), cells.label_pixels())
    rows: list[list[float]] = torch.where(occupied(cells)[:, None], shifts, torch.nan).tolist()
    return rows


def _estimates(content: StatisticsFile, source: LabelSource, *, labelled: bool) -> tuple[list[Estimate], Blocks | None]:
    statistics, blocks = content.statistics, None
    if len(statistics.sample):
        found = sampled_bias(statistics.sample, keys=content.images)
        blocks = found.blocks
        rows = torch.stack([found.bias, found.low, found.high, found.frequency], dim=1)
    else:  # of a shard without an image
        bias = estimated_bias(statistics.cells[source]).cpu()
        rows = torch.stack([bias, *[torch.full_like(bias, torch.nan)] * 3], dim=1)
    never = [not labelled and pixels < MINIMUM_PIXELS for pixels in statistics.sample.seen.tolist()]
    estimates = [Estimate(*row) for row in rows.tolist()]
    return [replace(estimate, never=one) for estimate, one in zip(estimates, never, strict=True)], blocks


def _run(name: str, folder: str, record: RunRecord, confusion: ConfusionMatrix | None, first: RunRecord) -> Run:
    return Run(
        name=name,
        folder=folder,
        method=record.alignment.describe(),
        settings=record.settings,
        changed=float(np.mean(list(record.changed.values()))) if record.changed else 0.0,
        after=Predictions(shares(record.pixels_after), scores_of(confusion) if confusion is not None else None),
        made={"model": record.model, "statistics": record.statistics, "provenance": record.provenance.as_json()},
        own_before=shares(record.pixels_before) if record.model != first.model else None,
    )


def _names(folders: Sequence[str]) -> list[str]:
    """The folders' own names, or their paths where two have the same name."""
    names = [folder.rstrip("/").rpartition("/")[2] for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)


def _steps(content: StatisticsFile, before: Predictions, runs: Mapping[str, RunRecord]) -> dict[str, Sequence[float]]:
    """Shares of the predicted classes after each step: the original network, with norms mixed, aligned."""
    norms = content.norms
    if not isinstance(norms, MixedNorms) or norms.weight == 1 or 1.0 not in norms.shares:
        return {}
    aligned = {name: shares(record.pixels_after) for name, record in runs.items()}
    return {f"as it came ({norms.images} images)": norms.shares[1.0], "with norms": before.share, **aligned}


def _norms_changed(content: StatisticsFile) -> float | None:
    """Share of the pixels that the mixed norms alone changed; None where that was not counted."""
    norms = content.norms
    return norms.changed.get(norms.weight) if isinstance(norms, MixedNorms) and norms.weight < 1 else None


def _first_scores(content: StatisticsFile) -> dict[str, Scores]:
    """Scores of the original network and of that with norms mixed, on the images that the weight was chosen on."""
    norms = content.norms
    if not isinstance(norms, MixedNorms) or norms.weight == 1 or not norms.confusions:
        return {}
    names = {1.0: "as it came", norms.weight: "with norms"}
    return {f"{names[weight]} ({norms.images} images)": scores_of(one) for weight, one in norms.confusions.items()}


def _rank_correlation(estimates: Sequence[Estimate], before: Predictions) -> float:
    if before.scores is None:
        return math.nan
    pairs = [
        (estimate.bias, bias)
        for estimate, bias in zip(estimates, before.scores.bias, strict=True)
        if not math.isnan(estimate.bias) and not math.isnan(bias)
    ]
    if len(pairs) < _FEWEST_TO_RANK:
        return math.nan
    from scipy import stats  # a second, which only this needs

    estimated, true = zip(*pairs, strict=True)
    return float(stats.spearmanr(estimated, true).statistic)


def _remarks(content: StatisticsFile) -> list[str]:
    remarks = []
    if isinstance(content.norms, MixedNorms) and (content.norms.weight < 1 or content.norms.agreements):
        remarks.append(f"batch norms: {content.norms}")
    if not content.complete:
        remarks.append("The statistics are of a run that did not finish: they hold only the images counted so far.")
    if content.skipped:
        remarks.append(
            f"{len(content.skipped)} images could not be read and were left out, {min(content.skipped)} among them."
        )
    return remarks
