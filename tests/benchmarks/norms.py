"""What mixing norms image by image takes, as a ratio to the plain network.

    python tests/benchmarks/norms.py MODEL [--weights FILE] --size 360x480

Plain and mixed passes over one image take turns; the median of the ratios is printed, on so many threads as
``--threads`` says.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import click
import torch

from blda_cli.commands.options import size
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.segmenters.spec import parse_model


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long one call takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@click.command()
@click.argument("model")
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--size", "sides", type=size, required=True, metavar="HxW", help="Of the network's input.")
@click.option("--weight", default=0.9, show_default=True, help="λ.")
@click.option("--batch", default=1, show_default=True)
@click.option("--repeats", default=9, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(
    model: str,
    weights: Path | None,
    sides: tuple[int, int],
    weight: float,
    batch: int,
    repeats: int,
    threads: int,
    device: str,
) -> None:
    """Time plain and mixed passes."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    network = load_segmenter(parse_model(model, weights), place).module
    images = torch.randn(batch, 3, *sides, device=place)
    pairs = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            pair = []
            for norms in (nullcontext(), InstanceNorms(network, weight)):
                with norms:
                    pair.append(seconds(lambda: network(images), place))
            pairs.append(pair)
    plain, mixed = (statistics.median(times) for times in zip(*pairs[1:], strict=True))
    ratio = statistics.median(other / one for one, other in pairs[1:])
    click.echo(f"{model}: plain {plain:.3f} s, mixed {mixed:.3f} s, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
