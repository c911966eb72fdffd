"""Text from files and file names, made safe for a terminal and a spreadsheet."""

import re
import unicodedata

_LONG_WORD = re.compile(r"\S{400,}")
"""Longer than any path that is likely: a value that somebody gave."""


def shortened(text: str, longest: int) -> str:
    """Text of at most so many characters, cut within its longest words first, so that the words around them stay."""
    text = _LONG_WORD.sub(lambda word: f"{word[0][:80]}...{word[0][-8:]}", text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def printable(text: str) -> str:
    """Text with its control characters spelt out, as a file name may hold some that command a terminal."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") else ascii(char)[1:-1] for char in text
    )


def plain_cell(text: str) -> str:
    """Text for a cell of a table: an apostrophe keeps a spreadsheet from taking it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
