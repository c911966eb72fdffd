"""Train the small network on scenes by day, as one trains on the images one has, and write ``streetnet.pth``.

Run ``python train.py [WEIGHTS]``; it takes a few minutes on two CPU cores.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from draw import DAY, draw_scene
from street import UNLABELLED
from streetnet import streetnet
from torch import Tensor

# The same numbers stand in streets.toml.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

SCENES = 500
SEED = 1  # other scenes than those that `draw.py` writes by default
STEPS = 2000
BATCH_SIZE = 8
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1e-2


def main() -> None:
    """Train and save."""
    weights = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("streetnet.pth")
    torch.manual_seed(SEED)
    images, labels = draw_training_set()
    network = streetnet()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for step in range(STEPS):
        chosen = torch.randperm(SCENES)[:BATCH_SIZE]
        image, label = augment(images[chosen].float() / 255, labels[chosen].long())
        logits = F.interpolate(network(normalize(image)), label.shape[-2:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, label, ignore_index=UNLABELLED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    # Half precision halves the file and changes no decision worth speaking of.
    halved = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    torch.save(halved, weights)
    print(f"{weights}: {weights.stat().st_size / 1000:.0f} kB")


def draw_training_set() -> tuple[Tensor, Tensor]:
    """Images ``[SCENES, 3, H, W]`` and labels ``[SCENES, H, W]``, both uint8."""
    scenes = [draw_scene(DAY, (SEED, 0, scene)) for scene in range(SCENES)]
    images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*scenes, strict=True))
    return images.permute(0, 3, 1, 2), labels


def augment(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Flip, and vary exposure, white balance and noise a little: far less than dusk does."""
    if torch.rand(()) < 0.5:
        image, label = image.flip(-1), label.flip(-1)
    exposure = torch.empty(len(image), 1, 1, 1).uniform_(0.6, 1.3)
    balance = torch.empty(len(image), 3, 1, 1).uniform_(0.93, 1.07)
    noise = torch.empty(len(image), 1, 1, 1).uniform_(0, 0.015) * torch.randn_like(image)
    return (image * exposure * balance + noise).clamp(0, 1), label


def normalize(image: Tensor) -> Tensor:
    """Images of 0..1 as the network takes them."""
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


if __name__ == "__main__":
    main()
