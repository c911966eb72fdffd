"""Settings read from and written to TOML files."""

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from blda_cli.errors import BldaError
from blda_cli.settings import Setting, sections_of, settings_of, short, shown

T = TypeVar("T")


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
        raise BldaError(f"{file}: not TOML: {short(str(error))}") from error
    except ValueError as error:  # of int()
        raise BldaError(f"{file}: not TOML: a number has too many digits") from error
    except RecursionError as error:
        raise BldaError(f"{file}: nested too deep") from error


def read(cls: type[T], table: Mapping[str, Any], origin: object, base: T | None = None, path: str = "") -> T:
    """Make a dataclass of settings and sections from a TOML table.

    Args:
        cls: the dataclass.
        table: the given values.
        origin: where they come from, for messages.
        base: holds the values that are not given; None: the defaults.
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
            raise BldaError(f"{where} = {shown(value)} should be a table")
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
    """Settings as TOML; None and empty tables are left out.

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
        raise BldaError(f"{where} = {shown(value)} should be a table")
    items = {}
    for key, item in value.items():
        if not key or "\0" in key:
            raise BldaError(f"{where}: the key {shown(key)} should be text")
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


def _path(path: str, key: str) -> str:
    bare = all(c.isascii() and (c.isalnum() or c in "_-") for c in key) and 0 < len(key) <= 60
    text = key if bare else shown(key)
    return f"{path}.{text}" if path else text
