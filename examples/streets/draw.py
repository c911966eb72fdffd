"""Draw street scenes with pixel labels in two domains, ``day`` and ``dusk``.

The domains differ as two recordings would:

- in what is there: by day a quiet street out of town with sky, trees and a few people; at dusk the middle of a town,
  with higher and denser buildings, more signs, pedestrians and bicyclists;
- in the light: by day the sun shades one side of the street and casts shadows. Dusk is dim and bluish, windows, street
  lamps and rear lights are lit, mist hides what is far, and the camera is out of focus and noisy.

Run ``python draw.py OUTPUT`` for ``OUTPUT/DOMAIN/images/NAME.png`` (RGB) and ``OUTPUT/DOMAIN/labels/NAME.png`` (class
ids, 255 where unlabelled).
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from street import HEIGHT, SUPERSAMPLING, WIDTH, Canvas, Contents, Street

GAMMA = 2.2
TWILIGHT = (0.75, 0.8, 1.0)
BRIGHTNESS = (0.25, 0.5)  # of daylight
VISIBILITY = (40.0, 120.0)  # metres at which 37 % of the light is left
MIST = 0.5  # how bright it is, of a white wall's brightness

LINEAR = ((np.arange(256) / 255) ** GAMMA).astype(np.float32)  # the light of an 8-bit value


def daylight(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The light ``[H, W, 3]`` that reaches the camera on a clear day: well exposed, slightly warm or cold."""
    warmth = rng.uniform(0.95, 1.05)
    balance = np.array([warmth, 1.0, 1 / warmth], np.float32)
    return _linear(canvas.color) * balance * np.float32(rng.uniform(0.7, 1.2))


def twilight(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """The light ``[H, W, 3]`` that reaches the camera at dusk: dim and bluish, with lamps, dulled by mist."""
    dim = np.array(TWILIGHT, np.float32) * np.float32(rng.uniform(*BRIGHTNESS))
    light: np.ndarray = np.maximum(_linear(canvas.color) * dim, _linear(canvas.lamps))
    distance = np.asarray(canvas.distance)[..., None]
    visible = np.exp(-distance / np.float32(rng.uniform(*VISIBILITY)))
    mist = dim * np.float32(MIST)
    seen: np.ndarray = mist + (light - mist) * visible
    return seen


@dataclass(frozen=True)
class Domain:
    """Where and when the scenes are."""

    name: str
    contents: Contents
    light: Callable[[Canvas, np.random.Generator], np.ndarray]
    sunny: bool
    noise: float  # standard deviation, of 0..1


DAY = Domain(
    "day",
    Contents(cars=3, pedestrians=2.5, bicyclists=1, signs=1, lamps=2, trees=4, fences=0.15, gaps=0.35, storeys=(1, 3)),
    daylight,
    sunny=True,
    noise=0.01,
)
DUSK = Domain(
    "dusk",
    Contents(cars=3, pedestrians=4, bicyclists=2, signs=2.5, lamps=3, trees=2, fences=0.2, gaps=0.1, storeys=(2, 5)),
    twilight,
    sunny=False,
    noise=0.03,
)
DOMAINS = (DAY, DUSK)


def draw_scene(domain: Domain, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        domain: the domain it comes from.
        seed: equal seeds give equal scenes.

    Returns:
        The image, ``[HEIGHT, WIDTH, 3]`` RGB, and its class ids, ``[HEIGHT, WIDTH]``.
    """
    rng = np.random.default_rng(seed)
    canvas = Street(domain.contents, domain.sunny, rng).canvas
    light = domain.light(canvas, rng)
    blocks = light.reshape(HEIGHT, SUPERSAMPLING, WIDTH, SUPERSAMPLING, 3)
    pixels = blocks.mean((1, 3)).clip(0, 1) ** (1 / GAMMA) + rng.normal(0, domain.noise, (HEIGHT, WIDTH, 3))
    label = np.asarray(canvas.label)[::SUPERSAMPLING, ::SUPERSAMPLING]
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8), label


def _linear(image: Image.Image) -> np.ndarray:
    light: np.ndarray = LINEAR[np.asarray(image, np.uint8)]
    return light


def main() -> None:
    """Draw the scenes of both domains into a folder."""
    parser = argparse.ArgumentParser(description="Draw street scenes with labels, by day and at dusk.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=48, help="scenes of each domain (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for number, domain in enumerate(DOMAINS):
        images, labels = (arguments.output / domain.name / kind for kind in ("images", "labels"))
        for folder in (images, labels):
            folder.mkdir(parents=True, exist_ok=True)
        for scene in range(arguments.count):
            image, label = draw_scene(domain, (arguments.seed, number, scene))
            name = f"{domain.name}_{scene:04}.png"
            Image.fromarray(image).save(images / name)
            Image.fromarray(label).save(labels / name)
    print(f"{arguments.count} scenes each of {' and '.join(domain.name for domain in DOMAINS)} in {arguments.output}")


if __name__ == "__main__":
    main()
