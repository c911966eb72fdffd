"""``report.json`` and ``report.csv``: the report's numbers for programs.

``report.json`` (``format`` "blda-report", ``format_version`` 1; a reader should accept keys it does not know):

- ``created_by``; ``made``: command, date, versions, the statistics' file, digest, model and provenance, the labels'
  encoding and the share of pixels without a class.
- ``images``, ``pixels``: what the statistics are of. ``estimate_source``: what the estimates are made from,
  the ``sample`` of pixels or the cells of a label source. ``interval``: null, or ``{"count", "correlated"}``, how many
  blocks of neighbouring images the intervals are drawn from, and whether images are alike beyond a block.
- ``domain_gap``: ``{"contested", "chance", "disagreement", "classes", "norms_shifted", "norms_adapted", "crowding",
  "distance", "support", "reference"}``, how far out of domain the images are, distance 0 to 1; null where no pixels
  were sampled. ``reference``: null, or ``{"confidence", "reference_confidence", "fall", "levels", "images"}``.
- ``summary``: sentences. ``next_steps``: ``{"text", "command"}`` each. ``remarks``: sentences.
- ``classes``: a list of ``{"name", "color", "estimate": {"bias", "low", "high", "frequency", "verdict"},
  "before": VALUES, "runs": {NAME: VALUES}, "reference"}``, in the order of the channels. VALUES: ``share`` of the
  pixels predicted as the class and, with labels, ``bias``, ``iou`` and ``accuracy``. ``verdict`` is "over", "under",
  "unclear" or "n/a". ``reference``: null, or ``{"usual": DOMAIN, "target": DOMAIN}``, the class on images of the
  training domain and on these; DOMAIN: ``share``, ``confidence`` and ``level``.
- ``overall``: ``{"before": SCORES, "runs": {NAME: SCORES}, "rank_correlation"}``. SCORES: with labels ``mean_iou``,
  ``mean_accuracy``, ``pixel_accuracy``, ``frequency_weighted_iou`` (each IoU weighted by its share of the labelled
  pixels), ``iou_spread``, ``accuracy_spread`` (population standard deviations over the classes) and
  ``total_bias`` (Σ |Bias|); of a run also ``changed``, the share of pixels changed.
- ``reference``: null, or ``{"file", "images"}`` of the statistics of the training domain.
- ``runs``: ``{NAME: {"folder", "method", "settings", "made"}}``.
- ``candidates``: with ``--compare``, a list of ``{"method", "changed", "share", ...SCORES}``.
- ``steps``: ``{NAME: [share]}``, shares of the predicted classes as the network came, with its norms mixed, and after
  each correction; empty where the norms are as they came.
- ``norms_changed``: share of the pixels whose class the mixed norms changed, on the images that their weight was chosen
  on; null where the norms are as they came.
- ``first_scores``: ``{NAME: {...SCORES}}``, with labels, of the first two steps on the images that the norms' weight
  was chosen on.
- ``mean_shifts``: ``{"source", "values"}``, ``[label][channel]``, in logits.
- ``confusion``: with labels ``{"before", "runs": {NAME}}``, pixels ``[label][prediction]``.

All shares, scores and biases are fractions, not percent, and pooled over pixels. ``null`` is a class that is absent:
never 0 and in no mean.

``report.csv`` has one line per class and one column per number; a run's columns begin with its name.
"""

import csv
import io
import json
import re
from dataclasses import asdict
from typing import Any

from blda_cli.core.fitting.strength import DomainGap
from blda_cli.files import without_nan
from blda_cli.reporting.model import Predictions, Report, Scores
from blda_cli.reporting.tables import CLASS_MEASURES, OVERALL_MEASURES
from blda_cli.reporting.words import next_steps, summary
from blda_cli.text import plain_cell
from blda_cli.version import __version__

FORMAT = "blda-report"
FORMAT_VERSION = 1

# A list of numbers over several lines; no text holds a line break in JSON.
_NUMBERS = re.compile(r"\[\n(?:[\s\d.,eE+-]|null)*\]")


def as_data(report: Report) -> dict[str, Any]:
    """The content of ``report.json``; NaN is None."""
    data: dict[str, Any] = without_nan(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_by": f"blda {__version__}",
            "summary": summary(report),
            "next_steps": [{"text": step.text, "command": step.command} for step in next_steps(report)],
            "remarks": report.remarks,
            "images": report.images,
            "pixels": report.pixels,
            "interval": report.blocks and asdict(report.blocks),
            "estimate_source": report.source,
            "domain_gap": report.gap and gap_data(report.gap),
            "overall": {
                "before": _overall(report.before.scores),
                "runs": {run.name: {"changed": run.changed, **_overall(run.after.scores)} for run in report.runs},
                "rank_correlation": report.rank_correlation,
            },
            "reference": report.reference and {"file": report.reference.file, "images": report.reference.images},
            "classes": [_class(report, index) for index in range(len(report.classes))],
            "runs": {
                run.name: {"folder": run.folder, "method": run.method, "settings": run.settings, "made": run.made}
                for run in report.runs
            },
            "candidates": [
                {"method": tried.method, "changed": tried.changed, "share": tried.share, **_overall(tried.scores)}
                for tried in report.candidates
            ],
            "first_scores": {name: _overall(scores) for name, scores in report.first_scores.items()},
            "norms_changed": report.norms_changed,
            "steps": {name: list(share) for name, share in report.steps.items()},
            "mean_shifts": {"source": report.shift_source, "values": report.mean_shifts},
            "confusion": _confusions(report),
            "made": report.made,
        }
    )
    return data


def gap_data(gap: DomainGap) -> dict[str, Any]:
    """How far out of domain images are, for programs: ``domain_gap`` of ``report.json``, ``evidence`` of ``align``."""
    return {**asdict(gap), "crowding": gap.crowding, "distance": gap.distance, "support": gap.support}


def to_json(report: Report) -> str:
    """The text of ``report.json``: the nested lists of numbers on one line a row."""
    text = json.dumps(as_data(report), ensure_ascii=False, allow_nan=False, indent=1)
    return _NUMBERS.sub(lambda found: "".join(found[0].split()).replace(",", ", "), text) + "\n"


def to_csv(report: Report) -> str:
    """The text of ``report.csv``; a number that is not there is an empty field."""
    rows = []
    for index, name in enumerate(report.classes.names):
        values = without_nan(_class(report, index))
        row = {"class": plain_cell(name), **{f"estimate_{key}": value for key, value in values["estimate"].items()}}
        row |= {f"before_{key}": value for key, value in values["before"].items()}
        for side, numbers in (values["reference"] or {}).items():
            row |= {f"reference_{side}_{key}": value for key, value in numbers.items()}
        for run, numbers in values["runs"].items():
            row |= {f"{plain_cell(run)}_{key}": value for key, value in numbers.items()}
        rows.append(row)
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _class(report: Report, index: int) -> dict[str, Any]:
    estimate = report.estimates[index]
    return {
        "name": report.classes.names[index],
        "color": "#{:02x}{:02x}{:02x}".format(*report.classes.palette[index]),
        "estimate": {
            "bias": estimate.bias,
            "low": estimate.low,
            "high": estimate.high,
            "frequency": estimate.frequency,
            "verdict": str(estimate.verdict),
        },
        "before": _values(report.before, index),
        "runs": {run.name: _values(run.after, index) for run in report.runs},
        "reference": report.reference
        and {
            name: {key: values[index] for key, values in vars(getattr(report.reference, name)).items()}
            for name in ("usual", "target")
        },
    }


def _values(predictions: Predictions, index: int) -> dict[str, float]:
    values = {"share": predictions.share[index]}
    if predictions.scores is not None:
        values |= {one.key: getattr(predictions.scores, one.key)[index] for one in CLASS_MEASURES}
    return values


def _overall(scores: Scores | None) -> dict[str, float]:
    return {} if scores is None else {one.key: getattr(scores, one.key) for one in OVERALL_MEASURES}


def _confusions(report: Report) -> dict[str, Any] | None:
    if report.before.scores is None:
        return None
    runs = {run.name: run.after.scores.confusion for run in report.runs if run.after.scores is not None}
    return {"before": report.before.scores.confusion, "runs": runs}
