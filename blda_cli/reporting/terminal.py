"""The report on the terminal: the findings in words, then its tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blda_cli.reporting.model import Report, Verdict
from blda_cli.reporting.tables import (
    MARKS,
    OPPOSED,
    Column,
    NumberTable,
    candidate_table,
    class_table,
    overall_table,
    reference_table,
    steps_table,
)
from blda_cli.reporting.words import next_steps, summary
from blda_cli.text import printable

_STYLES = {
    Verdict.OVER: "dark_orange",
    Verdict.UNDER: "blue",
    Verdict.UNCLEAR: "",
    Verdict.NEVER: "dim",
    Verdict.UNKNOWN: "dim",
}

_INTERVAL = "90 % interval"

_LEFT_OUT_FIRST = (_INTERVAL, "std acc.", "std IoU", "fwIoU", "Σ |Bias|", "loses", "gains", "acc.", "bias", "aAcc")
"""Columns in the order in which narrow terminals leave them out; all others follow, the rightmost first."""

_LONGEST_NAME = 24
"""Width that columns leave to the names before they are left out; longer names are wrapped."""

SHOWN_CLASSES = 10
"""Of many classes, how many over-predicted ones are shown, and how many under-predicted ones."""

Groups = Sequence[Sequence[int]]
"""Rows of a table, apart from one another."""


def print_report(report: Report, console: Console, *, all_classes: bool = False) -> None:
    """Print the findings, the tables and the next steps.

    Args:
        report: the report.
        console: where to.
        all_classes: show all, where they are many too.
    """
    for sentence in summary(report):
        console.print(Text(sentence), end="\n\n")
    for remark in (one for one in report.remarks if one not in report.provenance.all_notes()):
        console.print(Text(f"Note: {remark}", style="yellow"), end="\n\n")
    groups = _classes_shown(report, all_classes=all_classes)
    _print_classes(report, groups, console)
    if report.before.scores is not None or len(report.runs) > 1:
        _print_numbers(overall_table(report), console)
    for of_classes in (steps_table(report), reference_table(report)):
        if of_classes is not None:
            _print_numbers(of_classes, console, groups)
    candidates = candidate_table(report)
    if candidates is not None:
        _print_numbers(candidates, console)
    for step in next_steps(report):
        console.print(Text(f"Next: {step.text}"))
        console.print(Text(f"  {step.command}", style="bold"), soft_wrap=True)


def _classes_shown(report: Report, *, all_classes: bool) -> Groups:
    """The rows of classes: in their order or, where they are many, the most biased first, over and under apart."""
    order = report.order()
    if not report.many_classes:
        return [order]
    verdicts = [estimate.verdict for estimate in report.estimates]
    over, under = ([index for index in order if verdicts[index] is one] for one in (Verdict.OVER, Verdict.UNDER))
    if all_classes:
        return [over, under, [index for index in order if index not in {*over, *under}]]
    return [over[:SHOWN_CLASSES], under[:SHOWN_CLASSES]]


@dataclass(frozen=True)
class Field:
    """A column of a printed table: its heading and the text in each row."""

    heading: str
    texts: Sequence[str]
    numbers: bool = True

    def width(self, *, wrapped: bool) -> int:
        """The width it needs, with its heading in one line or wrapped at spaces."""
        parts = self.heading.split(" ") if wrapped else [self.heading]
        return max(map(cell_len, [*parts, *self.texts]))


def _print_classes(report: Report, groups: Groups, console: Console) -> None:
    """One line a class; ``a→b`` is before and after."""
    content = class_table(report)
    verdicts = [estimate.verdict for estimate in report.estimates]
    fields = [Field("is", [f"{MARKS[verdict]} {verdict}" for verdict in verdicts], numbers=False)]
    for column in content.columns:
        fields.append(Field(column.short, _texts(column)))
        small = [cell.small for cell in column.cells]
        if any(small):
            fields.append(Field(_INTERVAL, [text or "n/a" for text in small]))
    texts = [cell.text for column in content.columns if column.heading == "×" for cell in column.cells]
    known = "; ×: how often it is predicted over how often it should be, by pixels" if texts else ""
    known += f"; {OPPOSED}: the two differ in direction" if any(OPPOSED in text for text in texts) else ""
    title = (
        "Over- and under-predicted classes (percent; est.: bias estimated without labels, as if classes had equally "
        f"many pixels{known})"
    )
    styles = [_STYLES[verdict] for verdict in verdicts]
    print_table(console, title, content.heading, content.rows, fields, groups, styles, content.caption)


def _print_numbers(content: NumberTable, console: Console, groups: Groups | None = None) -> None:
    fields = [Field(column.short, _texts(column)) for column in content.columns]
    print_table(console, content.caption, content.heading, content.rows, fields, groups)


def _texts(column: Column) -> list[str]:
    """What the fields of a column say, before and after in one; of an absent class once."""
    before = [cell.text for cell in column.cells]
    if column.after is None:
        return before
    after = [cell.text for cell in column.after]
    pairs = zip(before, after, column.cells, strict=True)
    return [f"{one}→{other}" if cell.value == cell.value else one for one, other, cell in pairs]


def print_table(
    console: Console,
    title: str,
    heading: str,
    names: Sequence[str],
    fields: Sequence[Field],
    groups: Groups | None = None,
    styles: Sequence[str] | None = None,
    caption: str = "",
) -> None:
    """Print a table with as many of its columns as there is room for; no name and no number is cut.

    Args:
        console: where to.
        title: what the table shows.
        heading: of the names.
        names: of the rows.
        fields: the other columns.
        groups: the rows that are shown; None: all, in their order.
        styles: of the rows.
        caption: below the table.
    """
    names = [printable(name) for name in names]
    longest = max(map(cell_len, [heading, *names]))
    room = console.width - 2 - min(longest, _LONGEST_NAME)  # beside the names and the space at both ends
    kept = list(fields)
    while len(kept) > 1 and _width(kept, wrapped=True) > room:
        kept.remove(_least(kept))
    wrapped = _width(kept, wrapped=False) > room
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(heading, overflow="fold", max_width=max(1, console.width - 2 - _width(kept, wrapped=wrapped)))
    for one in kept:
        width = one.width(wrapped=wrapped)
        table.add_column(one.heading, justify="right" if one.numbers else "left", width=width, overflow="fold")
    groups = [range(len(names))] if groups is None else groups
    for group in groups:
        for index in group:
            table.add_row(names[index], *(one.texts[index] for one in kept), style=styles[index] if styles else None)
        table.add_section()
    shown, out = sum(map(len, groups)), [one.heading for one in fields if one not in kept]
    hidden = "" if shown == len(names) else f"{len(names) - shown} {'more ' if shown else ''}classes: --all"
    console.print(Text(title, style="italic"))
    console.print(table)
    below = [line for line in (caption, hidden, f"no room for: {', '.join(out)}" if out else "") if line]
    for line in below:
        console.print(Text(line, style="dim italic"))
    if below:
        console.print()


def _width(fields: Sequence[Field], *, wrapped: bool) -> int:
    """Width of columns, with the two spaces before each."""
    return sum(2 + field.width(wrapped=wrapped) for field in fields)


def _least(fields: Sequence[Field]) -> Field:
    """The column to leave out."""
    named = [field for heading in _LEFT_OUT_FIRST for field in fields if field.heading == heading]
    return (*named, fields[-1])[0]
