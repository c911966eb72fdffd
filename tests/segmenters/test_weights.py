from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from blda_cli.errors import BldaError
from blda_cli.segmenters.weights import load_weights, state_digest


def fresh() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    lambda state: {"ema": prefixed(state, "module.")},
    lambda state: {"model_state": prefixed(state, "module.model.")},
    lambda state: {"model": {"state_dict": prefixed(state, "model.")}},
    lambda state: prefixed(state, "_orig_mod."),
])  # fmt: skip
def test_checkpoints_of_any_wrapping_load(tmp_path: Path, wrap: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    trained, network = fresh(), fresh()
    torch.save(wrap(dict(trained.state_dict())), tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth")
    assert state_digest(network) == state_digest(trained)


def test_safetensors_load(tmp_path: Path) -> None:
    trained, network = fresh(), fresh()
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    load_weights(network, tmp_path / "w.safetensors")
    assert state_digest(network) == state_digest(trained)


def test_batch_norms_from_before_they_counted_batches_load(tmp_path: Path) -> None:
    state = {key: value for key, value in fresh().state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "w.pth")
    load_weights(fresh(), tmp_path / "w.pth")


def test_a_prefix_the_network_has_stays(tmp_path: Path) -> None:
    network = nn.ModuleDict({"model": nn.Linear(2, 2)})
    torch.save(network.state_dict(), tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth")


def test_a_mismatch_names_the_keys(tmp_path: Path) -> None:
    state = dict(fresh().state_dict())
    state["1.extra"] = state.pop("0.bias")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BldaError, match=r"w\.pth does not fit the network: missing: 0\.bias; unexpected: 1\.extra"):
        load_weights(fresh(), tmp_path / "w.pth")


def test_another_shape_is_named(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(BldaError, match=r"0\.weight \(\[5, 3, 1, 1\] in the file, \[4, 3, 1, 1\] in the network\)"):
        load_weights(fresh(), tmp_path / "w.pth")


@pytest.mark.parametrize(("content", "message"), [
    (fresh(), "holds Python objects besides tensors"),
    ({"optimizer": {"lr": 0.1}}, "no weights under any of"),
    (torch.zeros(3), "not a network's weights by name"),
])  # fmt: skip
def test_what_holds_no_weights_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BldaError, match=message) as caught:
        load_weights(fresh(), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_and_missing_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BldaError, match=f"{name}: no such weights file"):
        load_weights(fresh(), tmp_path / name)
    (tmp_path / name).write_bytes(b"\x00\x01 nothing of use")
    with pytest.raises(BldaError, match=name):
        load_weights(fresh(), tmp_path / name)


def test_the_digest_is_of_names_and_values() -> None:
    network = fresh()
    before = state_digest(network)
    assert before == state_digest(network)
    with torch.no_grad():
        next(network.parameters())[0] += 1e-6
    assert state_digest(network) != before


def test_a_checkpoint_written_on_a_gpu_is_read(shared_data: Path) -> None:
    path = shared_data / "weights" / "espnet_cityscapes_p2_q8.pth"
    with pytest.raises(BldaError, match=r"missing: 0\.weight.*; unexpected: .* and \d+ more"):
        load_weights(fresh(), path)


def twice() -> tuple[dict[str, Any], dict[str, Any]]:
    torch.manual_seed(4)
    return dict(fresh().state_dict()), dict(fresh().state_dict())


@pytest.mark.parametrize("wrap", [
    lambda a, b: {"student": a, "teacher": b},
    lambda a, b: {"model": a, "ema_model": b, "epoch": 3},
    lambda a, b: {"state_dict": {**prefixed(a, "student."), **prefixed(b, "teacher.")}},
    lambda a, b: {**prefixed(a, "model."), **prefixed(b, "ema_model.module.")},
    lambda a, b: {**a, "ema": b},
])  # fmt: skip
def test_two_networks_in_a_file_are_asked_about(
    tmp_path: Path, wrap: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
) -> None:
    torch.save(wrap(*twice()), tmp_path / "w.pth")
    with pytest.raises(BldaError, match=r"several networks that fit: .*weights_key = '\S+'") as caught:
        load_weights(fresh(), tmp_path / "w.pth")
    named = str(caught.value).partition("that fit: ")[2].partition(";")[0].split(", ")
    assert len(named) == 2
    for key, state in zip(named, twice(), strict=True):
        network, expected = fresh(), fresh()
        load_weights(network, tmp_path / "w.pth", key)
        expected.load_state_dict(state)
        assert state_digest(network) == state_digest(expected)


def test_two_equal_networks_are_one(tmp_path: Path) -> None:
    state, _ = twice()
    torch.save({"model": state, "ema": {key: value.clone() for key, value in state.items()}}, tmp_path / "w.pth")
    network = fresh()
    load_weights(network, tmp_path / "w.pth")
    assert torch.equal(network.state_dict()["0.weight"], state["0.weight"])


def test_a_prefix_among_other_weights_is_found(tmp_path: Path) -> None:
    state, _ = twice()
    torch.save({**prefixed(state, "net.backbone."), "criterion.weight": torch.zeros(3)}, tmp_path / "w.pth")
    network = fresh()
    load_weights(network, tmp_path / "w.pth")
    assert torch.equal(network.state_dict()["0.weight"], state["0.weight"])


def test_a_key_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    first, second = twice()
    torch.save({"student": first, "teacher": second}, tmp_path / "w.pth")
    with pytest.raises(BldaError, match=r"weights_key = 'techer' is none of its keys or prefixes: student, teacher"):
        load_weights(fresh(), tmp_path / "w.pth", "techer")  # codespell:ignore
    network = nn.ModuleDict({"head": nn.Linear(2, 7)})
    with pytest.raises(BldaError, match=r"missing: head.*; unexpected.*; it holds student, teacher.*weights_key"):
        load_weights(network, tmp_path / "w.pth")
