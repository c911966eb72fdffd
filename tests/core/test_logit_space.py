import pytest
import torch

from blda_cli.core.choices import LogitSpace
from blda_cli.core.logit_space import to_space

LOGITS = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0)) * 6


@pytest.mark.parametrize("space", LogitSpace)
def test_softmax_does_not_change(space: LogitSpace) -> None:
    torch.testing.assert_close(to_space(LOGITS, space).softmax(dim=1), LOGITS.softmax(dim=1))


@pytest.mark.parametrize("space", [LogitSpace.CENTRED, LogitSpace.LOG_SOFTMAX])
def test_a_constant_per_pixel_is_taken_out(space: LogitSpace) -> None:
    constant = torch.linspace(-20, 20, 24).view(2, 1, 4, 3)
    torch.testing.assert_close(to_space(LOGITS + constant, space), to_space(LOGITS, space), rtol=0, atol=1e-5)


def test_what_is_fixed() -> None:
    assert to_space(LOGITS, LogitSpace.RAW) is LOGITS
    assert to_space(LOGITS, LogitSpace.CENTRED).mean(dim=1).abs().max() < 1e-5
    assert (to_space(LOGITS, LogitSpace.LOG_SOFTMAX).exp().sum(dim=1) - 1).abs().max() < 1e-5
