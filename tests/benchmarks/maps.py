"""Peak memory and time of a map: 20 000 x 15 000 pixels, 4 bands of 16 bits, 6 classes, by a small network.

    python tests/benchmarks/maps.py [HEIGHT WIDTH]

Writes the map to a temporary folder, runs ``check``, ``collect-stats``, ``align`` and ``report`` in processes of their
own and prints each one's highest memory and time. The network is one convolution, and windows do not overlap: what is
measured is reading, counting and writing.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

NETWORK = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, padding=1)
"""

TOML = """
[segmenter]
kind = "python"
factory = "small:make"
[preprocessing]
bands = [3, 2, 1, 4]
range = [0, 10000]
[classes]
names = ["water", "forest", "field", "meadow", "road", "roof"]
"""


def main() -> None:
    height, width = map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (15_000, 20_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = np.random.default_rng(0)
        with rasterio.open(
            folder / "map.tif", "w", driver="GTiff", height=height, width=width, count=4, dtype="uint16", tiled=True,
            crs="EPSG:32633", transform=from_origin(5e5, 4e6, 10, 10), nodata=0, BIGTIFF="IF_SAFER",
        ) as raster:  # fmt: skip
            tile = generator.integers(1, 10_000, (4, 1024, 1024)).astype(np.uint16)
            for top in range(0, height, 1024):
                for left in range(0, width, 1024):
                    size = min(1024, height - top), min(1024, width - left)
                    place = ((top, top + size[0]), (left, left + size[1]))
                    raster.write(tile[:, : size[0], : size[1]], window=place)
        (folder / "small.py").write_text(NETWORK)
        (folder / "small.toml").write_text(TOML)
        model = ["--model", folder / "small.toml", "--images", folder / "map.tif", "--device", "cpu"]
        windows = ["--slide", "512x512", "--stride", "512x512"]
        peak(["check", *model, "--output", folder / "check"])
        peak(["collect-stats", *model, *windows, "--output", folder / "s.h5"])
        peak(["align", *model, *windows, "--stats", folder / "s.h5", "--output", folder / "aligned"])
        peak(["report", "--stats", folder / "s.h5", "--aligned", folder / "aligned", "--output", folder / "report"])
        with rasterio.open(folder / "aligned" / "predictions" / "map.tif") as predicted:
            print(f"predicted: {predicted.width} x {predicted.height}, {predicted.crs}")


def peak(command: list[object]) -> None:
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "blda_cli", *map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed")
    largest = usage.ru_maxrss * 1024 / 1e9
    print(f"{command[0]}: {largest:.2f} GB at most, {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
