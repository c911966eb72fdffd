"""Class by class matrices on the page: a table of values while it can be read, a picture with a read-out beyond."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from blda_cli.reporting.colors import diverging, sequential, text_on
from blda_cli.reporting.words import signed

LARGEST_TABLE = 24
"""Classes up to which a matrix is a table."""

_LISTED = 20


@dataclass(frozen=True)
class Matrix:
    """A matrix as it is shown.

    Attributes:
        title: above it.
        rows: meaning of a row.
        columns: meaning of a column.
        cells: ``[C][C]`` of text and the colours behind and of it; empty where it is a picture.
        picture: data URI; empty where it is a table.
        values: ``[C][C]`` as text for the read-out; empty where it is a table.
        largest: the most notable entries as row, column and text; empty where it is a table.
    """

    title: str
    rows: str
    columns: str
    cells: list[list[tuple[str, str, str]]]
    picture: str
    values: list[list[str]]
    largest: list[tuple[str, str, str]]


def shift_matrix(values: Sequence[Sequence[float]], names: Sequence[str]) -> Matrix:
    """The mean shifts, in logits."""
    array = np.array(values, dtype=float)
    known = np.abs(array[~np.isnan(array)])
    reach = float(np.quantile(known, 0.98)) if known.size else 1.0
    return _matrix(
        "Mean shift from each cell to its anchor, in logits",
        "pixels of the class",
        "channel",
        array,
        diverging(array, max(reach, 1e-6)),
        signed,
        np.abs(array),
        names,
    )


def confusion_matrix(title: str, counts: Sequence[Sequence[int]], names: Sequence[str]) -> Matrix:
    """A confusion matrix, every row in percent of the class's pixels."""
    array = np.array(counts, dtype=float)
    pixels = array.sum(axis=1, keepdims=True)
    rates = np.divide(array, pixels, out=np.full_like(array, np.nan), where=pixels > 0)
    confused = rates.copy()
    np.fill_diagonal(confused, np.nan)
    return _matrix(
        title, "label", "prediction", rates, sequential(rates), lambda value: f"{100 * value:.0f}", confused, names
    )


def _matrix(
    title: str,
    rows: str,
    columns: str,
    array: np.ndarray,
    colors: np.ndarray,
    show: Callable[[float], str],
    notable: np.ndarray,
    names: Sequence[str],
) -> Matrix:
    texts = [[show(value) if value == value else "n/a" for value in row] for row in array.tolist()]
    if len(names) <= LARGEST_TABLE:
        cells = [
            [
                (text, "rgb({},{},{})".format(*color), text_on(color))
                for text, color in zip(text_row, color_row, strict=True)
            ]
            for text_row, color_row in zip(texts, colors.tolist(), strict=True)
        ]
        return Matrix(title, rows, columns, cells, "", [], [])
    data = io.BytesIO()
    Image.fromarray(colors).save(data, format="PNG", optimize=True)
    order = np.argsort(-np.nan_to_num(notable, nan=-1.0), axis=None)[:_LISTED]
    places = [divmod(int(place), len(names)) for place in order]
    return Matrix(
        title=title,
        rows=rows,
        columns=columns,
        cells=[],
        picture=f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}",
        values=texts,
        largest=[(names[row], names[column], texts[row][column]) for row, column in places],
    )
