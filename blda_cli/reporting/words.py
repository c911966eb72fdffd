"""The report in words: findings and their certainty, changes by a correction, next steps."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blda_cli.core.choices import Shift
from blda_cli.core.fitting.strength import ADAPTED_IN_DOMAIN, FEWEST_IMAGES, IN_DOMAIN, DomainGap
from blda_cli.core.shifts import MINIMUM_PIXELS
from blda_cli.reporting.model import LEAST_SHARE, Estimate, Report, Run, Scores, Verdict
from blda_cli.store.provenance import DESCRIPTION_OPTIONS, Provenance, option_words

_NAMED = 4

_MANY = 0.05
"""Share of changed pixels from which the report names the classes that gain by the changes."""

_WORSE = 0.005
"""Loss of pixel accuracy from which the report says that more pixels are wrong."""

_WEIGHTS = "weights"
"""The kind of doubt that leaves nothing to correct: the network does not hold its trained weights."""

_SHARED_OPTIONS = (
    *("--model", *DESCRIPTION_OPTIONS, "--images", "--every", "--valid-mask", "--calibrator"),
    *("--slide", "--stride", "--scales", "--flip", "--batch-size", "--amp", "--device"),
)
"""The options that a counting command and a correcting command share."""


@dataclass(frozen=True)
class Step:
    """A suggested next step.

    Attributes:
        text: why.
        command: how.
    """

    text: str
    command: str


def points(value: float) -> str:
    """A share as signed percentage points, e.g. ``+3.2``; ``n/a`` for NaN."""
    return signed(100 * value)


def signed(value: float) -> str:
    """A number to one decimal with its sign, zero without one; ``n/a`` for NaN."""
    if math.isnan(value):
        return "n/a"
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def percent(value: float) -> str:
    """A share as a percentage with as many decimals as small shares need; ``n/a`` for NaN."""
    if math.isnan(value):
        return "n/a"
    decimals = 1 if value >= 0.01 or value == 0 else 2 if value >= 0.0001 else 4
    return f"{100 * value:.{decimals}f}\N{NO-BREAK SPACE}%"


def score(value: float) -> str:
    """A score in 0..1 as a percentage without its sign, e.g. ``17.8``; ``n/a`` for NaN."""
    return "n/a" if math.isnan(value) else f"{100 * value:.1f}"


def times(value: float) -> str:
    """A ratio, e.g. ``×0.12``; ``n/a`` for NaN."""
    return "n/a" if math.isnan(value) else f"×{value:.{2 if value < 10 else 0}f}"


def subject(report: Report) -> list[tuple[str, str]]:
    """What the report is of, by name: the network, the images, the classes, the corrections, the reference."""
    model = report.made["statistics"].get("model", {})
    options = report.provenance.common_options()
    named = [str(name) for name in (options.get("--model"), model.get("factory") or model.get("path")) if name]
    network = f"{named[0]} ({named[1]})" if len(named) > 1 and named[0] != named[1] else "".join(named[:1])
    if options.get("--weights"):
        network += f" with {options['--weights']}"
    sources = _sources(report.provenance)
    count = f"{report.images:,} image{'' if report.images == 1 else 's'}, {report.pixels:,} pixels"
    things = [
        ("network", network or "not recorded"),
        ("images", f"{_list(sources)} ({count})" if sources else count),
        ("classes", f"{len(report.classes)}"),
    ]
    for run in report.runs:
        corrected = _sources(Provenance.from_json(run.made["provenance"]))
        elsewhere = f", on {_list(corrected)}" if corrected and sources and set(corrected) != set(sources) else ""
        things.append((run.name, f"{run.method}{elsewhere}"))
    if report.reference is not None:
        things.append(("reference", f"{report.reference.file} ({report.reference.images:,} images)"))
    return things


def _sources(provenance: Provenance) -> list[str]:
    """Where the images are from, each place once."""
    if provenance.source:
        return [provenance.source]
    return list(dict.fromkeys(source for part in provenance.merged for source in _sources(part)))


def summary(report: Report) -> list[str]:
    """The findings, a sentence or two each, in the order in which they are of interest."""
    sentences = [_found(report), _how_sure(report)]
    doubts = report.provenance.all_doubts()
    if report.gap is not None and _WEIGHTS not in doubts:
        sentences.insert(0, found_gap(report.gap, report.images))
    sentences[:0] = [f"The model's {kind} may be wrong: {doubt} (see blda check)." for kind, doubt in doubts.items()]
    if report.before.scores is not None:
        sentences.insert(len(sentences) - 1, _measured(report, report.before.scores))
    sentences += [_changed(report, run) for run in report.runs]
    if len(report.runs) > 1 and report.before.scores is not None:
        sentences.append(_best(report))
    return sentences


def next_steps(report: Report) -> list[Step]:
    """Suggested steps after these findings, with their commands."""
    made = report.made["statistics"]
    shared = _shared(report.provenance)
    stats = shlex.quote(str(made["file"]))
    report_command = f"blda report --stats {stats}"
    if _WEIGHTS in report.provenance.all_doubts():
        described = shlex.join(option_words(_options(report.provenance), ("--model", *DESCRIPTION_OPTIONS, "--images")))
        return [
            Step(
                "Load the network's trained weights and collect statistics anew: without them there is nothing to "
                "correct. This says whether they are loaded.",
                f"blda check {described}",
            )
        ]
    if made.get("norms_shifted"):
        return [norms_step(report.provenance)]
    if not report.runs:
        at_home = report.gap is not None and report.gap.distance == 0
        correct = "Correct the predictions with these statistics, then look at what changed."
        check = "The predictions are best left alone; to be sure, label a few of these images and score them."
        return [
            Step(check, f"blda collect-stats {shared} --labels LABELS --output labelled.h5")
            if at_home
            else Step(correct, f"blda align {shared} --stats {stats} --output aligned"),
            Step("See what each method would do, on sampled pixels.", f"{report_command} --compare --output compared"),
        ]
    folders = " ".join(f"--aligned {shlex.quote(run.folder)}" for run in report.runs)
    if report.before.scores is None:
        return [
            Step(
                "Label a few of these images to know whether the correction helps; until then the pictures and "
                "the shares are what there is to judge by.",
                f"{report_command} {folders} --labels LABELS --output scored",
            ),
            Step(
                "The statistics of 8 labelled images make a stronger correction, without training.",
                f"blda align {shared} --stats {stats} --method supervised --labelled LABELLED.h5 --output supervised",
            ),
            *_views_step(report),
            *_training_step(report),
        ]
    best = max(report.runs, key=_merit)
    if _merit(best) > _merit_of(report.before.scores):
        found = f"The corrected predictions are in {Path(best.folder) / 'predictions'}."
        trained = _training_step(report)
        if not trained:
            other = f"{found} See what each method would do, on sampled pixels."
            return [Step(other, f"{report_command} --compare --output compared"), *_views_step(report)]
        return [Step(f"{found} {trained[0].text}", trained[0].command), *_views_step(report)]
    return [
        Step(
            "No correction helped here: keep the network's own predictions, or try a weaker correction.",
            f"blda align {shared} --stats {stats} --tau 0.1 --output aligned-weaker",
        )
    ]


def norms_step(provenance: Provenance) -> Step:
    """The suggested step where the norm distance is large."""
    return Step(
        "The batch norm statistics of these images differ from the network's: mix them first, which may bring more "
        "than any correction, and go on with these statistics.",
        f"blda collect-stats {_shared(provenance)} --norms auto --output auto-norms.h5",
    )


def _training_step(report: Report) -> list[Step]:
    """Training without source images, for the kinds of model that can be trained."""
    if report.made["statistics"].get("model", {}).get("kind", "python") not in ("python", "huggingface"):
        return []
    options = _options(report.provenance)
    model = shlex.join(option_words(options, ("--model", *DESCRIPTION_OPTIONS)))
    return [
        Step(
            "Training may gain more: this trains the network on labels that it gives these images itself. Where there "
            "are labelled images like those it was trained on, give them as --source-images and --source-labels in "
            "place of --no-source.",
            f"blda finetune {model} --no-source --target-images {shlex.quote(options['--images'])} --iterations 800 "
            "--learning-rate 3e-4 --head-factor 1 --teacher-momentum 0.99 --output run",
        )
    ]


def _views_step(report: Report) -> list[Step]:
    """The suggestion to average views, where the segmenter supports it and neither statistics nor runs did it."""
    ready_made = report.made["statistics"].get("model", {}).get("kind") == "logits"
    made = [report.provenance, *(Provenance.from_json(run.made["provenance"]) for run in report.runs)]
    if ready_made or any(_averages_views(one) for one in made):
        return []
    chosen = report.provenance.norms
    norms = "" if chosen in ("source", "auto") else f" --norms {shlex.quote(chosen)}"
    return [
        Step(
            "Average over views before the correction, which may add to it, up to eleven times slower.",
            f"blda align {_shared(report.provenance)}{norms} --preset strong --output aligned-strong",
        )
    ]


def _averages_views(provenance: Provenance) -> bool:
    options = provenance.common_options()
    return "--flip" in options or "--scales" in options or _is_strong(options)


def _is_strong(options: Mapping[str, Any]) -> bool:
    return options.get("--preset") == "strong"


def _options(provenance: Provenance) -> dict[str, Any]:
    """Options that the network was run with; the file of ``--write-model`` stands for those that describe it."""
    options = {"--model": "MODEL", "--images": provenance.source or "DIR"} | provenance.common_options()
    kept = options.get("--write-model")
    if kept is None:
        return options
    return {name: value for name, value in options.items() if name not in DESCRIPTION_OPTIONS} | {"--model": kept}


def _shared(provenance: Provenance) -> str:
    """The options that a command has in common with the one that counted."""
    options = _options(provenance)
    shared = (*_SHARED_OPTIONS, "--preset") if _is_strong(options) else _SHARED_OPTIONS  # published is for align alone
    return shlex.join(option_words(options, shared))


def domain_verdict(gap: DomainGap) -> str:
    """Whether the images are in domain, in a few words."""
    if gap.classes < 3:
        return "domain unknown"
    return "in domain" if gap.distance == 0 else "somewhat out of domain" if gap.distance < 1 else "out of domain"


def found_gap(gap: DomainGap, images: int) -> str:
    """Whether the images are in domain, by what evidence, and what follows for a correction."""
    if gap.classes < 3:
        return (
            "Whether these images are in domain cannot be told from fewer than three predicted classes: the "
            "predictions are left alone."
        )
    evidence, few = _evidence(gap), images
    if gap.reference is not None:
        few = gap.reference.images
    if gap.distance == 0:
        text = f"These images look in domain ({evidence}): leave the predictions alone."
    elif gap.distance < 1:
        text = f"These images look somewhat out of domain ({evidence}): correct them gently."
    else:
        text = f"These images are out of domain ({evidence}): a correction is likely to help."
    return text if few >= FEWEST_IMAGES else f"{text} So few images say little."


def _evidence(gap: DomainGap) -> str:
    norms = "batch norm statistics of these images differ from the network's"
    if gap.reference is not None:
        found = gap.reference
        text = (
            f"mean confidence {percent(found.confidence)}, of the reference {percent(found.reference_confidence)}, "
            f"{'clearly lower' if found.fall else 'not clearly lower'}; the channels' levels differ from the "
            f"reference's by {percent(found.levels)} of their spread"
        )
        return f"{text}; {norms}" if gap.norms_shifted and not gap.norms_adapted else text
    text = (
        f"{percent(gap.contested)} of the pixels are contested, {gap.aim:.1f} times what chance would give: crowding "
        f"{percent(gap.crowding)}, in domain mostly up to "
        f"{percent(ADAPTED_IN_DOMAIN if gap.norms_adapted else IN_DOMAIN)}"
    )
    return f"{text}; {norms}" if gap.norms_shifted and not gap.norms_adapted else text


def _found(report: Report) -> str:
    over, under = report.named(Verdict.OVER), report.named(Verdict.UNDER)
    estimates = dict(zip(report.classes.names, report.estimates, strict=True))

    def size(estimate: Estimate) -> str:
        return times(estimate.frequency) if report.many_classes else f"{points(estimate.bias)} points"

    def listed(names: Sequence[str]) -> str:
        return _list([f"{name} ({size(estimates[name])})" for name in names])

    where = f"On these {report.images:,} images" if report.images > 1 else "On this one image"
    if all(estimate.verdict in (Verdict.NEVER, Verdict.UNKNOWN) for estimate in report.estimates):
        return f"{where} no class is predicted often enough to tell whether it is over- or under-predicted."
    if not over and not under:
        return f"{where} no class is clearly over- or under-predicted, as far as can be told without labels."
    parts = []
    if over:
        parts.append(f"over-predicts {listed(over)}")
    if under:
        parts.append(f"under-predicts {listed(under)}")
    return f"{where} the network, as estimated without labels, {' and '.join(parts)}."


def _how_sure(report: Report) -> str:
    known = [one for one in report.estimates if one.verdict not in (Verdict.NEVER, Verdict.UNKNOWN)]
    unknown, never = report.named(Verdict.UNKNOWN), report.named(Verdict.NEVER)
    absent = f" (Almost) never predicted, so absent or missed: {_list(never)}." if never else ""
    absent += f" Too few pixels to tell (n/a): {_list(unknown)}." if unknown else ""
    if unknown and report.pixels == report.images:
        absent += (
            f" Each image of a classifier counts as one pixel, and a class needs {MINIMUM_PIXELS} for an estimate: "
            "statistics of more images tell."
        )
    if not any(estimate.low == estimate.low for estimate in known):
        return f"How sure this is cannot be said: intervals need two or more images.{absent}"
    clear = sum(estimate.verdict is not Verdict.UNCLEAR for estimate in known)
    return (
        f"For {clear} of {len(known)} classes the direction would be the same with other images like these: the 90 % "
        f"interval, from drawing the images anew, lies on one side of zero.{_alike(report)} How far the estimate "
        f"itself is from the truth only labels can tell.{absent}"
    )


def _alike(report: Report) -> str:
    """How intervals treat neighbouring images that are alike, e.g. frames of one drive."""
    blocks = report.blocks
    if blocks is None or blocks.count > report.images / 1.5:
        return ""
    text = f" Neighbouring images are alike, so {report.images / blocks.count:.0f} in a row are drawn together"
    return f"{text}; as even these blocks are alike, the interval is too narrow." if blocks.correlated else f"{text}."


def _measured(report: Report, scores: Scores) -> str:
    pairs = [(bias, name) for bias, name in zip(scores.bias, report.classes.names, strict=True) if bias == bias]
    if not pairs:
        return "The labels hold none of the classes, so nothing can be measured against them."
    if len(pairs) == 1:
        return f"The labels hold one class alone, {pairs[0][1]}, so there is no bias to measure."
    most, least = max(pairs), min(pairs)
    text = (
        f"Measured against the labels, {most[1]} is the most over-predicted ({points(most[0])} points) and {least[1]} "
        f"the most under-predicted ({points(least[0])})"
    )
    if report.rank_correlation == report.rank_correlation:
        told = [
            (estimate.bias > 0) == (bias > 0)
            for estimate, bias in zip(report.estimates, scores.bias, strict=True)
            if bias == bias and estimate.verdict in (Verdict.OVER, Verdict.UNDER)
        ]
        text += (
            f". The estimate ranks the classes like the labels do with a correlation of {report.rank_correlation:.2f} "
            f"and has the direction right for {sum(told)} of the {len(told)} classes it tells one of"
        )
    return f"{text}."


def _changed(report: Report, run: Run) -> str:
    beyond = ", not counting what the adapted norms changed before" if report.norms_adapted else ""
    pixels = "its own argmax's pixels" if run.own_before else f"the pixels{beyond}"
    text = f"{_subject(report, run)} changed {percent(run.changed)} of {pixels}."
    if run.changed == 0:
        return text
    before, after = _share_before(report, run), run.after.share
    ratios = [
        (new / old, name, old, new)
        for name, old, new in zip(report.classes.names, before, after, strict=True)
        if min(old, new) >= LEAST_SHARE
    ]
    grown, shrunk = max(ratios, default=None), min(ratios, default=None)
    if grown and shrunk and grown[0] > 1 > shrunk[0]:
        text += (
            f" {grown[1]} grew most, {percent(grown[2])} to {percent(grown[3])} of the pixels; {shrunk[1]} shrank "
            f"most, {percent(shrunk[2])} to {percent(shrunk[3])}."
        )
    return text + _gained(report, run) + _contrary(report, run) + _many_for_few(report, run)


def _share_before(report: Report, run: Run) -> list[float]:
    return run.own_before or report.before.share


def _contrary(report: Report, run: Run) -> str:
    """Why classes changed against their verdict: under-predicted ones that shrank, over-predicted ones that grew."""
    rows = zip(report.classes.names, report.estimates, _share_before(report, run), run.after.share, strict=True)
    growth = {
        name: after - before
        for name, estimate, before, after in rows
        if percent(before) != percent(after) and not estimate.opposed
    }
    shrank = [name for name in report.named(Verdict.UNDER) if growth.get(name, 0) < 0]
    grew = [name for name in report.named(Verdict.OVER) if growth.get(name, 0) > 0]
    parts = []
    if shrank:
        parts.append(f"{_list(shrank)} shrank although under-predicted")
    if grew:
        parts.append(f"{_list(grew)} grew although over-predicted")
    if not parts:
        return ""
    reason = "a share also depends on how much the correction favours the classes that a class competes with"
    if run.settings.get("method") == "blda" and run.settings.get("shift") == Shift.NEGATIVE:
        reason = (
            "the correction goes by how high a class's logits lie where the class is absent, the estimate also by how "
            "low they lie at its own pixels"
        )
    return f" {' and '.join(parts)}: {reason}."


def _many_for_few(report: Report, run: Run) -> str:
    """Warn that many pixels changed in favour of few classes, or that more are wrong than before."""
    one, other = report.before.scores, run.after.scores
    if one is not None and other is not None and not math.isnan(one.pixel_accuracy):
        if other.pixel_accuracy >= one.pixel_accuracy - _WORSE:
            return ""
        return " More pixels are wrong than before, for few classes' sake: --favour pixels corrects less."
    growth = [new - old for old, new in zip(_share_before(report, run), run.after.share, strict=True)]
    gains = sorted(
        ((gain, name) for gain, name in zip(growth, report.classes.names, strict=True) if gain > 0), reverse=True
    )
    half, named = sum(gain for gain, _ in gains) / 2, []
    for gain, name in gains:
        if half > 0:
            named.append(name)
        half -= gain
    if run.changed < _MANY or not named:
        return ""
    return (
        f" These are many pixels, and {_list(named)} gained half of what classes gained. Where every pixel counts "
        "alike, --favour pixels corrects less."
    )


def _gained(report: Report, run: Run) -> str:
    one, other = report.before.scores, run.after.scores
    if one is None or other is None or math.isnan(one.mean_iou):
        return ""
    differences = [new - old for old, new in zip(one.iou, other.iou, strict=True) if new == new and old == old]
    start = f"Against the argmax of {report.runs[0].name}, mean IoU" if run.own_before else "Mean IoU"
    better = sum(difference > 0 for difference in differences)
    return (
        f" {start} went from {score(one.mean_iou)} to {score(other.mean_iou)}, mean accuracy from "
        f"{score(one.mean_accuracy)} to {score(other.mean_accuracy)}, pixel accuracy from "
        f"{score(one.pixel_accuracy)} to {score(other.pixel_accuracy)}; {better} of {len(differences)} classes gained "
        f"IoU, {sum(difference < 0 for difference in differences)} lost some. The summed |Bias| went from "
        f"{score(one.total_bias)} to {score(other.total_bias)} points."
    )


def _best(report: Report) -> str:
    best = max(report.runs, key=_merit)
    assert report.before.scores is not None
    if _merit(best) <= _merit_of(report.before.scores):
        return (
            "None of them is better than the network's own predictions, going by mean IoU and mean accuracy together."
        )
    return f"Going by mean IoU and mean accuracy together, {best.name} is the best of them."


def _subject(report: Report, run: Run) -> str:
    return f"Alignment ({run.method})" if len(report.runs) == 1 else f"{run.name} ({run.method})"


def _merit(run: Run) -> float:
    assert run.after.scores is not None
    return _merit_of(run.after.scores)


def _merit_of(scores: Scores) -> float:
    return scores.mean_iou + scores.mean_accuracy


def _list(names: Sequence[str]) -> str:
    """The first few names as a sentence lists them."""
    shown = list(names[:_NAMED])
    if len(names) > _NAMED:
        shown.append(f"{len(names) - _NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
