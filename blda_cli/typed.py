"""Validate untrusted JSON against type hints."""

import math
import types
import typing
from collections.abc import Mapping
from typing import Any


def check_type(value: Any, hint: Any, where: str) -> None:
    """Raise unless a value is of a type.

    Args:
        value: from JSON, or of a checkpoint.
        hint: ``Any``, ``bool``, ``int``, ``float`` (a whole number will do; finite), ``str``, None, unions of these,
            ``list``, ``tuple[X, ...]`` and mappings from text of them.
        where: name of the value in messages.

    Raises:
        ValueError: it is not; the message begins with ``where``, and the key or place within it.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in parts:
            return
        (hint,) = (part for part in parts if part is not types.NoneType)
        check_type(value, hint, where)
    elif origin in (list, tuple):
        _refuse_unless(isinstance(value, list | tuple), where, "a list", value)
        for place, item in enumerate(value):
            check_type(item, parts[0], f"{where}[{place}]")
    elif origin in (dict, Mapping):
        _refuse_unless(isinstance(value, Mapping), where, "a table", value)
        for key, item in value.items():
            _refuse_unless(isinstance(key, str), where, "a table of names", key)
            check_type(item, parts[1], f"{where}.{key[:60]}")
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _refuse_unless(number and abs(value) <= _LARGEST and math.isfinite(value), where, "a finite number", value)
    elif hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
        _refuse_unless(whole, where, "a whole number of 64 bits", value)
    else:
        _refuse_unless(isinstance(value, hint), where, {str: "text", bool: "true or false"}[hint], value)


_LARGEST = 2**63 - 1


def _refuse_unless(fits: bool, where: str, what: str, value: Any) -> None:
    if not fits:
        shown = repr(value)[:60] if not isinstance(value, int) or abs(value) <= _LARGEST else "a huge number"
        raise ValueError(f"{where} is {shown}, not {what}")
