from dataclasses import replace
from typing import Any

import torch
from torch import nn

from blda_cli.data.images import find_images, read_image
from blda_cli.finetuning.target_norms import take_target_statistics


def test_batch_norms_take_the_mean_of_the_target(project: Any) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    segmenter = replace(project.segmenter(), network=network)
    files = find_images(project.folder / "dusk" / "images")
    take_target_statistics(segmenter, files, workers=2)
    pixels = torch.stack([torch.from_numpy(read_image(file.path).copy()) for file in files]).float() / 255
    assert isinstance(network[0], nn.BatchNorm2d)
    assert network[0].running_mean is not None
    # Of five images the last is a batch of its own, and counts twice.
    weights = torch.tensor([1.0, 1, 1, 1, 2]).view(-1, 1, 1, 1)
    expected = (weights * pixels).sum(dim=(0, 1, 2)) / (6 * 40 * 56)
    torch.testing.assert_close(network[0].running_mean, expected, atol=1e-4, rtol=0)
    assert not any(module.training for module in network.modules())
    assert not network[0]._forward_pre_hooks


def test_a_norm_that_sees_one_value_is_left_out_of_it(project: Any) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
            self.head = nn.Conv2d(3, 4, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images + self.pool(images))  # type: ignore[no-any-return]

    network = Pooled()
    files = find_images(project.folder / "dusk" / "images")[:1]
    take_target_statistics(replace(project.segmenter(), network=network), files, workers=1)
    assert network.state_dict()["pool.1.running_mean"].tolist() == [0.0, 0.0, 0.0]


def test_a_network_without_batch_norms_is_left_as_it_is(project: Any) -> None:
    segmenter = project.segmenter()
    before = {name: value.clone() for name, value in segmenter.module.state_dict().items()}
    take_target_statistics(segmenter, find_images(project.folder / "dusk" / "images"), workers=1)
    assert all(torch.equal(value, before[name]) for name, value in segmenter.module.state_dict().items())
