"""``blda finetune``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from blda_cli.commands.options import FiniteFloat, SizeType, json_option, provenance, quiet_option
from blda_cli.finetuning.settings import Settings, read_settings

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = Settings().flat()
_SETTINGS: dict[str, str] = {}
"""The setting that each option's parameter stands for."""


class CropType(SizeType):
    """``HxW``, or one number for both."""

    name = "PIXELS|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse ``512`` or ``512x1024``."""
        if isinstance(value, str) and value.isdigit():
            value = f"{value}x{value}"
        return super().convert(value, param, ctx)


def _setting(flag: str, key: str, text: str, **attributes: Any) -> Callable[[F], F]:
    """An option that sets ``key``; not given, it leaves the setting to ``--config`` or its default."""
    parameter = flag.split("/")[0].removeprefix("--").replace("-", "_")
    _SETTINGS[parameter] = key
    default = _DEFAULTS[key]
    match default:
        case tuple() if default:
            shown = (" " if "nargs" in attributes else "x").join(map(str, default))
        case bool():
            shown = "on" if default and "/" in flag else ""
        case _:
            shown = "" if default is None else str(default)
    if shown:
        text += f"  [default: {shown}]"
    if "type" not in attributes:
        match default:
            case bool():
                attributes["is_flag"] = True
            case int():
                attributes["type"] = click.IntRange(0)
            case float():
                attributes["type"] = FiniteFloat()
    return click.option(flag, parameter, default=None, help=text, **attributes)


@click.command("finetune")
@_setting("--model", "data.model", "The segmenter to train: a TOML file, module:factory, or a Hugging Face model.")
@_setting("--weights", "data.weights", "The weights to start from, in place of the TOML's.")
@_setting("--source-images", "data.source_images", "Labelled images: a folder, a glob, or a .txt list.")
@_setting("--source-labels", "data.source_labels", "Their labels.")
@_setting("--source-encoding", "data.source_encoding", "What the values in the label files mean.")
@_setting("--target-images", "data.target_images", "Images of the domain to adapt to; no labels are needed.")
@_setting("--val-images", "data.val_images", "Images to validate on.")
@_setting("--val-labels", "data.val_labels", "Their labels.")
@_setting("--val-encoding", "data.val_encoding", "What the values in those label files mean.")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="RUN", help="The run folder to write."
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in the run folder.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings as a run's config.toml holds them; options replace what it says.",
)
@_setting("--method", "training.method", "How to train.", type=click.Choice(["blda", "dacs", "source"]))
@_setting("--iterations", "training.iterations", "Optimiser steps.", type=click.IntRange(1))
@_setting("--crop", "training.crop", "Size of the training crops.", type=CropType())
@_setting(
    "--batch-size", "training.batch_size", "Source crops, and as many target crops, a step.", type=click.IntRange(1)
)
@_setting("--accumulate", "training.accumulate", "Batches whose gradients make one step.", type=click.IntRange(1))
@_setting("--learning-rate", "training.learning_rate", "The encoder's learning rate, of AdamW.")
@_setting("--head-factor", "training.head_factor", "The other layers' learning rate over the encoder's.")
@_setting("--weight-decay", "training.weight_decay", "Of AdamW.")
@_setting("--warmup", "training.warmup", "Steps of linear warm-up; at most a tenth of the iterations.")
@_setting("--seed", "training.seed", "Of all randomness.")
@_setting("--amp", "training.amp", "Train in mixed precision.")
@_setting("--activation-checkpointing", "training.activation_checkpointing", "Recompute activations, to save memory.")
@_setting(
    "--feature-layer",
    "training.feature_layer",
    "The layer whose input the density head reads.  [default: the last layer with one output per class]",
)
@_setting("--teacher-momentum", "host.teacher_momentum", "Most the teacher keeps of itself in a step.")
@_setting("--confidence", "host.confidence", "Probability from which a pixel counts towards an image's weight.")
@_setting(
    "--ignore-rows",
    "host.ignore_rows",
    "Rows at the top and bottom of target images that get no weight (published for Cityscapes: 15 120).",
    type=click.IntRange(0),
    nargs=2,
)
@_setting("--classmix/--no-classmix", "host.classmix", "Paste half of the source's classes onto the target.")
@_setting("--color-jitter", "host.color_jitter", "Probability of colour jitter on mixed images.")
@_setting("--blur", "host.blur", "Probability of blur on mixed images.")
@_setting(
    "--rare-class-sampling/--no-rare-class-sampling",
    "host.rare_class_sampling",
    "Draw source images and crops by their rare classes.",
)
@_setting(
    "--feature-distance",
    "host.feature_distance",
    "Weight of the distance to the initial encoder's features (published: 0.005).",
)
@_setting(
    "--masked-consistency", "host.masked_consistency", "Weight of the loss on masked target images (published: 1)."
)
@_setting("--tau", "blda.tau", "Strength of BLDA's shift in the cross-entropy.")
@_setting("--density-weight", "blda.density_weight", "Weight of BLDA's density regression.")
@_setting(
    "--debias-pseudo-labels",
    "blda.debias_pseudo_labels",
    "Shift the teacher's logits before they label (not published).",
)
@_setting("--checkpoint-every", "run.checkpoint_every", "Steps between checkpoints.", type=click.IntRange(1))
@_setting("--log-every", "run.log_every", "Steps that a line of metrics covers.", type=click.IntRange(1))
@_setting("--validate-every", "run.validate_every", "Steps between validations.", type=click.IntRange(1))
@_setting("--pictures-every", "run.pictures_every", "Steps between pictures of mixed batches; 0: none.")
@_setting("--export", "run.export", "The network to write.", type=click.Choice(["teacher", "student"]))
@_setting(
    "--target-norms/--no-target-norms",
    "run.target_norms",
    "Give the written network's batch norms the statistics of the target images (goes beyond the paper).",
)
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events (needs the tensorboard extra).")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]|mps",
    help="Where to train; under torchrun every process takes its own GPU.",
)
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Threads that read images.")
@json_option
@quiet_option
def command(
    output: Path,
    resume: bool,
    config: Path | None,
    tensorboard: bool,
    device: str,
    workers: int,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Adapt a segmenter to images of another domain by self-training.

    Trains on labelled source images and unlabelled target images, with BLDA's corrected loss by default. Leaves a
    run folder with the trained model (RUN/model.toml), which the other commands take as it is, the statistics of
    its logits on the target (RUN/statistics.h5), metrics, settings and checkpoints. All settings, with more than
    the options here, are in RUN/config.toml.
    """
    from blda_cli.commands.console import emit_json, monitored
    from blda_cli.finetuning.loop import Machine
    from blda_cli.finetuning.run import finetune
    from blda_cli.runtime.device import choose_device
    from blda_cli.runtime.monitor import Interrupted
    from blda_cli.runtime.process_group import process_group
    from blda_cli.runtime.shards import current_shard

    if config is None and resume and (output / "config.toml").is_file():
        config = output / "config.toml"
    settings = read_settings(config) if config else Settings()
    given = {_SETTINGS[name]: value for name, value in options.items() if value is not None}
    settings = settings.with_values(given, "command line").resolved()
    needed = ["model", "source_images", "source_labels"]
    needed += ["target_images"] if settings.training.method != "source" else []
    for name in needed:
        if not getattr(settings.data, name):
            raise click.UsageError(f"--{name.replace('_', '-')} is missing")
    first, own = current_shard().first, choose_device(device)
    with process_group(own), monitored(quiet=quiet or not first) as monitor:
        try:
            result = finetune(
                settings,
                output,
                resume=resume,
                machine=Machine(own, workers, tensorboard),
                provenance=provenance(),
                monitor=monitor,
            )
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
