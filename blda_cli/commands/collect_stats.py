"""``blda collect-stats``."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blda_cli.commands.options import (
    NORMS_HINT,
    calibrator_option,
    choice,
    images_option,
    inference_from,
    inference_options,
    json_option,
    label_options,
    load_subject,
    model_options,
    norms_from,
    norms_option,
    overwrite_option,
    provenance,
    quiet_option,
    read_labels,
    refuse_alone,
    shard_option,
    shared_out,
)
from blda_cli.core.choices import LabelSource, LogitSpace

if TYPE_CHECKING:
    from blda_cli.runtime.shards import ArrayShard


@click.command("collect-stats")
@model_options
@calibrator_option
@images_option
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="FILE.h5", help="Where to write the statistics."
)
@label_options
@click.option(
    "--label-source",
    "sources",
    multiple=True,
    type=choice(LabelSource),
    help="Count each pixel under its label, under the network's argmax, or under every class by its probability; "
    "repeatable.  [default: pseudo, and ground_truth where --labels is given]",
)
@click.option(
    "--logit-space",
    type=choice(LogitSpace),
    default="raw",
    show_default=True,
    help="How a pixel's free constant is fixed before its logits are counted.",
)
@click.option(
    "--bins", type=click.IntRange(4, 1 << 16), default=1024, show_default=True, help="Bins per cell, a power of two."
)
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
    labels: str | None,
    label_encoding: str | None,
    ignore_label: int | None,
    sources: tuple[str, ...],
    logit_space: str,
    bins: int,
    norms: str | None,
    device: str,
    array_shard: "ArrayShard | None",
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **inference: Any,
) -> None:
    """Count a segmenter's logits over images.

    Writes one HDF5 file with a histogram for every pair of label and class, from which blda align and blda report
    work. Needs no labels. A run that was stopped goes on where it was.
    """
    from blda_cli.commands.console import emit_json, monitored
    from blda_cli.files import locked
    from blda_cli.pipelines.collect import CountingOptions, collect_statistics
    from blda_cli.runtime.process_group import process_group
    from blda_cli.runtime.shards import current_shard

    if bins & (bins - 1):
        raise click.UsageError(f"--bins {bins} is not a power of two; {1 << bins.bit_length()} is the next")
    chosen = [LabelSource(source) for source in sources] or [LabelSource.PSEUDO]
    if labels and not sources:
        chosen.insert(0, LabelSource.GROUND_TRUTH)
    if LabelSource.GROUND_TRUTH in chosen and not labels:
        raise click.UsageError("--label-source ground_truth needs --labels")
    refuse_alone("--labels", labels, {"--label-encoding": label_encoding, "--ignore-label": ignore_label})
    shard = current_shard()
    if array_shard and norms in ("target", "auto"):
        raise click.UsageError(f"--norms {norms} differs from shard to shard: take them once and give --norms FILE.h5")
    wished = norms_from(norms)
    subject = load_subject(model, weights, images, device, calibrator)
    segmenter = subject.segmenter
    files, part = shared_out(subject.files, array_shard, shard)
    reader, labelled = None, None
    if labels:
        reader = read_labels(subject.spec, files, segmenter.classes, labels, label_encoding, ignore_label)
        labelled = {"source": labels, "encoding": reader.encoding, "ignore": ignore_label}
    lock = locked(output) if shard.first else nullcontext()
    with process_group(), monitored(quiet=quiet or not shard.first) as monitor, lock:
        content = collect_statistics(
            segmenter,
            files,
            output,
            counting=CountingOptions(tuple(dict.fromkeys(chosen)), LogitSpace(logit_space), bins),
            inference=inference_from(**inference),
            labels=reader,
            norms=wished,
            provenance=provenance(images, labelled, norms, part),
            overwrite=overwrite,
            monitor=monitor,
            shard=shard,
        )
        for note in segmenter.notes:
            monitor.say(note)
        if content.norms_shifted:
            monitor.say(NORMS_HINT)
        elif norms == "auto" and content.norms is None:
            monitor.say("batch norms: the network keeps its own, as the averages of these images lie near")
        if shard.first:
            monitor.warn(f"skipped {key}: {reason}" for key, reason in content.skipped.items())
        confusion = content.statistics.confusion
        if reader is not None and confusion is not None and content.statistics.pixels:
            ignored = 1 - int(confusion.counts.sum()) / content.statistics.pixels
            monitor.say(f"labels: {reader.encoding}; {ignored:.1%} of the pixels have no class")
    if not shard.first:
        return
    statistics = content.statistics
    sources_counted = [str(source) for source in statistics.cells]
    if as_json:
        emit_json(
            {
                "output": str(output),
                "images": statistics.images,
                "pixels": statistics.pixels,
                "skipped": len(content.skipped),
                "skipped_images": content.skipped,
                "label_sources": sources_counted,
                "predicted_share": dict(zip(content.classes.names, statistics.predicted_share().tolist(), strict=True)),
            }
        )
    else:
        click.echo(
            f"{output}: {statistics.images} images, {statistics.pixels:,} pixels, {len(content.skipped)} skipped, "
            f"{len(content.classes)} classes, labels from {', '.join(sources_counted)}"
        )
