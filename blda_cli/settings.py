"""Settings: frozen dataclasses whose fields declare their type, help and range.

The type hint of a field is its type; :func:`setting` adds help and range. The options of all commands, the keyword
arguments of the Python interface, the model's TOML file and a run's ``config.toml`` are validated by them.
"""

import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

UNIONS = (types.UnionType, typing.Union)
"""Origins of ``X | Y``; which one it is depends on X and Y."""

_DEEPEST = 32
"""How deep lists and tables may be nested in a field of type ``Any``."""


@dataclass(frozen=True)
class Setting:
    """Declaration of a field's values.

    Attributes:
        name: of the field.
        hint: its type: text, numbers, true and false, paths, ``Literal``, ``StrEnum``, tuples and mappings of these,
            ``Any`` (whatever JSON can hold), and unions.
        default: ``dataclasses.MISSING`` where it has to be given.
        help: a sentence.
        low, high: the range of its numbers, those of a tuple too.
        above: the range does not hold ``low`` itself.
        form: what to call a value of this form, where its type says too little.
        choices: the texts it can be, where its type does not say so.
        metavar: stands for the value in ``--help``.
        path: its text is most often a path, and so completed as one.
    """

    name: str
    hint: Any
    default: Any
    help: str
    low: float
    high: float
    above: bool
    form: str | None
    choices: Iterable[str]
    metavar: str | None
    path: bool

    def fit(self, value: Any) -> Any:
        """A value from TOML or the command line as the field's type.

        Raises:
            ValueError: it does not fit; the message is ``VALUE should be ...``.
        """
        # Empty text and empty lists are good only where the default is empty.
        if self.default in ("", ()) and value in ("", [], ()):
            return self.default
        return self._fit(value, self.hint)

    def fit_item(self, value: Any) -> Any:
        """The same for one value of a mapping."""
        return self._fit(value, typing.get_args(self.hint)[1])

    def _fit(self, value: Any, hint: Any) -> Any:
        try:
            return self._converted(value, hint)
        except _UnfitError as error:
            raise ValueError(f"{shown(value)} should be {self.words(hint)}") from error

    def _converted(self, value: Any, hint: Any) -> Any:
        origin, parts = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return _any(value)
        if origin in UNIONS:
            for part in parts:
                try:
                    return self._converted(value, part)
                except _UnfitError:
                    continue
            raise _UnfitError
        if hint is types.NoneType:
            return _accepted(value, value is None)
        if options := self.options(hint):
            _accepted(value, isinstance(value, str) and value in options)
            return hint(value) if isinstance(hint, type) else value
        if hint is bool:
            return _accepted(value, isinstance(value, bool))
        if hint in (int, float):
            return self._number(value, hint)
        if hint in (str, Path):
            value = os.fspath(value) if isinstance(value, Path) else value
            return hint(_accepted(value, isinstance(value, str) and value != "" and "\0" not in value))
        if origin is tuple:
            _accepted(value, isinstance(value, list | tuple))
            if parts[-1] is not Ellipsis:
                _accepted(value, len(value) == len(parts))
                return tuple(self._converted(item, part) for item, part in zip(value, parts, strict=True))
            items = tuple(self._converted(item, parts[0]) for item in value)
            return _accepted(items, len(items) > 0 and (parts[0] is not str or len(set(items)) == len(items)))
        raise TypeError(f"{self.name}: settings cannot be of type {hint}")

    def _number(self, value: Any, hint: type) -> Any:
        _accepted(value, isinstance(value, int | hint) and not isinstance(value, bool))
        try:
            number = hint(value)
        except OverflowError as error:
            raise _UnfitError from error
        held = _is_64_bit(number) and self.low <= number <= self.high
        return _accepted(number, held and not (self.above and number == self.low))

    @property
    def kind(self) -> Any:
        """Its type, without None."""
        if typing.get_origin(self.hint) not in UNIONS:
            return self.hint
        left = tuple(part for part in typing.get_args(self.hint) if part is not types.NoneType)
        return left[0] if len(left) == 1 else left

    def options(self, hint: Any = None) -> tuple[str, ...]:
        """Its choices; empty if any value of its type is accepted."""
        hint = self.hint if hint is None else hint
        if typing.get_origin(hint) is Literal:
            return typing.get_args(hint)
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            return tuple(str(one) for one in hint)
        return tuple(self.choices)

    def words(self, hint: Any = None) -> str:
        """The expected values, for messages."""
        hint = self.hint if hint is None else hint
        origin, parts = typing.get_origin(hint), typing.get_args(hint)
        if origin in UNIONS:
            parts = tuple(part for part in parts if part is not types.NoneType)
            return self.form if self.form and len(parts) > 1 else " or ".join(map(self.words, parts))
        if options := self.options(hint):
            return f"one of {', '.join(options)}"
        if origin is tuple:
            form = self.form or ("a list" if parts[-1] is Ellipsis else f"a list of {len(parts)}")
            number = _innermost(hint)
            return f"{form}, each {self.words(number)}" if number in (int, float) else form
        if hint in (int, float):
            return ("a whole number" if hint is int else "a number") + self._range_words()
        return _WORDS[hint]

    def _range_words(self) -> str:
        if self.high < math.inf:
            return f" from {self.low} to {self.high}"
        if self.low > -math.inf:
            return f" above {self.low}" if self.above else f" of at least {self.low}"
        return ""


def setting(
    default: Any,
    help: str,
    *,
    at_least: float = -math.inf,
    above: float | None = None,
    at_most: float = math.inf,
    form: str | None = None,
    choices: Iterable[str] = (),
    metavar: str | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: ``dataclasses.MISSING`` where it has to be given.
        help: a sentence.
        at_least: smallest number.
        above: in place of ``at_least``, a bound that is itself no value.
        at_most: largest number.
        form: what to call a value of this form, where its type says too little.
        choices: the texts it can be, where its type does not say so.
        metavar: stands for the value in ``--help``.
        path: its text is most often a path, and so completed as one.
    """
    metadata = {
        "help": help,
        "low": at_least if above is None else above,
        "high": at_most,
        "above": above is not None,
        "form": form,
        "choices": choices,
        "metavar": metavar,
        "path": path,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(cls: type) -> dict[str, Setting]:
    """The fields of a dataclass that are settings, by name."""
    hints = typing.get_type_hints(cls)
    return {
        one.name: Setting(
            one.name,
            hints[one.name],
            one.default if one.default_factory is MISSING else one.default_factory(),
            **one.metadata,
        )
        for one in dataclasses.fields(cls)
        if one.metadata
    }


def sections_of(cls: type) -> dict[str, type]:
    """The fields of a dataclass that are sections, i.e. dataclasses of settings, by name."""
    hints = typing.get_type_hints(cls)
    return {one.name: hints[one.name] for one in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[one.name])}


def fitted(cls: type[T], values: Mapping[str, Any], base: T | None = None) -> T:
    """Make a dataclass of settings from some of their values.

    Args:
        cls: the dataclass.
        values: by field, as TOML, JSON, Python or the command line hold them.
        base: holds the other values; None: the defaults.

    Raises:
        ValueError: there is no such field, a value does not fit, or one is missing.
    """
    settings = settings_of(cls)
    for name in values:
        if name not in settings:
            nearest = difflib.get_close_matches(name[:100], settings, n=1, cutoff=0.0)[0]
            raise ValueError(f"there is no setting {name[:60]!r}; the nearest one is {nearest}")
    if base is not None:
        return dataclasses.replace(base, **_fitted_values(settings, values))  # type: ignore[type-var]  # a dataclass
    missing = next((one for one in settings.values() if one.default is MISSING and one.name not in values), None)
    if missing is not None:
        raise ValueError(f"{missing.name} is missing; it should be {missing.words()}")
    return cls(**_fitted_values(settings, values))


def _fitted_values(settings: Mapping[str, Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        try:
            found[name] = settings[name].fit(value)
        except ValueError as error:
            raise ValueError(f"{name} = {error}") from error
    return found


class _UnfitError(Exception):
    """A value does not fit; :meth:`Setting.fit` adds the expected values."""


_WORDS: dict[Any, str] = {
    str: "text",
    Path: "a path",
    bool: "true or false",
    Any: "text, a finite number of 64 bits, true, false, or lists and tables of these, at most 32 deep",
}


def _accepted(value: Any, fits: bool) -> Any:
    if not fits:
        raise _UnfitError
    return value


def _any(value: Any, depth: int = 0) -> Any:
    """Validate a value that JSON can hold."""
    if isinstance(value, dict | list) and depth < _DEEPEST:
        if isinstance(value, list):
            return [_any(item, depth + 1) for item in value]
        return {_any(key): _any(item, depth + 1) for key, item in value.items()}
    if isinstance(value, str):
        return _accepted(value, "\0" not in value)
    return _accepted(value, isinstance(value, int | float) and _is_64_bit(value))


def _is_64_bit(number: float) -> bool:
    """Whether a number is what TOML calls one, and finite."""
    return -(2**63) <= number < 2**63 if isinstance(number, int) else math.isfinite(number)


def _innermost(hint: Any) -> Any:
    while typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    return hint


def shown(value: Any) -> str:
    """A value in a message."""
    # How deep Python itself follows a value before it gives up differs between its versions.
    if _is_deeper(value, _DEEPEST):
        return "a value nested too deep to show"
    try:
        return short(json.dumps(value, ensure_ascii=False, default=str))
    except ValueError:  # a number of thousands of digits
        return "a value too long to show"


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and tables are nested more than so many times."""
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in items)


def short(text: str) -> str:
    """Shorten a text to 80 characters without line breaks."""
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
