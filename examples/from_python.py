"""See and correct a network's class bias in an inference loop of one's own.

The network is the small one of ``streets/``, trained on streets by day; the images are streets at dusk, drawn here.
Run ``python examples/from_python.py [FOLDER]``; statistics and report stay in the folder, if one is given.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import blda_cli

sys.path.append(str(Path(__file__).parent / "streets"))
from draw import DUSK, draw_scene
from streetnet import streetnet
from train import normalize

SCENES = 24

WEIGHT = 0.9
"""Of the batch norms' own statistics; the rest is each image's, as with ``blda align --norm-weight 0.9``."""


def main(folder: Path, scenes: int = SCENES) -> dict[str, float]:
    """Count, look, correct.

    Args:
        folder: where the statistics and the report go.
        scenes: images.

    Returns:
        Mean class accuracy in percent of the network as trained and of the alignment.
    """
    network = streetnet().eval()
    weights = Path(__file__).parent / "streets" / "streetnet.pth"
    network.load_state_dict(torch.load(weights, weights_only=True))

    # One pass over images like those to come; no labels are needed.
    statistics = blda_cli.LogitStatistics(num_classes=11)
    with blda_cli.InstanceNorms(network, WEIGHT):
        for images, _ in loader(scenes):
            statistics.update(logits_of(network, images))
    print(f"Σ |estimated bias| {100 * float(statistics.compute()['bias'].abs().nansum()):.0f} points")

    # Kept for later, and for `blda report --stats`.
    blda_cli.write_statistics(folder / "dusk.h5", statistics, classes="camvid", norm_weight=WEIGHT)
    report = blda_cli.report(folder / "dusk.h5", output=folder / "report", overwrite=True)
    print(f"over-predicted {', '.join(report.named('over'))}; under-predicted {', '.join(report.named('under'))}")

    # In the loop that predicts: the same norms, and one line in the place of argmax. The labels only score it.
    alignment = blda_cli.Alignment.from_file(folder / "dusk.h5")
    print(f"corrected with τ {alignment.settings.tau}")
    rights: dict[str, list[Tensor]] = {"argmax": [], "aligned": []}
    truth = []
    for images, labels in loader(scenes):
        rights["argmax"].append(logits_of(network, images).argmax(dim=1) == labels)
        with blda_cli.InstanceNorms(network, WEIGHT):
            rights["aligned"].append(alignment.predict(logits_of(network, images)) == labels)
        truth.append(labels)
    of_class = [torch.cat(truth) == label for label in range(11)]
    accuracies = {}
    for name, right in rights.items():
        accuracies[name] = 100 * float(np.mean([torch.cat(right)[pixels].float().mean() for pixels in of_class]))
        print(f"mean class accuracy of {name}: {accuracies[name]:.1f} %")
    return accuracies


def loader(scenes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``[4, 3, H, W]`` in 0..1 and labels ``[4, H, W]``, 255 where there is none."""
    for first in range(0, scenes, 4):
        drawn = [draw_scene(DUSK, (0, 1, scene)) for scene in range(first, first + 4)]
        images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
        yield images.permute(0, 3, 1, 2) / 255, labels


@torch.inference_mode()
def logits_of(network: torch.nn.Module, images: Tensor) -> Tensor:
    """Logits ``[N, C, H, W]`` at the images' size."""
    return F.interpolate(network(normalize(images)), images.shape[-2:], mode="bilinear", align_corners=False)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
