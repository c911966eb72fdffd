"""What an exported network costs over the original in the same runtime.

    python tests/benchmarks/export.py [--model FILE.toml] [--weights FILE] [--images DIR] [--size HxW] [--rounds 15]

The default correction and, for comparison, the location form are exported; the network that came in is exported without
a correction, to each format. The two run in turns on one batch of random numbers, so that what else the machine does
falls on both alike. Printed are medians of the processor time per pass and of the ratios of neighbouring passes, and
what the export's own verification said.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import blda_cli
from blda_cli.commands.options import size as parse_size
from blda_cli.errors import BldaError
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model

STREETS = Path(__file__).parents[2] / "examples" / "streets"


def network_of(folder: Path) -> Callable[[Tensor], Tensor]:
    """The exported network, as blda loads it."""
    segmenter = load_segmenter(parse_model(str(folder / "model.toml")), torch.device("cpu"))
    assert isinstance(segmenter, NetworkSegmenter)
    return segmenter.network_scores


def compared(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], images: Tensor, rounds: int) -> str:
    """Median times of two networks run in turns, and of their ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 2):
        for network, taken in zip((one, other), times, strict=True):
            started = time.process_time()
            network(images)
            if turn >= 2:  # the first passes allocate and compile
                taken.append(time.process_time() - started)
    ratios = [after / before for before, after in zip(*times, strict=True)]
    before, after = (1000 * statistics.median(taken) for taken in times)
    return f"{before:8.1f} ms {after:8.1f} ms {statistics.median(ratios):6.3f}"


@click.command()
@click.option("--model", type=Path, default=STREETS / "streets.toml")
@click.option("--weights", type=Path)
@click.option("--images", required=True, type=Path)
@click.option("--size", "shape", type=parse_size, default="360x480")
@click.option("--rounds", default=15)
def main(model: Path, weights: Path | None, images: Path, shape: tuple[int, int], rounds: int) -> None:
    """Print a line per format and correction."""
    torch.manual_seed(0)
    numbers = torch.randn(1, 3, *(parse_model(str(model)).preprocessing.size or shape))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given: dict[str, Any] = {"model": str(model), "weights": weights, "images": str(images), "device": "cpu"}
        blda_cli.collect_stats(**given, norms="source", output=folder / "stats.h5")
        print("format       correction             original   corrected  ratio  verified")
        for kind in ("state-dict", "torchscript", "pt2", "onnx"):
            blda_cli.export(**given, format=kind, method="none", output=folder / f"{kind}-plain")
            for shift in ("negative", "location"):
                if kind == "state-dict" and shift == "location":
                    continue
                output = folder / f"{kind}-{shift}"
                try:
                    record = blda_cli.export(
                        **given, format=kind, shift=shift, tau=0.4, stats=folder / "stats.h5", output=output
                    )
                except BldaError as error:
                    print(f"{kind:12} {shift:8} {error}")
                    continue
                line = compared(network_of(folder / f"{kind}-plain"), network_of(output), numbers, rounds)
                where = "folded" if record.layer else "behind"
                print(f"{kind:12} {shift:8} {where:6} {line}  {record.agreement.describe()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
