"""The reader of settings: what every type takes, how what does not fit is named, and that what is written is read."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blda_cli.errors import BldaError
from blda_cli.settings import setting, settings_of
from blda_cli.settings_files import read, read_toml, write


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True)
class Inner:
    share: float = setting(0.5, "A share.", at_least=0, at_most=1)
    size: tuple[int, int] | None = setting(None, "A size.", at_least=1, form="[height, width]")
    names: str | tuple[str, ...] | None = setting(None, "Names.", form="a name or a list of different names")
    groups: Mapping[str, tuple[str, ...]] = setting({}, "Groups.", form="a list of different names")
    arguments: Mapping[str, Any] = setting({}, "Anything.")


@dataclass(frozen=True)
class Outer:
    kind: str = setting(MISSING, "A kind.", choices=("one", "two"))
    scale: float = setting(1.0, "A scale.", above=0)
    colour: Colour = setting(Colour.RED, "A colour.")
    order: Literal["rgb", "bgr"] = setting("rgb", "An order.")
    on: bool = setting(False, "On.")
    file: Path | None = setting(None, "A file.")
    label: str = setting("", "A label.")
    things: tuple[str, ...] = setting((), "Things.")
    inner: Inner = field(default_factory=Inner)
    folder: str = "no setting"


def load(folder: Path, text: str | bytes) -> Outer:
    file = folder / "some.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read(Outer, read_toml(file), file)


def test_every_type_is_read(tmp_path: Path) -> None:
    text = """
        kind = "two"
        scale = 3
        colour = "green"
        order = "bgr"
        on = true
        file = "a/b"
        things = ["x", "y"]
        [inner]
        share = 1
        size = [2, 3]
        names = ["a", "b"]
        groups.g = ["a"]
        arguments = {p = 2, deep = {x = [1.5, true, "t"]}}
    """
    inner = Inner(1.0, (2, 3), ("a", "b"), {"g": ("a",)}, {"p": 2, "deep": {"x": [1.5, True, "t"]}})
    outer = load(tmp_path, text)
    assert outer == Outer("two", 3.0, Colour.GREEN, "bgr", True, Path("a/b"), "", ("x", "y"), inner)
    assert type(outer.scale) is float
    assert load(tmp_path, write(outer)) == outer
    assert load(tmp_path, 'kind = "one"\nlabel = ""\nthings = []') == Outer("one")


def test_what_is_not_given_is_the_bases() -> None:
    base = Outer("two", scale=2.0, inner=Inner(share=0.25))
    assert read(Outer, {"inner": {"size": [1, 2]}}, "here", base) == Outer(
        "two", scale=2.0, inner=Inner(share=0.25, size=(1, 2))
    )


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
PLAIN = st.recursive(
    TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # folders are made
@given(
    share=st.floats(0, 1),
    names=st.none() | TEXT | st.lists(TEXT, min_size=1, unique=True).map(tuple),
    groups=st.dictionaries(TEXT, st.lists(TEXT, min_size=1, unique=True).map(tuple), max_size=3),
    arguments=st.dictionaries(TEXT, PLAIN, max_size=3),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, share: float, names: Any, groups: Any, arguments: Any
) -> None:
    outer = Outer("one", inner=Inner(share, None, names, groups, arguments))
    assert load(tmp_path_factory.mktemp("settings"), write(outer)) == outer


ONE = 'kind = "one"\n'
LONG = "9" * 5000
SPLIT = "\\u2028"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "kind is missing; it should be one of one, two"),
        ('kind = "three"', 'kind = "three" should be one of one, two'),
        (ONE + "colour = 1", "colour = 1 should be one of red, green"),
        (ONE + 'colur = "red"', "unknown key colur; the nearest known one is colour"),
        (ONE + "[iner]\nshare = 1", "unknown key iner; the nearest known one is inner"),
        (ONE + "inner.shares = 1", "unknown key inner.shares; the nearest known one is inner.share"),
        (ONE + 'folder = "x"', "unknown key folder"),
        (ONE + "inner = 1", "inner = 1 should be a table"),
        (ONE + "[[inner]]\nshare = 1", "should be a table"),
        (ONE + "scale = 0", "scale = 0 should be a number above 0"),
        (ONE + "scale = true", "scale = true should be a number"),
        (ONE + "scale = inf", "scale = Infinity should be a number above 0"),
        (ONE + "scale = nan", "scale = NaN should be a number above 0"),
        (ONE + f"scale = 1{'0' * 400}", "should be a number above 0"),
        (ONE + f"scale = {LONG}", "not TOML: a number has too many digits"),
        (ONE + f"scale = 0x{'f' * 5000}", "scale = a value too long to show should be a number above 0"),
        (ONE + "inner.share = 1.5", "inner.share = 1.5 should be a number from 0 to 1"),
        (ONE + "inner.size = [1]", "inner.size = [1] should be [height, width], each a whole number of at least 1"),
        (ONE + "inner.size = [1, 0]", "inner.size = [1, 0] should be [height, width]"),
        (ONE + "inner.size = [1, 9223372036854775808]", "should be [height, width]"),
        (ONE + "inner.names = []", "should be a name or a list of different names"),
        (ONE + 'inner.names = ["a", "a"]', "should be a name or a list of different names"),
        (ONE + 'inner.names = ["a", ""]', "should be a name or a list of different names"),
        (ONE + "inner.groups = 1", "inner.groups = 1 should be a table"),
        (ONE + 'inner.groups."a b" = "c"', 'inner.groups."a b" = "c" should be a list of different names'),
        (ONE + 'inner.groups."a\\u0000" = ["c"]', "the key"),
        (ONE + "on = 1", "on = 1 should be true or false"),
        (ONE + 'file = ""', 'file = "" should be a path'),
        (ONE + 'file = "a\\u0000b"', "should be a path"),
        (ONE + 'label = "a\\u0000b"', "should be text"),
        (ONE + f'label = ["{SPLIT}"]', r'label = ["\u2028"] should be text'),
        (ONE + f'label = ["{"a" * 999}"]', "... should be text"),
        (ONE + f'"{"a" * 99_999}" = 1', "unknown key"),
        (ONE + "[inner.arguments]\nday = 2024-01-31", 'inner.arguments.day = "2024-01-31" should be text, a finite'),
        (ONE + "[inner.arguments]\nx = [nan]", "inner.arguments.x = [NaN] should be text, a finite"),
        (ONE + f"[inner.arguments]\nx = 1{'0' * 400}", "should be text, a finite number of 64 bits"),
        (ONE + '[inner.arguments]\nx = "\\u0000"', "should be text"),
        (ONE + f"[inner.arguments]\nx = {'[' * 60}1{']' * 60}", "at most 32 deep"),
        (ONE + f"[inner.arguments]\n{'.'.join('a' * 5000)} = 1", "at most 32 deep"),
        (ONE + f"scale.{'.'.join('a' * 5000)} = 1", "scale = a value nested too deep to show should be a number"),
        (ONE + f"scale = {'[' * 40}1{']' * 40}", "scale = a value nested too deep to show should be a number"),
        (ONE + f"scale = {'[' * 32}1{']' * 32}", f"scale = {'[' * 32}1{']' * 32} should be a number"),
        (ONE + f"scale = {'[' * 5000}{']' * 5000}", "nested too deep"),
        ("kind = one", "not TOML"),
        (b"kind = '\xff'", "not TOML"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(BldaError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'some.toml'}: ")
    assert said in message
    assert len(message.splitlines()) == 1
    assert len(message) < 400 + len(str(tmp_path))


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(BldaError, match="no such file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(BldaError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)


def test_a_type_nobody_can_read_is_a_mistake_in_the_program() -> None:
    @dataclass(frozen=True)
    class Wrong:
        value: set[str] = setting(None, "No TOML value is one.")

    with pytest.raises(TypeError, match="value"):
        settings_of(Wrong)["value"].fit("x")
