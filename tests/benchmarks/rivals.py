"""Test-time rivals of mixed norms, from their papers, on the arrays of one network; for ``quality.py --rivals``.

They run on a stream, image by image, as published; what DIGA keeps of the images before is in `Diga`. Their constants
are those of the published configurations.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from blda_cli.finetuning.networks.student import features_before
from blda_cli.segmenters.instance_norms import InstanceNorms
from blda_cli.segmenters.network import NetworkSegmenter

WEIGHTS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
"""The weights that InTEnt averages over, from the network's own statistics alone to the image's own alone."""


def scores_with(segmenter: NetworkSegmenter, weight: float, pixels: Tensor) -> Tensor:
    """Logits ``[1, C, H, W]`` with norms mixed by a weight."""
    segmenter.mix_norms(weight)
    return segmenter.logits(pixels)


def intent(segmenter: NetworkSegmenter, pixels: Tensor) -> Tensor:
    """Probabilities averaged over several weights, those of low entropy counting more.

    Dong et al., "InTEnt: integrated entropy weighting for single image test-time adaptation", CVPR workshops 2024:
    every weight of the norms counts by ``exp(−mean entropy of its prediction)``.
    """
    predictions = [scores_with(segmenter, weight, pixels).softmax(dim=1) for weight in WEIGHTS]
    entropies = torch.stack([-(one * one.clamp_min(1e-12).log()).sum(dim=1).mean() for one in predictions])
    shares = (-entropies).softmax(dim=0)
    return torch.stack([share * one for share, one in zip(shares, predictions, strict=True)]).sum(dim=0)


class Diga:
    """Both halves of DIGA (Wang et al., CVPR 2023): mixed norms, then class prototypes kept over the stream.

    Pixels surer than 0.9 give the image's own prototype of each class, the mean of the features in front of the
    classifier; the kept ones follow by a tenth. Prototypes are mixed as norms are (0.8 of the kept ones), pixels get
    probabilities by their distance to them, and the result is 0.8 of the network's and 0.2 of those.
    """

    def __init__(self, segmenter: NetworkSegmenter, classifier: str) -> None:
        self._segmenter, self._classifier = segmenter, classifier
        self._kept: Tensor | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Probabilities ``[1, C, H, W]``."""
        segmenter = self._segmenter
        images = pixels.permute(0, 3, 1, 2).float()
        size = (images.shape[2], images.shape[3])
        network = segmenter.module
        with torch.no_grad(), InstanceNorms(network, 0.8) as norms, features_before(network, self._classifier) as seen:
            probabilities = segmenter.forward_logits(images, size, norms=norms).softmax(dim=1)
        features = seen[-1]
        own = F.interpolate(probabilities, features.shape[2:], mode="bilinear")
        sure, classes = own.max(dim=1)
        flat, which = features[0].flatten(1).T, torch.where(sure > 0.9, classes, -1).flatten()
        there = F.one_hot(which[which >= 0], own.shape[1]).to(flat.dtype)
        prototypes = there.T @ flat[which >= 0] / there.sum(dim=0).unsqueeze(1)  # NaN of classes without sure pixels
        kept = prototypes if self._kept is None else self._kept
        kept = torch.where(kept.isnan(), prototypes, kept)
        mixed = torch.where(prototypes.isnan(), kept, 0.8 * kept + 0.2 * prototypes)
        self._kept = torch.where(prototypes.isnan(), kept, 0.9 * kept + 0.1 * prototypes)
        distances = torch.cdist(flat[None], mixed.nan_to_num(1e6)[None])[0]
        by_distance = (-distances).softmax(dim=1).T.view(1, -1, *features.shape[2:])
        return 0.8 * probabilities + 0.2 * F.interpolate(by_distance, size, mode="bilinear")


def rivals(segmenter: NetworkSegmenter, classifier: str | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every rival by name: takes pixels uint8 ``[1, H, W, 3]``, gives scores ``[1, C, H, W]``."""
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "as trained": lambda pixels: scores_with(segmenter, 1.0, pixels),
        "λ 0.8 (DIGA's first half)": lambda pixels: scores_with(segmenter, 0.8, pixels),
        "λ 0.9": lambda pixels: scores_with(segmenter, 0.9, pixels),
        "InTEnt": lambda pixels: intent(segmenter, pixels),
    }
    if classifier is not None:
        found["DIGA"] = Diga(segmenter, classifier)
    return found
