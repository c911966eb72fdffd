from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.export.networks import NETWORKS, Headed, randomised


@pytest.fixture
def networks() -> Callable[[str], nn.Module]:
    def make(name: str) -> nn.Module:
        torch.manual_seed(3)
        return randomised(NETWORKS[name]())

    return make


@pytest.fixture
def headed() -> Callable[..., nn.Module]:
    def make(head: nn.Module, after: Callable[[Tensor], Tensor] = lambda scores: scores) -> nn.Module:
        torch.manual_seed(3)
        return randomised(Headed(head, after))

    return make
