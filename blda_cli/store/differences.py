"""Comparison of records: name the first entry in which two of them differ."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from blda_cli.errors import BldaError

T = TypeVar("T")


def difference_of(one: Any, other: Any, name: str = "") -> str | None:
    """Name the first entry in which two JSON values differ, e.g. ``preprocessing.mean (1 and 2)``.

    Returns:
        None where they are equal.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            found = difference_of(one.get(key), other.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
        return None
    if _are_names(one) and _are_names(other) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):  # of 150 names the one that differs
            found = difference_of(*pair, f"{name}[{place}]")
            if found:
                return found
        return None
    return None if one == other else f"{name} ({_short(one)} and {_short(other)})"


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def of_one_kind(parts: Iterable[tuple[Path, T]], difference: Callable[[T, T], str | None]) -> Iterator[tuple[Path, T]]:
    """Yield parts for merging; raise at the first that differs from the others.

    Args:
        parts: at least one, each with the name to call it in messages.
        difference: names the difference of two parts; None where there is none.

    Yields:
        The parts.

    Raises:
        BldaError: one differs from the others; the message begins with it.
    """
    remaining = iter(parts)
    first_path, first = next(remaining)
    yield first_path, first
    for place, (path, part) in enumerate(remaining):
        found = difference(first, part)
        if found is None:
            yield path, part
            continue
        third = next(remaining, None) if place == 0 else None
        odd, other = path, first_path
        if third is not None and difference(part, third[1]) is None:
            odd, other = other, odd
        raise BldaError(f"{odd} does not go with {other}: they differ in {found}")
