"""Text from files and file names, made safe for a terminal and a spreadsheet."""

import unicodedata


def printable(text: str) -> str:
    """Text with its control characters spelt out, as a file name may hold some that command a terminal."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") else ascii(char)[1:-1] for char in text
    )


def plain_cell(text: str) -> str:
    """Text for a cell of a table: an apostrophe keeps a spreadsheet from taking it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
