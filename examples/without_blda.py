"""Run what `blda export --format pt2 --argmax` wrote, without blda: the quickstart's last step.

python examples/without_blda.py exported/network.pt2 frame.png classes.png
"""

import sys

import numpy as np
import torch
from PIL import Image

program, frame, output = sys.argv[1:]
MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)

network = torch.export.load(program).module()
image = torch.from_numpy(np.array(Image.open(frame))).permute(2, 0, 1)[None] / 255
classes = network((image - MEAN) / STD)

Image.fromarray(classes[0].to(torch.uint8).numpy()).save(output)
