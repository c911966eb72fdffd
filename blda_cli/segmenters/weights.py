"""Loading weights into a network without running code from the file."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blda_cli.errors import BldaError, require_extra
from blda_cli.segmenters.reasons import reason

_DEEPEST = 6
"""How deep a file's networks may be nested."""


def load_weights(network: nn.Module, path: Path, key: str | None = None) -> None:
    """Load a weights file into a network.

    The weights may lie under a key (``state_dict``, ``model``, ...) or have a prefix (``module.``, ``model.``, ...) in
    front of their names: the network in the file that fits is taken.

    Args:
        network: takes the weights.
        path: a safetensors file, or one of ``torch.save``, read with ``weights_only`` to the CPU.
        key: key or prefix, dots between several, of the network that is meant where the file holds more than one.

    Raises:
        BldaError: the file cannot be read, holds no weights, several networks that fit, or none; missing and
            unexpected keys and those of another shape are named.
    """
    expected = network.state_dict()
    networks = _networks_of(_read(path), path)
    name = _chosen(networks, expected, path) if key is None else key
    if name not in networks:
        raise BldaError(f"{path}: weights_key = {name[:60]!r} is none of its keys or prefixes: {_names(networks)}")
    state = dict(networks[name])
    for entry in expected.keys() & state.keys():
        _check_values(state[entry], f"{path}: {entry}")
    shapes = [
        f"{entry} ({list(tensor.shape)} in the file, {list(expected[entry].shape)} in the network)"
        for entry, tensor in state.items()
        if entry in expected and tensor.shape != expected[entry].shape
    ]
    if shapes:
        raise BldaError(f"{path} does not fit the network: {_listing('of another shape', shapes)}")
    missing, unexpected = network.load_state_dict(state, strict=False)
    if missing or unexpected:
        parts = [_listing("missing", missing), _listing("unexpected", unexpected)]
        if len(networks) > 1 and _fit(state, expected) < _SOME:
            parts.append(f"it holds {_names(networks)}: weights_key under [segmenter] says which is meant")
        raise BldaError(f"{path} does not fit the network: {'; '.join(part for part in parts if part)}")


State = Mapping[str, Tensor]

_WHOLE = "."
"""The ``weights_key`` of weights at the top level of a file."""


def _networks_of(loaded: Any, path: Path) -> dict[str, State]:
    """All candidates for a network's weights in a file, by ``weights_key``.

    Raises:
        BldaError: there are none.
    """
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(name, str) for name in loaded):
        raise BldaError(f"{path}: holds {type(loaded).__name__}, not a network's weights by name (a state dict)")
    networks = {".".join(place) or _WHOLE: state for place, state in _networks(loaded, ())}
    if not networks:
        raise BldaError(f"{path}: no weights under any of its keys {', '.join(list(loaded)[:8])}")
    return networks


def _chosen(networks: Mapping[str, State], expected: State, path: Path) -> str:
    """The one of several networks that fits, or fits best.

    Raises:
        BldaError: several fit, and differ.
    """
    fitting = {name: state for name, state in networks.items() if _fit(state, expected) == 1}
    if fitting:
        first, *others = fitting.values()
        if not all(_equal(first, state, expected) for state in others):
            raise BldaError(
                f"{path} holds several networks that fit: {_names(fitting)}; say which under [segmenter], e.g. "
                f"weights_key = {min(fitting, key=len)!r}, or by --weights-key"
            )
        return next(iter(fitting))
    return max(networks, key=lambda name: _likeness(networks[name], expected))


_SOME = 0.1
"""A file that holds at least this share of a network's weights is assumed to be meant for it."""


def _networks(loaded: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], State]]:
    """The mappings in a file that hold tensors, and of each the parts that share a prefix."""
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
        yield from _prefixed(tensors, place)
    if len(place) < _DEEPEST:
        for name, value in loaded.items():
            if isinstance(value, Mapping) and all(isinstance(one, str) for one in value):
                yield from _networks(value, (*place, name))


def _prefixed(tensors: State, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], State]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, dot, rest = name.partition(".")
        if dot and rest:
            groups.setdefault(prefix, {})[rest] = tensor
    for prefix, group in groups.items():
        yield (*place, prefix), group
        if len(place) < _DEEPEST:
            yield from _prefixed(group, (*place, prefix))


def _fit(state: State, expected: State) -> float:
    """Share of the network's weights found by name and shape; buffers that older PyTorch lacked do not count."""
    wanted = {name: one for name, one in expected.items() if not name.endswith("num_batches_tracked")}
    there = sum(name in state and state[name].shape == one.shape for name, one in wanted.items())
    return there / max(1, len(wanted))


def _likeness(state: State, expected: State) -> float:
    """Similarity of weights that do not fit to the network's: by names and shapes, else by most of the names."""
    named = len(state.keys() & expected.keys()) / max(1, len(expected))
    return max(_fit(state, expected), named if named > 1 / 2 else 0)


def _equal(one: State, other: State, expected: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in expected if name in one and name in other)


def _names(networks: Mapping[str, State]) -> str:
    """The shortest of the names, for a message."""
    shown = sorted(networks, key=lambda name: (name.strip(".").count("."), len(name)))[:8]
    return ", ".join(shown) + (f" and {len(networks) - 8} more" if len(networks) > 8 else "")


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


def _listing(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return f"{what}: {', '.join(keys[:4])}{more}"
