"""Loading weights into a network without running code from the file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blda_cli.errors import BldaError, require_extra
from blda_cli.segmenters.reasons import reason

# Under these keys training programs put the weights beside the optimiser's state and the like; the first that is
# there counts.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "ema", "network", "net")


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a weights file into a network.

    Checkpoints that wrap the weights (``state_dict``, ``model``, ``ema``, ...) are unwrapped; a prefix that all keys
    share (``module.``, ``model.``, ...) is removed where the network has no such prefix.

    Args:
        network: takes the weights.
        path: a safetensors file, or one of ``torch.save``, read with ``weights_only`` to the CPU.

    Raises:
        BldaError: the file cannot be read, holds more than tensors, or does not fit; missing and unexpected keys and
            those of another shape are named.
    """
    expected = network.state_dict()
    state = _without_prefix(_unwrap(_read(path), path), expected.keys())
    for key in expected.keys() & state.keys():
        _check_values(state[key], f"{path}: {key}")
    shapes = [
        f"{key} ({list(tensor.shape)} in the file, {list(expected[key].shape)} in the network)"
        for key, tensor in state.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    if shapes:
        raise BldaError(f"{path} does not fit the network: {_listing('of another shape', shapes)}")
    missing, unexpected = network.load_state_dict(state, strict=False)
    if missing or unexpected:
        parts = [_listing("missing", missing), _listing("unexpected", unexpected)]
        raise BldaError(f"{path} does not fit the network: {'; '.join(part for part in parts if part)}")


def _check_values(tensor: Tensor, where: str) -> None:
    """Raise for tensors that cannot be copied into a network, or that are not finite."""
    plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not plain or tensor.is_complex():
        kind = "without values" if tensor.is_meta else "complex" if tensor.is_complex() else "sparse or quantised"
        raise BldaError(f"{where} is {kind}: save plain numbers, network.state_dict()")
    if not bool(torch.isfinite(tensor).all()):
        raise BldaError(f"{where} holds NaN or infinity: the training it is from broke down")


def state_digest(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers: names, types, shapes and values, whatever file they are from.

    Returns:
        ``"sha256:..."``, in hexadecimal.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def _read(path: Path) -> Any:
    if not path.is_file():
        raise BldaError(f"{path}: no such weights file")
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # its header's size, then JSON
    if is_safetensors or path.suffix == ".safetensors":
        safetensors = require_extra("safetensors.torch", "safetensors", "to read .safetensors files")
        try:
            return safetensors.load_file(path, device="cpu")
        except Exception as error:  # its own error class is not public everywhere
            raise BldaError(f"{path}: not a safetensors file: {reason(error)}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises anything on a damaged file
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise BldaError(
                f"{path} holds Python objects besides tensors, which could run code when read, and is refused: if you "
                "trust it, load it yourself and save network.state_dict() alone"
            ) from error
        raise BldaError(f"{path}: cannot be read as weights: {reason(error)}") from error


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping) and not any(isinstance(value, Tensor) for value in loaded.values()):
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(key, str) for key in loaded):
        raise BldaError(f"{path}: holds {type(loaded).__name__}, not a network's weights by name (a state dict)")
    tensors = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise BldaError(f"{path}: no weights under any of {', '.join(_WRAPPERS)}; it has {', '.join(list(loaded)[:8])}")
    return tensors


def _without_prefix(state: dict[str, Tensor], expected: Any) -> dict[str, Tensor]:
    """Take shared prefixes off for as long as that brings more keys the network knows; the best of all tries."""
    best, tried = state, state
    while tried:
        prefixes = {key.partition(".")[0] for key in tried}
        if len(prefixes) != 1 or not all("." in key for key in tried):
            break
        tried = {key.partition(".")[2]: value for key, value in tried.items()}
        if len(tried.keys() & expected) > len(best.keys() & expected):
            best = tried
    return best


def _listing(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return f"{what}: {', '.join(keys[:4])}{more}"
