"""``blda align``."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import click

from blda_cli.commands.options import (
    NORMS_HINT,
    Subject,
    calibrator_option,
    choice,
    images_option,
    inference_from,
    inference_options,
    json_option,
    load_subject,
    model_options,
    norms_from,
    norms_option,
    overwrite_option,
    provenance,
    quiet_option,
    shard_option,
    shared_out,
    strength,
)
from blda_cli.core.choices import MODERATED, Density, Favour, LabelSource, Method, Shift, Tails
from blda_cli.errors import BldaError
from blda_cli.text import printable

if TYPE_CHECKING:
    from blda_cli.commands.console import ConsoleMonitor
    from blda_cli.core.fitting import AlignmentSettings
    from blda_cli.data.source import ImageSource
    from blda_cli.runtime.shards import ArrayShard, Shard
    from blda_cli.segmenters.base import InferenceOptions
    from blda_cli.store.predictions import RunRecord
    from blda_cli.store.statistics import StatisticsFile


@click.command("align")
@model_options
@calibrator_option
@images_option
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where to write the predictions."
)
@click.option(
    "--stats",
    type=click.Path(path_type=Path),
    metavar="FILE.h5",
    help="Statistics of these images, or of others like them.  [default: collect them first, as OUTPUT.h5]",
)
@click.option(
    "--anchors",
    type=click.Path(path_type=Path),
    metavar="FILE.h5",
    help="Statistics whose pooled cells are the anchors, e.g. the source domain's.  [default: those of --stats]",
)
@click.option(
    "--labelled",
    type=click.Path(path_type=Path),
    metavar="FILE.h5",
    help="Statistics with labels of a few images like these, for --method supervised.  [default: those of --stats]",
)
@click.option(
    "--spatial-priors",
    type=click.Path(path_type=Path),
    metavar="FILE.h5",
    help="Statistics with labels, e.g. of the source domain: where in the image each class is found, for --method "
    "class-confidence.",
)
@click.option(
    "--method",
    type=choice(Method),
    help="What corrects the logits.  [default: blda]",
)
@click.option(
    "--shift",
    type=choice(Shift),
    help="The form of BLDA's shift.  [default: negative]",
)
@click.option(
    "--tau",
    type=strength,
    metavar="NUMBER|auto",
    help="Strength of the correction; 0 leaves argmax, auto finds it without labels.  [default: auto]",
)
@click.option(
    "--favour",
    type=choice(Favour),
    help="What the strength is found for: accuracy takes 1.3 times that of miou.  [default: miou]",
)
@click.option(
    "--label-source",
    type=choice(LabelSource),
    help="The cells to use.  [default: pseudo]",
)
@click.option(
    "--density",
    type=choice(Density),
    help="How the quantile form describes a cell.  [default: empirical]",
)
@click.option(
    "--tails",
    type=choice(Tails),
    help="What the quantile form does with a cell's outermost hundredths.  [default: constant]",
)
@click.option(
    "--preset",
    type=click.Choice(["published"]),
    help="Alignment exactly as published: quantile form, mixtures, clamped tails, tau 0.2; single options override.",
)
@click.option("--ids", "original_ids", is_flag=True, help="Write the data set's original ids in place of class ids.")
@click.option("--save-scores", is_flag=True, help="Also write the scores of all classes: float16 logs, scores/*.h5.")
@click.option("--force", is_flag=True, help="Use statistics of another model or preprocessing all the same.")
@norms_option
@inference_options
@shard_option
@overwrite_option
@json_option
@quiet_option
def command(
    model: str,
    weights: Path | None,
    calibrator: Path | None,
    images: str,
    output: Path,
    stats: Path | None,
    anchors: Path | None,
    labelled: Path | None,
    spatial_priors: Path | None,
    preset: str | None,
    original_ids: bool,
    save_scores: bool,
    force: bool,
    device: str,
    array_shard: "ArrayShard | None",
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    method: str | None,
    shift: str | None,
    tau: float | Literal["auto"] | None,
    favour: str | None,
    label_source: str | None,
    density: str | None,
    tails: str | None,
    norms: str | None,
    **inference: Any,
) -> None:
    """Correct a segmenter's predictions.

    Writes predictions/ (after) and argmax/ (before) as PNG class ids in the images' tree, and run.json. A run that
    was stopped goes on where it was.
    """
    from blda_cli.commands.console import emit_json, monitored
    from blda_cli.core.fitting import chosen_settings, resolve_strength
    from blda_cli.core.fitting.strength import domain_gap
    from blda_cli.data.images import refuse_among
    from blda_cli.files import file_digest, locked, real
    from blda_cli.pipelines.align import align, check_statistics, evidence_from_files, fit
    from blda_cli.reporting.words import found_gap, norms_step
    from blda_cli.runtime.process_group import process_group
    from blda_cli.runtime.shards import current_shard
    from blda_cli.segmenters.norms import use_norms
    from blda_cli.store.prediction_folder import check_folder
    from blda_cli.store.statistics import read_statistics

    choices = {
        "method": method,
        "shift": shift,
        "tau": tau,
        "favour": favour,
        "label_source": label_source,
        "density": density,
        "tails": tails,
    }
    settings = chosen_settings({name: value for name, value in choices.items() if value is not None}, preset)
    given = {
        "--shift": shift,
        "--tau": tau,
        "--favour": favour,
        "--label-source": label_source,
        "--density": density,
        "--tails": tails,
        "--anchors": anchors,
        "--labelled": labelled,
        "--spatial-priors": spatial_priors,
    }
    _refuse_unused(settings, {name for name, value in given.items() if value is not None})
    if norms and stats:
        raise click.UsageError("--norms is for statistics that are collected first: --stats brings its own")
    how = inference_from(**inference)
    shard = current_shard()
    if array_shard and stats is None:
        raise click.UsageError("--shard needs --stats of all images: shards with their own would differ")
    # Files are looked at before the network is loaded: a slip of the pen is answered at once.
    check_folder(output, overwrite)
    refuse_among(output, images, [])
    given_files = [path for path in (stats, anchors, labelled, spatial_priors) if path is not None]
    digests = {path: file_digest(path) for path in given_files if path.is_file()}
    held = {path: read_statistics(path) for path in given_files}
    subject = load_subject(model, weights, images, device, calibrator)
    refuse_among(output, images, (file.path for file in subject.files))
    files, part = shared_out(subject.files, array_shard, shard)
    _refuse_clashes(files, scores=save_scores)
    lock = locked(output) if shard.first else nullcontext()
    with process_group(), monitored(quiet=quiet or not shard.first) as monitor, lock:
        if stats is None:
            stats = Path(f"{output if output.name else real(output)}.h5")
            with locked(stats) if shard.first else nullcontext():
                held[stats] = _collected(subject, stats, settings, how, images, norms, overwrite, monitor, shard)
                digests[stats] = file_digest(stats)
        use_norms(subject.segmenter, held[stats].norms)
        for path, content in held.items():
            check_statistics(subject.segmenter, how, content, path, force=force)
            if not content.complete:
                monitor.say(f"{path} is of a run that was stopped: it counts {content.statistics.images} images")
        target = held[stats]
        if settings.tau == 0 or str(settings.method) == "none":
            monitor.say("nothing is corrected: the predictions are the network's argmax")
        evidence = evidence_from_files(
            settings,
            target,
            held[anchors] if anchors else target,
            held[labelled] if labelled else None,
            held[spatial_priors] if spatial_priors else None,
        )
        if evidence.priors is not None:
            never = [
                name
                for name, prior in zip(target.classes.names, evidence.priors, strict=True)
                if not bool((prior > 0).any())
            ]
            if never:
                monitor.say(f"{spatial_priors}: no label is {', '.join(never)}, so the priors rule that out everywhere")
        found = settings.tau == "auto" and settings.method in MODERATED
        settings = replace(settings, tau=resolve_strength(settings, evidence))
        record = align(
            subject.segmenter,
            files,
            output,
            fit(settings, evidence),
            settings=settings,
            statistics={
                "file": str(stats),
                "sha256": digests[stats],
                "anchors": str(anchors) if anchors else None,
                "anchors_sha256": digests[anchors] if anchors else None,
                "labelled": str(labelled) if labelled else None,
                "labelled_sha256": digests[labelled] if labelled else None,
                "spatial_priors": str(spatial_priors) if spatial_priors else None,
                "spatial_priors_sha256": digests[spatial_priors] if spatial_priors else None,
            },
            inference=how,
            original_ids=original_ids,
            save_scores=save_scores,
            provenance=provenance(images, asdict(subject.spec.labels), shard=part),
            overwrite=overwrite,
            monitor=monitor,
            shard=shard,
        )
        if found:
            gap = domain_gap(target.statistics.sample, target.norms_shifted)
            monitor.say(found_gap(gap, target.statistics.images))
            if gap.distance > 0 and not target.norms_shifted:
                command = ["blda", "report", "--stats", stats, "--aligned", output, "--output", "report"]
                more = "labels of a few images, views or training may bring more: the report says how"
                monitor.say(f"{more}: {shlex.join(map(str, command))}")
        for note in subject.segmenter.notes:
            monitor.say(note)
        if target.norms_shifted:
            monitor.say(f"{NORMS_HINT}: {norms_step(target.provenance).command}")
        if shard.first:
            monitor.warn(f"skipped {key}: {reason}" for key, reason in record.skipped.items())
    if shard.first:
        if as_json:
            emit_json(_summary(record, output))
        else:
            _show(record, output)


def _refuse_unused(settings: "AlignmentSettings", given: set[str]) -> None:
    """Refuse options that would change nothing."""
    method = settings.method
    shift = settings.shift if method is Method.BLDA else None
    if given & {"--density", "--tails"} and shift is not Shift.QUANTILE:
        raise click.UsageError("--density and --tails describe the quantile form: give --shift quantile too")
    if "--anchors" in given and shift not in (Shift.QUANTILE, Shift.LOCATION):
        raise click.UsageError("--anchors are those of the quantile and location forms: give --shift quantile too")
    if "--labelled" in given and method is not Method.SUPERVISED:
        raise click.UsageError("--labelled is for --method supervised: give that too")
    if "--spatial-priors" in given and method is not Method.CLASS_CONFIDENCE:
        raise click.UsageError("--spatial-priors are for --method class-confidence: give that too")
    if "--shift" in given and shift is None:
        raise click.UsageError(f"--shift is a form of --method blda; --method {method} has none: leave it out")
    if "--label-source" in given and not method.uses_cells:
        raise click.UsageError(f"--label-source does nothing with --method {method}: leave it out")
    if "--tau" in given and method is Method.NONE:
        raise click.UsageError("--tau does nothing with --method none: leave it out")
    if "--favour" in given and (settings.tau != "auto" or method not in MODERATED):
        raise click.UsageError("--favour chooses the strength that --tau auto finds for blda and logit-adjust")


def _refuse_clashes(files: "Sequence[ImageSource]", *, scores: bool) -> None:
    """Refuse images of which one's prediction would have the name of the other's folder."""
    keys = {file.key: file.location for file in files}
    folders = {parent.as_posix(): file for file in files for parent in PurePosixPath(file.key).parents}
    for suffix in (".png", ".h5")[: 1 + scores]:
        for folder, file in folders.items():
            if folder.endswith(suffix) and folder.removesuffix(suffix) in keys:
                other = keys[folder.removesuffix(suffix)]
                raise BldaError(
                    f"{other} would be predicted as {folder}, the folder of {file.location}: rename one of them"
                )


def _collected(
    subject: Subject,
    path: Path,
    settings: "AlignmentSettings",
    inference: "InferenceOptions",
    images: str,
    norms: str | None,
    overwrite: bool,
    monitor: "ConsoleMonitor",
    shard: "Shard",
) -> "StatisticsFile":
    """Statistics of the images themselves, kept from an earlier run or collected now."""
    from blda_cli.pipelines.collect import CountingOptions, check_images, collect_statistics
    from blda_cli.store.statistics import read_statistics

    if settings.label_source is LabelSource.GROUND_TRUTH:
        raise BldaError("--label-source ground_truth needs --stats collected with --labels")
    if path.exists() and not shard.path(path).exists() and not overwrite:
        held = read_statistics(path)
        if norms and held.provenance.norms != norms:
            raise BldaError(f"{path} is there, but was not collected with --norms {norms}: --overwrite replaces it")
        monitor.say(f"no --stats given: {path} is used, which is there")
        check_images(held, path, subject.segmenter, subject.files)
        return held
    monitor.say(f"no --stats given: statistics are collected first, as {path}")
    return collect_statistics(
        subject.segmenter,
        subject.files,
        path,
        counting=CountingOptions(tuple(dict.fromkeys((LabelSource.PSEUDO, settings.label_source)))),
        inference=inference,
        labels=None,
        norms=norms_from(norms),
        provenance=provenance(images, norms=norms),
        overwrite=overwrite,
        monitor=monitor,
        shard=shard,
    )


def _summary(record: "RunRecord", output: Path) -> dict[str, Any]:
    total = sum(record.pixels_before)
    return {
        "output": str(output),
        "images": len(record.changed),
        "changed": record.pixels_changed / total if total else None,
        "skipped": len(record.skipped),
        "skipped_images": record.skipped,
        "classes": {
            name: {"share_before": before / total, "share_after": after / total} if total else {}
            for name, before, after in zip(record.classes, record.pixels_before, record.pixels_after, strict=True)
        },
    }


def _show(record: "RunRecord", output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from blda_cli.reporting.build import describe

    summary = _summary(record, output)
    if not summary["images"]:  # of a shard that got none
        click.echo(f"{output}: 0 images")
        return
    table = Table()
    table.add_column("class")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for name, shares in summary["classes"].items():
        before, after = shares["share_before"], shares["share_after"]
        change = f"×{after / before:.2f}" if before > 0 else ("new" if after > 0 else "n/a")
        table.add_row(printable(name), f"{before:.2%}", f"{after:.2%}", change)
    console = Console(markup=False, emoji=False)
    console.print("Share of the pixels predicted as each class")
    console.print(table)
    skipped = f", {summary['skipped']} skipped" if summary["skipped"] else ""
    console.print(
        f"{printable(str(output))}: {summary['images']} images{skipped}, {summary['changed']:.1%} of the pixels "
        f"changed; {describe(record.settings)}",
        highlight=False,
        soft_wrap=True,
    )
