"""Settings: frozen dataclasses that say once what a field is, read from and written to TOML.

The type hint of a field says what it takes, :func:`setting` gives its help and its range. The model's TOML file, a
run's ``config.toml``, and the options of ``blda finetune`` are all checked by them.
"""

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from blda_cli.errors import BldaError

T = TypeVar("T")

_DEEPEST = 32
"""How deep lists and tables may be nested where anything may stand."""


@dataclass(frozen=True)
class Setting:
    """What a field takes.

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
            raise ValueError(f"{_shown(value)} should be {self.words(hint)}") from error

    def _converted(self, value: Any, hint: Any) -> Any:
        origin, parts = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return _any(value)
        if origin is types.UnionType:
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

    def options(self, hint: Any = None) -> tuple[str, ...]:
        """The texts it can be; empty where it is none of a few."""
        hint = self.hint if hint is None else hint
        if typing.get_origin(hint) is Literal:
            return typing.get_args(hint)
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            return tuple(str(one) for one in hint)
        return tuple(self.choices)

    def words(self, hint: Any = None) -> str:
        """What a value should be, for messages."""
        hint = self.hint if hint is None else hint
        origin, parts = typing.get_origin(hint), typing.get_args(hint)
        if origin is types.UnionType:
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
    """
    metadata = {
        "help": help,
        "low": at_least if above is None else above,
        "high": at_most,
        "above": above is not None,
        "form": form,
        "choices": choices,
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


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        BldaError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise BldaError(f"{file}: no such file") from error
    except OSError as error:
        raise BldaError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BldaError(f"{file}: not TOML: {_short(str(error))}") from error
    except ValueError as error:  # of int()
        raise BldaError(f"{file}: not TOML: a number has too many digits") from error
    except RecursionError as error:
        raise BldaError(f"{file}: nested too deep") from error


def read(cls: type[T], table: Mapping[str, Any], origin: object, base: T | None = None, path: str = "") -> T:
    """Make a dataclass of settings and sections from a TOML table.

    Args:
        cls: the dataclass.
        table: what is given.
        origin: where that comes from, for messages.
        base: holds the values of what is not given; None: the defaults.
        path: of the table within its file, for messages.

    Raises:
        BldaError: a key is unknown, a value does not fit, or one is missing.
    """
    settings, sections = settings_of(cls), sections_of(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{origin}: {_path(path, key)}"
        if key in settings:
            values[key] = _read_setting(settings[key], value, where)
        elif key not in sections:
            known = [*settings, *sections]
            nearest = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.0)[0]
            raise BldaError(
                f"{origin}: unknown key {_path(path, key)}; the nearest known one is {_path(path, nearest)}"
            )
        elif not isinstance(value, Mapping):
            raise BldaError(f"{where} = {_shown(value)} should be a table")
    for name, section in sections.items():
        own = None if base is None else getattr(base, name)
        values[name] = read(section, table.get(name, {}), origin, own, _path(path, name))
    if base is not None:
        return dataclasses.replace(base, **values)  # type: ignore[type-var]  # a dataclass, as its class is
    for name, one in settings.items():
        if one.default is MISSING and name not in values:
            raise BldaError(f"{origin}: {_path(path, name)} is missing; it should be {one.words()}")
    return cls(**values)


def write(settings: Any) -> str:
    """Settings as TOML; what is None or an empty table is left out.

    Args:
        settings: a dataclass of settings and sections; other fields are no part of it.
    """
    return tomli_w.dumps(_table(settings))


def _read_setting(one: Setting, value: Any, where: str) -> Any:
    if typing.get_origin(one.hint) is not Mapping:
        try:
            return one.fit(value)
        except ValueError as error:
            raise BldaError(f"{where} = {error}") from error
    if not isinstance(value, Mapping):
        raise BldaError(f"{where} = {_shown(value)} should be a table")
    items = {}
    for key, item in value.items():
        if not key or "\0" in key:
            raise BldaError(f"{where}: the key {_shown(key)} should be text")
        try:
            items[key] = one.fit_item(item)
        except ValueError as error:
            raise BldaError(f"{_path(where, key)} = {error}") from error
    return items


def _table(settings: Any) -> dict[str, Any]:
    cls = type(settings)
    table = {name: _plain(getattr(settings, name)) for name in settings_of(cls)}
    table |= {name: _table(getattr(settings, name)) for name in sections_of(cls)}
    return {name: value for name, value in table.items() if value is not None and value != {}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    return str(value) if isinstance(value, str) else value


class _UnfitError(Exception):
    """A value does not fit; what it should be is said by whoever knows the whole setting."""


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
    """Whatever JSON can hold, and compares equal to itself when it is read back."""
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


def _path(path: str, key: str) -> str:
    bare = all(c.isascii() and (c.isalnum() or c in "_-") for c in key) and 0 < len(key) <= 60
    shown = key if bare else _shown(key)
    return f"{path}.{shown}" if path else shown


def _shown(value: Any) -> str:
    """A value in a message."""
    # How deep Python itself follows a value before it gives up differs between its versions.
    if _is_deeper(value, _DEEPEST):
        return "a value nested too deep to show"
    try:
        return _short(json.dumps(value, ensure_ascii=False, default=str))
    except ValueError:  # a number of thousands of digits
        return "a value too long to show"


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and tables are nested more than so many times."""
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(item, depth - 1) for item in items)


def _short(text: str) -> str:
    """At most some 80 characters, none of which breaks the line."""
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
