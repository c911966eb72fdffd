"""``blda finetune``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from blda_cli.commands.options import (
    F,
    json_option,
    option_of,
    provenance,
    quiet_option,
    size,
    together,
    usage_errors,
)
from blda_cli.finetuning.settings import HOSTS, FinetuneRequest, Settings, run_settings
from blda_cli.pipelines.requests import ModelRequest
from blda_cli.settings import sections_of, settings_of


def _crop(value: Any) -> tuple[int, int]:
    """Parse ``512x1024``, or one number for both."""
    return size(f"{value}x{value}" if str(value).isdigit() else value)


def _options(section: str, *names: str, **types: Callable[[Any], Any]) -> Callable[[F], F]:
    """Options that set some of a section's settings; not given, they leave them to ``--config`` or their default.

    Args:
        section: of :class:`Settings`.
        names: of its settings, in the order of the help; an option is called like its setting.
        types: how to parse settings whose type does not determine it.
    """
    settings = settings_of(sections_of(Settings)[section])
    return together(*(option_of(settings[name], f"{section}__{name}", types.get(name)) for name in names))


@click.command("finetune")
@_options(
    "data",
    *(
        "model",
        "weights",
        "weights_key",
        "set",
        "classes",
        "source_images",
        "source_labels",
        "source_encoding",
        "target_images",
    ),
    *("valid_mask", "source", "labelled_images", "labelled_labels", "labelled_encoding"),
    *("val_images", "val_labels", "val_encoding"),
)
@_options("start", "own_labels", "label_share")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="RUN", help="The run folder to write."
)
@option_of(settings_of(ModelRequest)["write_model"])
@click.option(
    "--resume", is_flag=True, help="Go on from the last checkpoint in the run folder, or start where there is none."
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings as a run's config.toml holds them; options replace what it says.",
)
@click.option(
    "--host",
    type=click.Choice(list(HOSTS)),
    help="The parts of a published self-training: dacs has neither of the last three parts below, daformer "
    "rare-class sampling and feature distance, mic also masked consistency; single options override.",
)
@click.option(
    "--preset",
    type=click.Choice(["published"]),
    help="BLDA as published: tau 0.1, labels from crops, norms of each batch, as trained; single options override.",
)
@_options(
    "training",
    *("method", "correction", "iterations", "crop", "batch_size", "accumulate"),
    *("learning_rate", "head_factor", "weight_decay"),
    *("warmup", "seed", "norms", "norm_weight", "amp", "activation_checkpointing", "feature_layer"),
    crop=_crop,
)
@_options(
    "host",
    *(
        "teacher_momentum",
        "confidence",
        "whole_images",
        "ignore_rows",
        "classmix",
        "color_jitter",
        "blur",
        "rare_class_sampling",
    ),
    *("feature_distance", "masked_consistency"),
)
@_options("blda", "tau", "density_weight", "debias_pseudo_labels")
@_options(
    "rounds",
    "rounds",
    "portion",
    "portion_step",
    "portion_limit",
    "label_scales",
    "label_flip",
)
@_options("cag", "margin", "distance_weight", "discriminative_weight")
@_options("run", "checkpoint_every", "log_every", "validate_every", "pictures_every", "export", "target_norms", "check")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events (needs the tensorboard extra).")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]|mps",
    help="Where to train; under torchrun every process takes its own GPU.",
)
@click.option("--workers", type=click.IntRange(1, 1024), default=4, show_default=True, help="Threads that read images.")
@json_option
@quiet_option
def command(
    output: Path,
    resume: bool,
    config: Path | None,
    host: str | None,
    preset: str | None,
    tensorboard: bool,
    write_model: Path | None,
    device: str,
    workers: int,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Adapt a segmenter to images of another domain by self-training.

    Trains on labelled source images and unlabelled target images, with BLDA's corrected loss by default; with
    --no-source on the target alone, by labels that the network gives it. Leaves a
    run folder with the trained model (RUN/model.toml), which the other commands take as it is, the statistics of
    its logits on the target (RUN/statistics.h5), metrics, settings and checkpoints. All settings, with more than
    the options here, are in RUN/config.toml.
    """
    from blda_cli.commands.console import emit_json, monitored
    from blda_cli.finetuning.run import finetune
    from blda_cli.pipelines.job import Job
    from blda_cli.runtime.monitor import Interrupted
    from blda_cli.runtime.shards import current_shard

    if config is None and resume and (output / "config.toml").is_file():
        config = output / "config.toml"
    given = {name.replace("__", "."): value for name, value in options.items() if value is not None}
    with usage_errors():
        settings = run_settings(given, "command line", config=config, host=host, preset=preset)
    first = current_shard().first
    with monitored(quiet=quiet or not first) as monitor:
        try:
            request = FinetuneRequest(settings, resume, device, workers, tensorboard, write_model)
            result = finetune(request, Job(output, provenance=provenance(), monitor=monitor))
        except Interrupted:
            monitor.stop()
            if first:
                click.echo("blda: interrupted; a checkpoint is kept: --resume goes on from there", err=True)
            sys.exit(130)
    if not first:
        return
    if as_json:
        emit_json(result)
    else:
        scores = result["validation"]
        said = f", mIoU {scores['mean_iou']:.1%} on {settings.data.val_images}" if scores else ""
        click.echo(f"{result['model']}: trained for {settings.training.iterations} iterations{said}")
