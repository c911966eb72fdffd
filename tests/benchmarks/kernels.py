"""Time the kernels against ``softmax`` followed by ``max`` over the classes, which every user already pays.

    python tests/benchmarks/kernels.py [--json FILE] [--device cuda] [--shape 19x1024x2048] [--repeats 7]

Every figure is the median over fresh random logits of a time divided by that of the baseline measured right before
it, on the same tensor and device, with torch's number of threads. "installed" rows are what the commands run; the
others are one implementation each. What the histogram rows time is all that a user calls: argmax, range and counts.

What must be moved and computed, per frame of P pixels, C classes and logits of s bytes (19 classes, 1024×2048, float32
in brackets):

- read the logits once: s·C·P (159 MB); write ids of a byte: P (2 MB). The baseline reads them twice and writes and
  reads probabilities (640 MB), and computes C·P exponentials (40 M).
- constant shifts: C·P exponentials and C²·P multiply-adds (0.8 G, one small matrix product); one offset per class: C·P
  additions. Both are limited by the reading on a GPU and by the exponentials on a CPU.
- quantile form: C·P exponentials, C·P rows of C factors looked up (3.0 GB from a table of C·B·C·4 = 1.6 MB) and C²·P
  multiply-adds. Limited by the loads of rows from the second level of cache; so it slows down where the table
  outgrows it: 92 MB at 150 classes and 1024 bins, though real logits use few of its rows at a time.
- hard histogram: the argmax and the range, two readings; C·P increments (40 M) of C·B cells a channel (156 kB). Limited
  by the increments, one load and store each.
- soft histogram: C·P exponentials, C²·P integer additions (0.8 G) as C·P rows of C, and C·B·C sums (1.5 MB in 32 bits)
  emptied every 65535 pixels. Limited by loads and stores of rows; grows with C².

On a GPU of 3.35 TB/s with half-precision logits (counted, not measured): the baseline moves 260 MB, 78 µs; reading
logits and writing ids 82 MB, 25 µs, a third of it, is the floor of every alignment. The 0.8 G multiply-adds would take
about as long again on the ordinary cores; the location form's run on the tensor cores. The quantile form's rows, 3 GB
out of a table of 1.5 MB, come from the second level of cache where the first misses, which is several times the
baseline if it always does; a table of 256 bins in half precision (195 kB) would fit the first. The histograms are
limited by atomic additions in the second level: C·P of them with hard labels, and one per class with a weight above
2⁻¹⁷, up to C²·P, with soft ones.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from blda_cli.core import kernels
from blda_cli.core.choices import LogitSpace
from blda_cli.core.corrections import LocationCorrection, OffsetCorrection, QuantileCorrection
from blda_cli.core.histogram import DEFAULT_BINS, LogitHistogram

_SCALE, _LIMIT = 4.0, 32.0  # of the random logits; the axis that holds them

Row = Callable[[Tensor], object]


def main() -> None:
    """Print the table, write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", default="19x1024x2048", metavar="CxHxW")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: float32, float16 on CUDA")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--smooth", action="store_true", help="logits that vary slowly over the image, as real ones do")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("float16" if device.type == "cuda" else "float32"))
    num_classes, height, width = (int(size) for size in options.shape.split("x"))

    # First, because a new process starts with what this one held as its peak.
    peak = _peak_share(num_classes, height, width, dtype, device)
    with _only_torch():
        peak_of_torch = _peak_share(num_classes, height, width, dtype, device)
    make = _smooth if options.smooth else _random
    logits = make(num_classes, height, width, device).to(dtype)
    rows = dict(_rows(num_classes, device, logits))
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    ratios: dict[str, list[float]] = {name: [] for name in rows}
    for row in rows.values():  # warm up: compile, allocate
        row(logits)
    for _ in range(options.repeats):
        logits = make(num_classes, height, width, device).to(dtype)
        for name, row in rows.items():
            baseline = _seconds(_softmax_max, logits)
            seconds[name].append(_seconds(row, logits))
            ratios[name].append(seconds[name][-1] / baseline)

    type_name, date = str(dtype).removeprefix("torch."), f"{datetime.now(UTC):%Y-%m-%d}"
    print(f"{date}  {_machine(device)}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"logits [1, {num_classes}, {height}, {width}] {type_name}, {options.repeats} repeats\n")
    print(f"{'':44}{'ms':>9}{'ratio':>8}")
    for name in rows:
        print(f"{name:44}{1000 * statistics.median(seconds[name]):9.2f}{statistics.median(ratios[name]):8.2f}")
    print(f"{'extra peak memory of quantile form / logits':44}{'':9}{peak:8.2f}")
    print(f"{'the same by torch alone':44}{'':9}{peak_of_torch:8.2f}")
    if options.json:
        result = {key: statistics.median(ratios[name]) for key, name in _KEYS.items()}
        result |= {"align_peak_extra_over_logits": peak, "torch_align_peak_extra_over_logits": peak_of_torch}
        details = {
            "date": date,
            "machine": _machine(device),
            "shape": [1, num_classes, height, width],
            "dtype": type_name,
            "threads": torch.get_num_threads(),
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        }
        options.json.write_text(json.dumps(result | details, indent=2) + "\n")


_KEYS = {
    "align_over_softmax_max": "align, quantile form: installed",
    "align_location_over_softmax_max": "align, location form: installed",
    "align_offset_over_softmax_max": "align, offset form: installed",
    "histogram_pseudo_over_softmax_max": "histogram, pseudo-labels: installed",
    "histogram_soft_over_softmax_max": "histogram, softmax-weighted: installed",
}


def _rows(num_classes: int, device: torch.device, logits: Tensor) -> Iterator[tuple[str, Row]]:
    random = torch.Generator().manual_seed(0)
    shifts = torch.randn(num_classes, num_classes, DEFAULT_BINS, generator=random).cumsum_(dim=2).div_(30)
    quantile = QuantileCorrection(shifts, _LIMIT, LogitSpace.RAW).to(device)
    location = LocationCorrection(shifts[..., 0] + torch.randn(num_classes, num_classes, generator=random)).to(device)
    offset = OffsetCorrection(torch.randn(num_classes, generator=random)).to(device)
    pseudo, soft = (LogitHistogram(num_classes, device=device) for _ in range(2))
    yield "softmax, then max", _softmax_max
    yield "clone", torch.clone
    yield "argmax: torch", lambda z: z.argmax(dim=1)
    yield "argmax: installed", kernels.argmax
    yield "align, quantile form: installed", quantile.predict
    yield "align, location form: installed", location.predict
    yield "align, offset form: installed", offset.predict
    yield "histogram, pseudo-labels: installed", lambda z: pseudo.update(z, kernels.argmax(z))
    yield "histogram, softmax-weighted: installed", soft.update_soft
    factors = kernels.quantile_factors(shifts.to(device))
    counts = torch.zeros(num_classes, num_classes, DEFAULT_BINS, dtype=torch.float64, device=device)
    for name in ["torch", *({"cpu": ["numba"], "cuda": ["triton"]}[device.type])]:
        if find_spec(name) is None:
            continue
        module = import_module(f"blda_cli.core.kernels.{name}_kernels")
        yield f"align, quantile form: {name}", partial(_align_by, module, factors)
        if hasattr(module, "align_location"):
            yield f"align, location form: {name}", partial(_location_by, module, location.shifts)
        yield f"histogram, pseudo-labels: {name}", partial(_count_by, module, counts)
        yield f"histogram, softmax-weighted: {name}", partial(_count_soft_by, module, counts)
    if find_spec("fiducio") is not None:
        yield from _fiducio(logits)


def _fiducio(logits: Tensor) -> Iterator[tuple[str, Row]]:
    """Another package's calibrators, barely fitted: only applying them is timed."""
    import fiducio

    corner = logits[..., :64, :64].float()
    labels = (corner + torch.randn_like(corner)).argmax(dim=1)
    for name in ("MatrixScaling", "ClassConditionalMatrixScaling"):
        calibrator = getattr(fiducio, name)(max_iter=1, device=logits.device)
        calibrator.fit(corner, labels)
        yield f"fiducio {name}", partial(_transform, calibrator)


def _align_by(module: ModuleType, factors: Tensor, logits: Tensor) -> object:
    return module.align_quantile(logits.flatten(2), factors, _LIMIT)


def _location_by(module: ModuleType, shifts: Tensor, logits: Tensor) -> object:
    return module.align_location(logits.flatten(2), shifts)


def _count_by(module: ModuleType, counts: Tensor, logits: Tensor) -> object:
    flat = logits.flatten(2)
    return module.count_cells(counts, flat, kernels.argmax(flat), _LIMIT)


def _count_soft_by(module: ModuleType, counts: Tensor, logits: Tensor) -> object:
    return module.count_cells_soft(counts, logits.flatten(2), _LIMIT)


def _transform(calibrator: Any, logits: Tensor) -> object:
    return calibrator.transform(logits.float())


def _softmax_max(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1).max(dim=1).indices


def _random(num_classes: int, height: int, width: int, device: torch.device) -> Tensor:
    return torch.randn(1, num_classes, height, width, device=device).mul_(_SCALE)


def _smooth(num_classes: int, height: int, width: int, device: torch.device) -> Tensor:
    coarse = torch.randn(1, num_classes, max(1, height // 32), max(1, width // 32), device=device).mul_(_SCALE)
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return fine.add_(torch.randn_like(fine), alpha=0.1)


def _seconds(row: Row, logits: Tensor) -> float:
    if logits.device.type == "cuda":
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        row(logits)
        stop.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(stop)) / 1000
    began = time.perf_counter()
    row(logits)
    return time.perf_counter() - began


@contextmanager
def _only_torch() -> Iterator[None]:
    """Within ``with`` the kernels are torch's, in processes started from here, too."""
    kept = os.environ.get("BLDA_KERNELS")
    os.environ["BLDA_KERNELS"] = "torch"
    try:
        yield
    finally:
        os.environ.pop("BLDA_KERNELS")
        if kept is not None:
            os.environ["BLDA_KERNELS"] = kept


def _peak_share(num_classes: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> float:
    """Peak memory that aligning adds, result included, over the size of the logits."""
    arguments = (num_classes, height, width, dtype, device)
    if device.type == "cuda":
        return _peak_share_here(*arguments)
    # A process of its own: the most memory a process ever held only grows.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_share_here, arguments)


def _peak_share_here(num_classes: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> float:
    shifts = torch.zeros(num_classes, num_classes, DEFAULT_BINS, device=device)
    correction = QuantileCorrection(shifts, _LIMIT, LogitSpace.RAW)
    correction.predict(torch.zeros(1, num_classes, 16, 16, dtype=dtype, device=device))  # compile, make the table
    logits = torch.zeros(1, num_classes, height, width, dtype=dtype, device=device)
    logits.normal_()
    before = _peak_bytes(device)
    correction.predict(logits)
    return (_peak_bytes(device) - before) / (logits.numel() * logits.element_size())


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
