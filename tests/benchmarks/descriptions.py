"""How surely `blda check` tells a network's input description: networks × images × descriptions to start from.

    python tests/benchmarks/descriptions.py --data ../shared/data [--networks espnet,dabnet] [--corrupt none,dark,night]

Prints one line per case: what is said to fit best, whether that is right, whether it is told, and processor seconds
(those of the first start of an image set; the others reuse what it tried).
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blda_cli.core.description import Fit
from blda_cli.data.images import find_images
from blda_cli.data.pillow_images import PillowImage
from blda_cli.data.source import ImageSource
from blda_cli.segmenters import descriptions, load_segmenter
from blda_cli.segmenters.descriptions import (
    common_descriptions,
    compare_descriptions,
    glance,
    spread,
    try_description,
)
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.preprocessing import Preprocessor
from blda_cli.segmenters.spec import PreprocessingSection, parse_model

ROOT = Path(__file__).parents[2]
STARTS = {
    "right": None,
    "0..1": PreprocessingSection(),
    "0..255": PreprocessingSection(scale=1.0),
    "ImageNet": PreprocessingSection(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "-1..1": PreprocessingSection(mean=(0.5,) * 3, std=(0.5,) * 3),
    "Caffe": PreprocessingSection(color="bgr", mean=(103.94, 116.78, 123.68), scale=1.0),
}


@dataclass(frozen=True)
class Corrupted(PillowImage):
    """A picture as the weather may have it."""

    kind: str = "none"

    def read(self) -> np.ndarray:
        """See `ImageSource.read`."""
        pixels = super().read().astype(np.float64)
        if self.kind == "dark":
            pixels = pixels * 0.3
        elif self.kind == "night":
            pixels = (pixels / 255) ** 2.5 * 255 * 0.6
        elif self.kind == "fog":
            pixels = pixels * 0.4 + 140
        elif self.kind == "noise":
            pixels = pixels + np.random.default_rng(0).normal(0, 40, pixels.shape)
        return pixels.clip(0, 255).astype(np.uint8)


def networks(data: Path) -> dict[str, tuple[str, Path | None]]:
    """Description and weights of the networks."""
    return {
        "espnet": (str(ROOT / "examples/espnet/espnet.toml"), data / "weights/espnet_cityscapes_p2_q8.pth"),
        "dabnet": (str(data / "nets/dabnet/dabnet.toml"), None),
        "espnetv2": (str(data / "nets/espnetv2/espnetv2.toml"), None),
        "streets": (str(ROOT / "examples/streets/streets.toml"), None),
    }


class Remembered:
    """Tries a description on the same images once: those to start from share most of what is tried."""

    def __init__(self) -> None:
        self._known: dict[Any, Fit] = {}

    def __call__(self, segmenter: Any, section: Any, images: Any, *, copies: bool) -> Fit:
        """See `descriptions.try_description`."""
        shape = (len(images), images[0].shape, float(images[0].sum()))
        key = (section.color, section.mean, section.std, section.scale, shape, copies)
        if key not in self._known:
            self._known[key] = try_description(segmenter, section, images, copies=copies)
        return self._known[key]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--streets", type=Path, help="what examples/streets/draw.py drew, for the network streets")
    parser.add_argument("--networks", default="espnet,dabnet,espnetv2")
    parser.add_argument("--domains", default="dusk,day")
    parser.add_argument("--starts", default=",".join(STARTS))
    parser.add_argument("--corrupt", default="none")
    parser.add_argument("--quick", action="store_true", help="the quick look of the other commands alone")
    options = parser.parse_args(arguments)
    for network in options.networks.split(","):
        spec = parse_model(*networks(options.data)[network])
        loaded = load_segmenter(spec, torch.device("cpu"))
        assert isinstance(loaded, NetworkSegmenter)
        right = common_descriptions(loaded.preprocessor.section)[0]
        for domain in options.domains.split(","):
            root = options.streets if network == "streets" else options.data / "camvid"
            files = spread(find_images(root / domain / "images"), 12)
            for kind in options.corrupt.split(","):
                descriptions.try_description = Remembered()
                images: list[ImageSource] = [Corrupted(file.path, file.key, kind=kind) for file in files]
                for start in options.starts.split(","):
                    section = STARTS[start]
                    own = right.section
                    if section is not None:
                        own = replace(own, color=section.color, mean=section.mean, std=section.std, scale=section.scale)
                    segmenter = replace(loaded, preprocessor=Preprocessor(own, loaded.device))
                    began = time.process_time()
                    doubted = glance(segmenter, images)
                    quick = time.process_time() - began
                    look = "doubts" if doubted else "silent"
                    line = f"{network} {domain} {kind} from {start}: quick look {look}, {quick:.1f} s"
                    if doubted:
                        line += f" ({doubted.best.description}, {doubted.gain:.1f}x)"
                    if not options.quick:
                        began = time.process_time()
                        found = compare_descriptions(segmenter, images)
                        best = found.best.description
                        verdict = "right" if best.same_normalisation(right) else "WRONG"
                        if verdict == "WRONG" and any(one.same_normalisation(right) for one in found.tied):
                            verdict = "tied with the right one"
                        colour = "unknown"
                        if found.colour_told:
                            colour = "right" if best.section.color == right.section.color else "WRONG"
                        told = "clearly" if found.told else "tied" if found.tied else "probably"
                        line += (
                            f"; check: {best} ({told}): {verdict}, colours {colour} ({found.colour or 0:.2f}), gain "
                            f"{found.gain:.1f}, {time.process_time() - began:.1f} s"
                        )
                    print(line, flush=True)


if __name__ == "__main__":
    main()
