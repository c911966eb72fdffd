from typing import Any

import pytest
import torch
from torch import nn

from blda_cli.segmenters.network import network_segmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import NetworkSection, PreprocessingSection, SegmenterSpec
from tests.waiting_device import WaitingDevice
from tests.without_float64 import DEVICE


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("views", [{}, {"scales": (0.5, 1.0), "flip": True}, {"slide": (32, 32), "stride": (16, 16)}])
@pytest.mark.parametrize("section", [{}, {"multiple_of": 32, "mean": (1.0, 2.0, 3.0), "std": (1.0, 2.0, 3.0)}])
def test_after_the_first_pass_a_network_is_launched_without_waiting(
    section: dict[str, Any], views: dict[str, Any], weight: float
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3, 2, 1)).eval()
    spec = SegmenterSpec(NetworkSection("python"), PreprocessingSection(**section))
    with WaitingDevice() as device:
        segmenter = network_segmenter(spec, network, DEVICE, {"kind": "python"})
        segmenter.mix_norms(weight)
        images = torch.randint(0, 255, (1, 40, 60, 3), dtype=torch.uint8).to(DEVICE)
        segmenter.logits(images, InferenceOptions(**views))  # whose meaning is looked at
        device.waits.clear()
        segmenter.logits(images, InferenceOptions(**views))
        assert not device.waits
