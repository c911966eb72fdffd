"""What ``blda collect-stats`` and ``blda align`` cost over the network itself.

    python tests/benchmarks/commands.py [--model FILE.toml] [--images DIR] [--weights FILE]
    python tests/benchmarks/commands.py --device cuda [--case segformer-b0-jpg] [--json FILE]
    python tests/benchmarks/commands.py --small --count 10000 [--model FILE.toml] [--batch-size 16]

The bare loop reads the same images with the same loader, runs the same network and takes its argmax; it writes nothing.
On the CPU: ESPNet, or the network of ``--model``, on the frames of ``--images`` if given; with ``--small`` images of
64x96, and a network of two layers if no other is named. On a GPU: SegFormers of B0's and B5's size with random weights
on drawn images of 1024x2048, in mixed precision. Commands and loop take turns in one process, so that what else the
machine does falls on all alike; each loads its network anew. On a GPU the loop launches every pass, where the commands
replay CUDA graphs, unless ``BLDA_GRAPHS=off`` is in the environment. Wall times are medians; processor times (of all
threads) tell more where others use the machine. Each case is printed, and written to the file, as soon as it is
measured.

Runs on one image, on eight and on all tell apart what a command adds: "start" is what it takes on one image beyond the
bare loop; a "watched" image is one of the first eight, on which collect-stats also looks at what the batch norms see; a
"further" image is one of the rest. Before all that, how many images a second one thread reads and how many PNGs of ids
it writes.
"""

import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image

from blda_cli.commands import cli
from blda_cli.data.classes import class_set
from blda_cli.data.images import find_images
from blda_cli.data.label_files import write_label_png
from blda_cli.data.loader import load_batches
from blda_cli.data.pillow_images import read_image
from blda_cli.data.source import ImageSource
from blda_cli.pipelines.requests import SubjectRequest
from blda_cli.pipelines.subject import load_subject
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.inference import upload
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.norms import FEW_IMAGES
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import parse_model

ESPNET = Path(__file__).parents[2] / "examples" / "espnet" / "espnet.toml"
SEGFORMERS = {
    "segformer-b0": ([2, 2, 2, 2], [32, 64, 160, 256], 256),
    "segformer-b5": ([3, 6, 40, 3], [64, 128, 320, 512], 768),
}
COMMANDS = ("collect-stats", "align")


@dataclass(frozen=True)
class Case:
    """A network and images for it.

    Attributes:
        name: what the table calls it.
        model: as ``--model``.
        weights: as ``--weights``.
        images: a folder.
        amp: whether in mixed precision.
    """

    name: str
    model: Path
    weights: Path | None
    images: Path
    amp: bool


def given(model: Path, weights: Path | None, images: Path | None, count: int, folder: Path) -> Case:
    """A network on frames, or on drawn ones of CamVid's size."""
    frames, weights = folder / "frames", weights or random_weights(model, folder)
    if images is None:
        draw(frames, count, (360, 480), "png")
        return Case(f"{model.stem}, drawn 360x480 png", model, weights, frames, False)
    frames.mkdir()
    for file in find_images(images)[:count]:
        shutil.copy(file.path, frames)
    return Case(f"{model.stem}, {images.parent.name}", model, weights, frames, False)


def random_weights(model: Path, folder: Path) -> Path | None:
    """Weights for a network whose description names none: the commands refuse one that has others in each run."""
    spec = parse_model(str(model), None)
    if spec.segmenter.kind != "python" or spec.segmenter.weights is not None:
        return None
    weights = folder / "weights.pth"
    torch.save(load_segmenter(spec, torch.device("cpu")).module.state_dict(), weights)
    return weights


TINY = """import torch
from torch import nn


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 19, 3, 2, 1), nn.Upsample(scale_factor=4))
"""


def small(model: Path | None, weights: Path | None, count: int, folder: Path) -> Case:
    """Many small images, for a network that costs next to nothing if not for another."""
    draw(folder / "small", count, (64, 96), "png")
    if model is not None:
        weights = weights or random_weights(model, folder)
        return Case(f"{model.stem}, drawn 64x96 png", model, weights, folder / "small", False)
    (folder / "tiny.py").write_text(TINY)
    model = folder / "tiny.toml"
    model.write_text('[segmenter]\nkind = "python"\nfactory = "tiny.py:tiny"\n\n[classes]\nnames = "cityscapes"\n')
    return Case("two layers, drawn 64x96 png", model, None, folder / "small", False)


def segformer(size: str, suffix: str, count: int, folder: Path) -> Case:
    """A SegFormer with random weights and 19 classes, on drawn images of Cityscapes' size."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    model, images = folder / size, folder / suffix
    if not model.exists():
        torch.manual_seed(0)
        depths, widths, decoder = SEGFORMERS[size]
        config = SegformerConfig(depths=depths, hidden_sizes=widths, decoder_hidden_size=decoder, num_labels=19)
        SegformerForSemanticSegmentation(config).save_pretrained(model)
        SegformerImageProcessor(do_resize=False).save_pretrained(model)
    if not images.exists():
        draw(images, count, (1024, 2048), suffix)
    return Case(f"{size}, drawn 1024x2048 {suffix}, fp16", model, None, images, True)


def draw(folder: Path, count: int, size: tuple[int, int], suffix: str) -> None:
    """Draw images that take about as long to decode as photographs: coloured blocks under some noise."""
    folder.mkdir(parents=True)
    height, width = size
    for number in range(count):
        generator = np.random.default_rng(number)
        blocks = generator.integers(20, 236, (height // 40 + 1, width // 40 + 1, 3))
        pixels = blocks.repeat(40, axis=0).repeat(40, axis=1)[:height, :width] + generator.normal(
            0, 4, (height, width, 1)
        )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.{suffix}")


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs on one image, on a few and on all."""

    one: list[float] = field(default_factory=list)
    few: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)

    def of(self, source: str) -> list[float]:
        """Those of one of the three."""
        found: list[float] = getattr(self, source)
        return found

    def further(self) -> float:
        """What the images after the few take."""
        return statistics.median(self.all) - statistics.median(self.few)

    def watched(self) -> float:
        """What the few take after the first."""
        return statistics.median(self.few) - statistics.median(self.one)


def measure(
    case: Case, device: str, workers: int, batch_size: int, repeats: int, norms: str, folder: Path
) -> dict[str, Any]:
    """Wall and processor times of the bare loop and of the commands, on one image, on a few and on all."""
    files = find_images(case.images)
    sources = {"one": folder / "one.txt", "few": folder / "few.txt", "all": case.images}
    for name, count in (("one", 1), ("few", FEW_IMAGES)):
        sources[name].write_text("".join(f"{file.path}\n" for file in files[:count]))
    common = ["--model", case.model, "--device", device, "--workers", workers, "--quiet", "--overwrite"]
    common += ["--batch-size", batch_size]
    common += ["--weights", case.weights] if case.weights else []
    common += ["--amp"] if case.amp else []
    outputs = {
        "collect-stats": ["--output", folder / "s.h5", "--norms", norms],
        "align": ["--output", folder / "o", "--stats", folder / "s.h5"],
    }
    variants: dict[str, Callable[[Path], None]] = {
        "bare": lambda images: bare_loop(case, images, device, workers, batch_size),
        "collect-stats": lambda images: blda("collect-stats", "--images", images, *outputs["collect-stats"], *common),
        "align": lambda images: blda("align", "--images", images, *outputs["align"], *common),
    }
    times: dict[str, dict[str, Times]] = {clock: {name: Times() for name in variants} for clock in CLOCKS}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            for source, images in sources.items():
                start = {clock: read() for clock, read in CLOCKS.items()}
                run(images)
                if repeat == 0:  # fills caches and compiles kernels
                    continue
                for clock, read in CLOCKS.items():
                    times[clock][name].of(source).append(read() - start[clock])
    return {
        "case": case.name,
        "images": len(files),
        **{clock: figures(of_clock, len(files)) for clock, of_clock in times.items()},
    }


def figures(times: dict[str, Times], images: int) -> dict[str, Any]:
    """What the times of one clock tell."""
    bare = times["bare"]
    return {
        "seconds": {name: statistics.median(kept.all) for name, kept in times.items()},
        "seconds_per_further_image": {name: kept.further() / (images - FEW_IMAGES) for name, kept in times.items()},
        "seconds_per_watched_image": times["collect-stats"].watched() / (FEW_IMAGES - 1),
        **{f"{name}_over_bare": ratio(times[name].all, bare.all) for name in COMMANDS},
        **{f"{name}_over_bare_per_further_image": times[name].further() / bare.further() for name in COMMANDS},
        **{
            f"{name}_start_seconds": statistics.median(times[name].one) - statistics.median(bare.one)
            for name in COMMANDS
        },
    }


HEADER = (
    "| | | bare, s | collect-stats / bare | align / bare | further image, bare, ms | collect-stats | align "
    "| watched image, ms | start, s, collect-stats | align |\n" + "| --- " * 11 + "|"
)


def table_row(case: str, clock: str, row: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [case, clock, f"{row['seconds']['bare']:.2f}"]
    cells += [f"{row[f'{name}_over_bare']:.2f}" for name in COMMANDS]
    cells += [f"{1e3 * row['seconds_per_further_image']['bare']:.1f}"]
    cells += [f"{row[f'{name}_over_bare_per_further_image']:.2f}" for name in COMMANDS]
    cells += [f"{1e3 * row['seconds_per_watched_image']:.1f}"]
    cells += [f"{row[f'{name}_start_seconds']:.2f}" for name in COMMANDS]
    return f"| {' | '.join(cells)} |"


def files_a_second(folder: Path) -> tuple[float, float]:
    """How many of a folder's images one thread reads in a second, and how many PNGs of ids of their size it writes."""
    files = find_images(folder)[:8]
    height, width, _ = read_image(files[0].path).shape
    scores = torch.randn(1, 19, -(-height // 32), -(-width // 32), generator=torch.Generator().manual_seed(0))
    ids = torch.nn.functional.interpolate(scores, (height, width), mode="bilinear").argmax(dim=1)[0].numpy()
    classes = class_set("cityscapes")

    def rate(work: Callable[[ImageSource], object]) -> float:
        rounds = []
        for _ in range(5):
            start = time.perf_counter()
            for file in files:
                work(file)
            rounds.append(len(files) / (time.perf_counter() - start))
        return statistics.median(rounds)

    with tempfile.TemporaryDirectory() as written:
        path = Path(written) / "ids.png"
        return rate(lambda file: file.read()), rate(lambda _: write_label_png(path, ids, classes))


def ratio(times: list[float], bare: list[float]) -> float:
    """The median over the repeats, each against the loop that ran beside it."""
    return statistics.median(one / other for one, other in zip(times, bare, strict=True))


def bare_loop(case: Case, images: Path, device: str, workers: int, batch_size: int) -> None:
    """Images, network, argmax."""
    subject = load_subject(SubjectRequest(model=str(case.model), weights=case.weights, images=str(images)), device)
    segmenter = subject.segmenter
    assert isinstance(segmenter, NetworkSegmenter)
    batches = load_batches(subject.images, lambda file: file.read(), workers=workers, batch_size=batch_size)
    for _, pixels, _ in upload(batches, segmenter.device):
        segmenter.logits(pixels, InferenceOptions(amp=case.amp)).argmax(dim=1)
    if segmenter.device.type == "cuda":
        torch.cuda.synchronize()


def blda(*arguments: Any) -> None:
    """Run a command; its error ends the benchmark."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exit_code:
        raise click.ClickException(f"blda {' '.join(map(str, arguments))}: {result.output}")


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--model", type=click.Path(path_type=Path), help="The network.  [default: ESPNet]")
@click.option("--images", type=click.Path(path_type=Path), help="Frames.  [default: drawn ones]")
@click.option("--weights", type=click.Path(path_type=Path), help="Its weights, where the file names none.")
@click.option("--small", "many_small", is_flag=True, help="Small images.")
@click.option("--batch-size", default=1, show_default=True, help="Images that are run together, in the bare loop too.")
@click.option("--case", "chosen", help="Of several cases, that of this name alone, e.g. segformer-b0-jpg.")
@click.option(
    "--count", type=click.IntRange(min=FEW_IMAGES + 1), default=24, show_default=True, help="Images of a run."
)
@click.option("--repeats", default=5, show_default=True, help="Runs that count.")
@click.option("--norms", default="source", show_default=True, help="Of collect-stats.")
@click.option("--workers", type=int, help="Threads that read images.  [default: 2, on a GPU 8]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the numbers here.")
def main(
    device: str,
    model: Path | None,
    images: Path | None,
    weights: Path | None,
    many_small: bool,
    batch_size: int,
    chosen: str | None,
    count: int,
    repeats: int,
    norms: str,
    workers: int | None,
    json_file: Path | None,
) -> None:
    """Time the commands."""
    cuda = device.startswith("cuda")
    workers = workers or (8 if cuda else 2)
    machine = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(
        f"{machine}, torch {torch.__version__}, medians of {repeats} runs on {count} images, {workers} workers, "
        f"{batch_size} images at a time\n"
    )
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases: dict[str, Callable[[], Case]] = (
            {
                f"{size}-{suffix}": partial(segformer, size, suffix, count, folder)
                for suffix in ("jpg", "png")
                for size in SEGFORMERS
            }
            if cuda
            else {"small": partial(small, model, weights, count, folder)}
            if many_small
            else {"frames": partial(given, model or ESPNET, weights, images, count, folder)}
        )
        if chosen is not None and chosen not in cases:
            raise click.BadParameter(f"there are {', '.join(cases)}", param_hint="--case")
        for name in [chosen] if chosen is not None else cases:
            case = cases[name]()
            read, written = files_a_second(case.images)
            print(f"{case.name}: one thread reads {read:.0f} images a second, writes {written:.0f} PNGs", flush=True)
            results.append(measure(case, device, workers, batch_size, repeats, norms, folder))
            print(HEADER)
            for clock in CLOCKS:
                print(table_row(case.name, clock, results[-1][clock]), flush=True)
            if json_file:  # as soon as there is something: a time limit may end the rest
                kept = {"machine": machine, "torch": torch.__version__, "workers": workers, "cases": results}
                json_file.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
