"""Text from files and file names, made safe for a terminal and a spreadsheet."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

_LONG_WORD = re.compile(r"\S{400,}")
"""Longer than any path that is likely: a value that somebody gave."""


def shortened(text: str, longest: int) -> str:
    """Text of at most so many characters, cut within its longest words first, so that the words around them stay."""
    text = _LONG_WORD.sub(lambda word: f"{word[0][:80]}...{word[0][-8:]}", text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def suggestion(name: str, known: Iterable[str], form: str = "{}") -> str:
    """The end of a message about an unknown name: ``; do you mean ...?``, or nothing where no known name is near.

    Args:
        name: the unknown name.
        known: the names that there are; upper and lower case count alike.
        form: how the name is to be given, with ``{}`` in its place.
    """
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name[:100].lower(), by_lower, n=1)
    return f"; do you mean {form.replace('{}', by_lower[near[0]])}?" if near else ""


def printable(text: str) -> str:
    """Text with its control characters spelt out, as a file name may hold some that command a terminal."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") else ascii(char)[1:-1] for char in text
    )


def plain_cell(text: str) -> str:
    """Text for a cell of a table: an apostrophe keeps a spreadsheet from taking it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
