import tomllib
from pathlib import Path

import espnet
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
TOML = tomllib.loads((ROOT / "examples/espnet/espnet.toml").read_text())


@pytest.fixture(scope="module")
def network(shared_data: Path) -> torch.nn.Module:
    net = espnet.espnet(**TOML["segmenter"]["arguments"])
    weights = torch.load(shared_data / "weights/espnet_cityscapes_p2_q8.pth", weights_only=True, map_location="cpu")
    net.load_state_dict(weights, strict=True)
    return net.eval()


def test_output_equals_the_published_network(network: torch.nn.Module, shared_data: Path) -> None:
    expected = np.load(shared_data / "parity/espnet_forward.npz")
    with torch.inference_mode():
        logits = network(torch.from_numpy(expected["network_input"]))
    np.testing.assert_allclose(logits.numpy(), expected["logits"], atol=1e-4, rtol=0)


def test_preprocessing_in_the_toml_gives_the_published_input(shared_data: Path) -> None:
    expected = np.load(shared_data / "parity/espnet_forward.npz")
    preprocessing = TOML["preprocessing"]
    assert preprocessing["color"] == "bgr"
    bgr = expected["crop_rgb"][..., ::-1].astype(np.float32)
    mean, std = (np.asarray(preprocessing[key], np.float32) for key in ("mean", "std"))
    network_input = ((bgr - mean) / std / preprocessing["scale"]).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(network_input, expected["network_input"], atol=1e-7, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (45, 60), (33, 31)])
def test_any_size_comes_back_at_its_own_size(height: int, width: int) -> None:
    net = espnet.espnet(p=1, q=1).eval()
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, height, width)).shape == (1, 20, height, width)


def test_smaller_networks_have_fewer_blocks() -> None:
    blocks = [name for name, _ in espnet.espnet(p=2, q=3).named_modules() if name.startswith("encoder.level3.")]
    assert {name.split(".")[2] for name in blocks} == {"0", "1", "2"}
