from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blda_cli.errors import BldaError
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.network import NetworkSegmenter
from blda_cli.segmenters.spec import parse_model

Reference = Callable[[nn.Module, Tensor], Tensor]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated:UserWarning")


def load(path: Path) -> NetworkSegmenter:
    segmenter = load_segmenter(parse_model(str(path)), torch.device("cpu"))
    assert isinstance(segmenter, NetworkSegmenter)
    return segmenter


@pytest.mark.parametrize("scripted", [True, False])
def test_logits_are_the_networks_own(
    tmp_path: Path, tiny_net: nn.Module, pixels: Tensor, reference: Reference, scripted: bool
) -> None:
    program = torch.jit.script(tiny_net) if scripted else torch.jit.trace(tiny_net, torch.randn(1, 3, 32, 32))
    torch.jit.save(program, tmp_path / "net.ts")
    segmenter = load(tmp_path / "net.ts")
    torch.testing.assert_close(segmenter.logits(pixels), reference(tiny_net, pixels))
    with pytest.raises(BldaError, match="kind torchscript cannot be trained"):
        _ = segmenter.module


def test_a_traced_size_says_what_to_set(tmp_path: Path, tiny_net: nn.Module, pixels: Tensor) -> None:
    class OneSize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny_net

        def forward(self, images: Tensor) -> Tensor:
            out: Tensor = self.body(images) + torch.ones(8, 12)
            return out

    torch.jit.save(torch.jit.trace(OneSize(), torch.randn(1, 3, 32, 48)), tmp_path / "net.ts")
    (tmp_path / "net.toml").write_text(
        '[segmenter]\nkind = "torchscript"\npath = "net.ts"\n[classes]\nnames = ["a", "b", "c", "d", "e"]\n'
    )
    with pytest.raises(BldaError, match=r"RuntimeError: The size of tensor a.*give it as size under") as caught:
        load(tmp_path / "net.toml").logits(pixels)
    assert "\n" not in str(caught.value)
    with (tmp_path / "net.toml").open("a") as file:
        file.write("[preprocessing]\nsize = [32, 48]\n")
    assert load(tmp_path / "net.toml").logits(pixels).shape == (2, 5, 50, 70)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BldaError, match="no such file"):
        load(tmp_path / "none.ts")
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.ts")
    with pytest.raises(BldaError, match=r"not a file of torch\.jit\.save"):
        load(tmp_path / "w.ts")
