"""Whether parts of a set of images, such as subfolders, are of one domain."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from blda_cli.core.fitting.strength import ReferenceComparison, compared
from blda_cli.core.sample import PixelSample, image_digest

DIFFERS = 0.5
"""Distance from the surest part from which a part counts as another domain: half that of a full correction."""


@dataclass(frozen=True)
class DifferingParts:
    """Parts out of the domain of the part that the network is most confident on.

    Attributes:
        surest: the part with the highest mean confidence.
        others: the parts that differ from it, each with the comparison.
    """

    surest: str
    others: dict[str, ReferenceComparison]


def differing_parts(sample: PixelSample, parts: Mapping[str, Iterable[str]]) -> DifferingParts | None:
    """Compare parts of the images with the one that the network is most confident on, as with a reference.

    Args:
        sample: random pixels of all images.
        parts: keys of the images of each part.

    Returns:
        The parts that differ; None where none does, or there are not two with sampled pixels.
    """
    samples = {
        name: sample.among(torch.isin(sample.images, torch.tensor([image_digest(key) for key in keys])))
        for name, keys in parts.items()
    }
    samples = {name: part for name, part in samples.items() if len(part)}
    if len(samples) < 2:
        return None
    confidence = {name: compared(part, part).confidence for name, part in samples.items()}
    surest = max(confidence, key=confidence.__getitem__)
    found = {name: compared(part, samples[surest]) for name, part in samples.items() if name != surest}
    others = {name: one for name, one in found.items() if one.distance(norms_shifted=False) >= DIFFERS}
    return DifferingParts(surest, others) if others else None
