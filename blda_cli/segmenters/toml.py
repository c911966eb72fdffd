"""TOML values: read one key at a time with a check of each, and written.

The functions that check a value return it converted, or raise ``ValueError`` saying what it should be.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from blda_cli.data.classes import Color
from blda_cli.errors import BldaError

T = TypeVar("T")


class Table:
    """A TOML table read key by key; whatever has not been asked for when it is closed is unknown."""

    def __init__(self, values: dict[str, Any], name: str, file: Path) -> None:
        self.values, self.name, self.file = dict(values), name, file
        self.known: list[str] = []

    def take(self, key: str, convert: Callable[[Any], T], default: Any = None) -> Any:
        """The value of ``key`` converted; ``convert`` raises ``ValueError`` saying what the value should be."""
        self.known.append(key)
        if key not in self.values:
            return default
        value = self.values.pop(key)
        try:
            return convert(value)
        except ValueError as error:
            raise BldaError(
                f"{self.file}: {self._path(key)} = {json.dumps(value, default=str)} should be {error}"
            ) from error

    def table(self, key: str) -> "Table":
        """The table of that name within this one; empty where there is none."""
        return Table(self.take(key, mapping, {}), self._path(key), self.file)

    def close(self) -> None:
        """Refuse what is left over."""
        for key in self.values:
            nearest = difflib.get_close_matches(key, self.known, n=1, cutoff=0.0)[0]
            raise BldaError(
                f"{self.file}: unknown key {self._path(key)}; the nearest known one is {self._path(nearest)}"
            )

    def _path(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


def text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("text")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """A table."""
    if not isinstance(value, dict):
        raise ValueError("a table")
    return value


def one_of(*choices: str) -> Callable[[Any], str]:
    """What converts to one of some words."""

    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(value)

    return convert


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def positive_number(value: Any) -> float:
    """A finite number above 0."""
    if not _is_number(value) or value <= 0:
        raise ValueError("a positive number")
    return float(value)


def positive_integer(value: Any) -> int:
    """A whole number above 0."""
    if not _is_number(value) or not isinstance(value, int) or value <= 0:
        raise ValueError("a positive whole number")
    return value


def three_numbers(value: Any) -> tuple[float, ...]:
    """One finite number per colour channel."""
    if not isinstance(value, list) or len(value) != 3 or not all(_is_number(item) for item in value):
        raise ValueError("three numbers, one per colour channel")
    return tuple(float(item) for item in value)


def three_positive_numbers(value: Any) -> tuple[float, ...]:
    """One number above 0 per colour channel."""
    numbers = three_numbers(value)
    if min(numbers) <= 0:
        raise ValueError("three positive numbers")
    return numbers


def size(value: Any) -> tuple[int, int]:
    """(height, width) in pixels."""
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("[height, width]")
    return positive_integer(value[0]), positive_integer(value[1])


def names(value: Any) -> tuple[str, ...]:
    """Class names, each given once."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise ValueError("a list of class names")
    if len(set(value)) < len(value):
        raise ValueError("a list of different class names")
    return tuple(value)


def preset_or_names(value: Any) -> str | tuple[str, ...]:
    """The name of a preset, or class names."""
    return value if isinstance(value, str) else names(value)


def palette(value: Any) -> tuple[Color, ...]:
    """RGB colours in 0..255."""
    if not isinstance(value, list) or not all(isinstance(color, list) and len(color) == 3 for color in value):
        raise ValueError("a list of [red, green, blue]")
    if not all(isinstance(part, int) and 0 <= part <= 255 for color in value for part in color):
        raise ValueError("colours in 0..255")
    return tuple((red, green, blue) for red, green, blue in value)


def write_key(key: str) -> str:
    """A key, in quotes where it needs them."""
    bare = bool(key) and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if bare else json.dumps(key, ensure_ascii=False)


def write_value(value: Any) -> str:
    """A value in TOML; its strings, numbers and booleans are written as JSON's."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{write_key(key)} = {write_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ", ".join(write_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
