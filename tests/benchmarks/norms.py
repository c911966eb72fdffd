"""What mixing norms image by image takes, as a ratio to the plain network.

    python tests/benchmarks/norms.py MODEL [--weights FILE] --size 360x480

Plain and mixed passes over one image take turns, on so many threads as ``--threads`` says; on CUDA also both replayed
as CUDA graphs. Of each the median time is printed and, in brackets, the median of its ratio to the plain pass.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

from blda_cli.commands.options import size
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.graphed_passes import GraphedPasses
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model

WARM_UP = 6
"""Passes that do not count: they fill caches, and from the fifth on they are replayed."""


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long one call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def passes(
    segmenter: NetworkSegmenter, weight: float, amp: bool
) -> tuple[dict[str, Callable[[Tensor], Tensor]], list[GraphedPasses]]:
    """The passes that are compared, by name, and what replays some of them on CUDA."""
    network, kind = segmenter.module, segmenter.device.type
    half = torch.bfloat16 if kind == "cpu" else torch.float16

    def plain(images: Tensor) -> Tensor:
        scores: Tensor = segmenter._forward(network, images)
        return scores

    def mixed(images: Tensor) -> Tensor:
        with InstanceNorms(network, weight):
            return plain(images)

    found: dict[str, Callable[[Tensor], Tensor]] = {"plain": plain, "mixed": mixed}
    graphed = [GraphedPasses() for _ in found if kind == "cuda"]
    for replaying, (name, run) in zip(graphed, list(found.items()), strict=False):
        found[f"{name}, replayed"] = partial(replaying, network, run=run)

    def ready(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(kind, half, enabled=amp):
            return run(images)

    return {name: partial(ready, run) for name, run in found.items()}, graphed


@click.command()
@click.argument("model")
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--size", "sides", type=size, required=True, metavar="HxW", help="Of the network's input.")
@click.option("--weight", default=0.9, show_default=True, help="λ.")
@click.option("--batch", default=1, show_default=True)
@click.option("--repeats", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--amp", is_flag=True)
def main(
    model: str,
    weights: Path | None,
    sides: tuple[int, int],
    weight: float,
    batch: int,
    repeats: int,
    threads: int,
    device: str,
    amp: bool,
) -> None:
    """Time plain and mixed passes."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    segmenter = load_segmenter(parse_model(model, weights), place)
    assert isinstance(segmenter, NetworkSegmenter)
    images = torch.randn(batch, 3, *sides, device=place)
    compared, graphed = passes(segmenter, weight, amp)
    times = []
    for _ in range(repeats + WARM_UP):
        times.append([seconds(partial(run, images), place) for run in compared.values()])
    counted = times[WARM_UP:]
    shown = []
    for index, name in enumerate(compared):
        taken = statistics.median(row[index] for row in counted)
        shown.append(f"{name} {1e3 * taken:.2f} ms ({statistics.median(row[index] / row[0] for row in counted):.3f})")
    click.echo(f"{model}, batch of {batch}{', half precision' if amp else ''}: {', '.join(shown)}")
    for refused in {one.refused for one in graphed} - {None}:
        click.echo(f"not replayed: {refused}")


if __name__ == "__main__":
    main()
