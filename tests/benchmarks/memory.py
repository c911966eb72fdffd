"""The memory that ``blda collect-stats`` and ``blda align`` take beyond the network's own run, for many classes.

    python tests/benchmarks/memory.py [--classes 19 --classes 150] [--size 512] [--count 8]

The network is two convolutions of 1x1, so that the classes' logits are nearly all it takes. Every command, and the bare
loop it is compared with (which reads the same images, runs the network and takes its argmax), runs in a process of its
own, whose peak resident memory is read when it ends. Its seconds are given too: they show what grows with C².
"""

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from click.testing import CliRunner
from PIL import Image

NETWORK = """
import torch
from torch import nn

def network(classes):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, classes, 1))
    nn.init.normal_(layers[0].weight, std=4.0)
    nn.init.normal_(layers[2].weight, std=0.4)
    return layers
"""
MODEL = """
[segmenter]
kind = "python"
factory = "pixelwise:network"
arguments = {{classes = {classes}}}
[classes]
names = [{names}]
"""


@click.command()
@click.option("--classes", multiple=True, type=int, default=(19, 65, 150), show_default=True)
@click.option("--size", default=512, show_default=True, help="Of the square images.")
@click.option("--count", default=8, show_default=True, help="Images.")
def main(classes: tuple[int, ...], size: int, count: int) -> None:
    """Run the commands."""
    print(f"{count} images of {size}x{size}\n")
    print("| classes | | peak, MB | beyond the bare loop, MB | seconds |")
    print("| --- | --- | --- | --- | --- |")
    for number in classes:
        with tempfile.TemporaryDirectory() as folder:
            measure(number, size, count, Path(folder))


def measure(classes: int, size: int, count: int, folder: Path) -> None:
    """Print a row per command."""
    (folder / "pixelwise.py").write_text(NETWORK)
    names = ", ".join(f'"class {index}"' for index in range(classes))
    (folder / "model.toml").write_text(MODEL.format(classes=classes, names=names))
    images = folder / "images"
    images.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (size // 8, size // 8, 3), np.uint8)
        Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(images / f"{index}.png")
    collect = ["collect-stats", "--output", f"{folder}/s.h5"]
    align = ["align", "--stats", f"{folder}/s.h5"]
    rows = {
        "bare loop": None,
        "collect-stats": collect,
        "align": [*align, "--output", f"{folder}/a"],
        "align --shift quantile": [*align, "--output", f"{folder}/q", "--shift", "quantile"],
    }
    bare = 0.0
    for name, command in rows.items():
        # A process of its own: the most memory a process ever held only grows.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak, seconds = pool.apply(peak_of, (command, folder))
        bare = bare or peak
        print(f"| {classes} | {name} | {peak:.0f} | {peak - bare:.0f} | {seconds:.1f} |", flush=True)


def peak_of(command: list[str] | None, folder: Path) -> tuple[float, float]:
    """Peak memory of this process in MB once it has run a command (None: the bare loop), and the seconds it took."""
    from blda_cli.commands import cli

    start = time.perf_counter()
    if command is None:
        bare_loop(folder)
    else:
        common = ["--model", f"{folder}/model.toml", "--images", f"{folder}/images", "--device", "cpu", "--quiet"]
        CliRunner().invoke(cli, [*command, *common], catch_exceptions=False)
    seconds = time.perf_counter() - start
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds


def bare_loop(folder: Path) -> None:
    """Images, network, argmax."""
    from blda_cli.pipelines.requests import SubjectRequest
    from blda_cli.pipelines.subject import load_subject
    from blda_cli.segmenters.options import InferenceOptions

    subject = load_subject(SubjectRequest(model=f"{folder}/model.toml", images=f"{folder}/images"), "cpu")
    for batch in subject.segmenter.stream(subject.images, InferenceOptions()):
        batch.logits.argmax(dim=1)


if __name__ == "__main__":
    main()
