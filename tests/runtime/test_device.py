import pytest
import torch

from blda_cli.errors import BldaError
from blda_cli.runtime.device import choose_device


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:999", "cuda:x", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(BldaError, match="no such device"):
        choose_device(name)


@pytest.mark.parametrize("setting", ["BLDA_KERNELS=tritn", "BLDA_GRAPHS=false"])
def test_unknown_settings_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(*setting.split("="))
    with pytest.raises(BldaError, match=setting):
        choose_device("cpu")
