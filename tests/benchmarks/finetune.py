"""What BLDA adds to a training step, and what a step costs over the networks' bare forward and backward passes.

    python tests/benchmarks/finetune.py [--device cuda] [--memory] [--json FILE]

On the CPU: ESPNet on 256x256 crops. On a GPU: a SegFormer of B2's size on 512x512 crops in mixed precision, and in
float32. Two source and two target crops a step, random pixels, labels in blocks; the teacher labels the crops. Medians,
of processor time on a CPU; the variants take turns, so that what else the machine does falls on all of them alike. With
``--memory`` also the memory that training SegFormers of B2's and B5's size takes at its peak: what torch allocates on a
GPU; on a CPU, which keeps the same tensors, what the process grows by.
"""

import json
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.core.losses import cross_entropy
from blda_cli.data.pillow_images import PillowImage
from blda_cli.finetuning.data.augmentation import Augmentation
from blda_cli.finetuning.data.mixing import block_mask
from blda_cli.finetuning.data.samples import Batch, Crop, Sample, collate
from blda_cli.finetuning.settings import Settings
from blda_cli.finetuning.trainer import Trainer
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model

ESPNET = Path(__file__).parents[2] / "examples" / "espnet" / "espnet.toml"
CLASSES = {"espnet": 11, "segformer-b2": 19, "segformer-b5": 19}
DEPTHS = {"segformer-b2": [3, 4, 6, 3], "segformer-b5": [3, 6, 40, 3]}
MEMORY: dict[str, dict[str, Any]] = {
    "float32": {},
    "--amp": {"training.amp": True},
    "--amp --batch-size 1 --accumulate 2": {
        "training.amp": True,
        "training.batch_size": 1,
        "training.accumulate": 2,
    },
    "--amp --activation-checkpointing": {"training.amp": True, "training.activation_checkpointing": True},
}


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--steps", default=15, show_default=True, help="Steps of each variant that count.")
@click.option("--memory", "with_memory", is_flag=True, help="Measure memory too; on a CPU this takes long.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the numbers here.")
def main(device: str, steps: int, with_memory: bool, json_file: Path | None) -> None:
    """Time training steps."""
    place = torch.device(device)
    cases = (
        [("espnet", 256, False)] if place.type == "cpu" else [("segformer-b2", 512, True), ("segformer-b2", 512, False)]
    )
    results = [measure(network, crop, amp, place, steps) for network, crop, amp in cases]
    machine = torch.cuda.get_device_name() if place.type == "cuda" else f"{platform.processor()}, {threads()}"
    print(f"\n{machine}, torch {torch.__version__}, medians of {steps} steps, milliseconds\n")
    print("| network | crop | amp | bare passes | dacs | blda | blda / dacs | dacs / bare | blda / bare |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in results:
        print(
            f"| {one['network']} | {one['crop']} | {'yes' if one['amp'] else 'no'} | {one['bare_ms']:.1f} "
            f"| {one['dacs_ms']:.1f} | {one['blda_ms']:.1f} | {one['blda_over_dacs']:.3f} "
            f"| {one['dacs_over_bare']:.3f} | {one['blda_over_bare']:.3f} |"
        )
    memory = {}
    if with_memory:
        print("\n| network, blda on 512x512 crops, 2 + 2 | " + " | ".join(MEMORY) + " |")
        print("| --- " * (len(MEMORY) + 1) + "|")
        for network in DEPTHS:
            memory[network] = {name: peak_memory(network, values, device) for name, values in MEMORY.items()}
            print(f"| {network} | " + " | ".join(f"{value:.1f} GB" for value in memory[network].values()) + " |")
    if json_file:
        numbers = {"machine": machine, "torch": torch.__version__, "cases": results, "memory_gb": memory}
        json_file.write_text(json.dumps(numbers, indent=1))


def measure(network: str, crop: int, amp: bool, device: torch.device, steps: int) -> dict[str, Any]:
    """Median times of the bare passes and of the two methods' steps."""
    settings = Settings().with_values(
        {"training.crop": (crop, crop), "training.amp": amp, "training.iterations": 40_000}, "benchmark"
    )
    batches = [random_batch(settings, CLASSES[network], number, device) for number in range(4)]
    trainers = {
        method: Trainer(load(network, device), settings.with_values({"training.method": method}, "benchmark"))
        for method in ("dacs", "blda")
    }
    variants: dict[str, Callable[[Batch], Any]] = {
        "bare": bare_passes(load(network, device), load(network, device), amp),
        **{name: partial(step_of, trainer) for name, trainer in trainers.items()},
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    # Processor time on a CPU: what else the machine does is no cost of a step.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for step in range(steps + 3):
        for name, run in variants.items():
            wait(device)
            start = clock()
            run(batches[step % len(batches)])
            wait(device)
            if step >= 3:
                times[name].append(1e3 * (clock() - start))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "network": network,
        "crop": crop,
        "amp": amp,
        **{f"{name}_ms": value for name, value in median.items()},
        "blda_over_dacs": statistics.median(b / d for b, d in zip(times["blda"], times["dacs"], strict=True)),
        "dacs_over_bare": median["dacs"] / median["bare"],
        "blda_over_bare": median["blda"] / median["bare"],
    }


def peak_memory(network: str, values: dict[str, Any], device: str) -> float:
    """Most memory that BLDA's steps hold, in GB."""
    # A process of its own: the most memory a process ever held only grows.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory_here, (network, values, torch.device(device)))


def peak_memory_here(network: str, values: dict[str, Any], device: torch.device) -> float:
    """Two steps: with the second the optimiser's averages are there."""
    settings = Settings().with_values(values, "benchmark")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer = Trainer(load(network, device), settings)
    batches = [
        random_batch(settings, CLASSES[network], number, device) for number in range(settings.training.accumulate)
    ]
    for _ in range(2):
        trainer.train_step(batches)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9


def step_of(trainer: Trainer, batch: Batch) -> None:
    """One step."""
    trainer.train_step([batch])


def bare_passes(student: NetworkSegmenter, teacher: NetworkSegmenter, amp: bool) -> Callable[[Batch], None]:
    """Forward and backward on the source and on as many other crops, and the teacher's forward: no more."""
    student.module.train()
    teacher.module.train()

    def logits(segmenter: NetworkSegmenter, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            return segmenter.forward_logits(images, (images.shape[2], images.shape[3]))

    def run(batch: Batch) -> None:
        student.module.zero_grad(set_to_none=True)
        cross_entropy(logits(student, batch.source_images), batch.source_labels).mean().backward()
        with torch.no_grad():
            logits(teacher, batch.target_images)
        cross_entropy(logits(student, batch.target_images), batch.source_labels).mean().backward()

    return run


def load(network: str, device: torch.device) -> NetworkSegmenter:
    """The network with random weights, as any user's."""
    torch.manual_seed(0)
    if network == "espnet":
        segmenter = load_segmenter(parse_model(str(ESPNET)), device)
    else:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

        config = SegformerConfig(
            depths=DEPTHS[network], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768, num_labels=19
        )
        with tempfile.TemporaryDirectory() as folder:
            SegformerForSemanticSegmentation(config).save_pretrained(folder)
            SegformerImageProcessor(do_resize=False).save_pretrained(folder)
            segmenter = load_segmenter(parse_model(folder), device)
    assert isinstance(segmenter, NetworkSegmenter)
    return segmenter


def random_batch(settings: Settings, num_classes: int, number: int, device: torch.device) -> Batch:
    """Two pairs of crops as a sampler would draw them, of noise."""
    generator = np.random.default_rng(number)
    crop = settings.training.crop
    whole = Crop(PillowImage(Path("noise"), "noise"), crop, 0, 0, crop, mirrored=False)
    samples: list[Sample] = []
    for _ in range(settings.training.batch_size):
        blocks = generator.integers(0, num_classes, (crop[0] // 32, crop[1] // 32), dtype=np.int16)
        labels = blocks.repeat(32, axis=0).repeat(32, axis=1)
        labels[generator.random(crop) < 0.05] = IGNORE_INDEX
        draws = [Augmentation.draw(generator, replace(settings.host, color_jitter=1.0, blur=1.0)) for _ in range(2)]
        samples.append(
            {
                "source_images": generator.integers(0, 256, (*crop, 3), dtype=np.uint8),
                "source_labels": labels,
                "target_images": generator.integers(0, 256, (*crop, 3), dtype=np.uint8),
                "target_weighed": np.ones(crop, dtype=np.float32),
                "class_order": generator.permutation(np.arange(IGNORE_INDEX, num_classes)),
                "kept": block_mask(generator, crop, 64, 0.7),
                **draws[0].fields(""),
                **draws[1].fields("masked_"),
                "source_crops": whole,
                "target_crops": whole,
            }
        )
    return collate(samples).to(device)


def wait(device: torch.device) -> None:
    """Until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def threads() -> str:
    """How many threads torch uses."""
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


if __name__ == "__main__":
    main()
