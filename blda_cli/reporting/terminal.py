"""The report on the terminal: the findings in words, then its tables."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blda_cli.reporting.model import Report, Verdict
from blda_cli.reporting.tables import (
    MARKS,
    Column,
    NumberTable,
    candidate_table,
    class_table,
    overall_table,
    reference_table,
    steps_table,
)
from blda_cli.reporting.words import next_steps, summary

_STYLES = {Verdict.OVER: "dark_orange", Verdict.UNDER: "blue", Verdict.UNCLEAR: "", Verdict.UNKNOWN: "dim"}
_WIDE = 100


def print_report(report: Report, console: Console) -> None:
    """Print the findings, the tables and the next steps."""
    for sentence in summary(report):
        console.print(Text(sentence), end="\n\n")
    for remark in report.remarks:
        console.print(Text(f"Note: {remark}", style="yellow"), end="\n\n")
    console.print(_class_table(report, intervals=console.width >= _WIDE or report.before.scores is None))
    if report.before.scores is not None or len(report.runs) > 1:
        console.print(_rows(overall_table(report), details=console.width >= _WIDE))
    steps = steps_table(report)
    if steps is not None:
        console.print(_rows(steps, details=True))
    reference = reference_table(report)
    if reference is not None:
        console.print(_rows(reference, details=False))
    candidates = candidate_table(report)
    if candidates is not None:
        console.print(_rows(candidates, details=False))
    for step in next_steps(report):
        console.print(Text(f"Next: {step.text}"))
        console.print(Text(f"  {step.command}", style="bold"), soft_wrap=True)


def _class_table(report: Report, *, intervals: bool) -> Table:
    """One line a class; ``a→b`` is before and after."""
    content = class_table(report)
    table = _table("Over- and under-predicted classes (percent; est.: bias estimated without labels)", content.heading)
    table.add_column("is", no_wrap=True)
    fields: list[tuple[str, list[str]]] = []
    for column in content.columns:
        fields.append((column.short, _texts(column)))
        small = [cell.small for cell in column.cells]
        if intervals and any(small):
            fields.append(("90 % interval", [text or "n/a" for text in small]))
    for heading, _ in fields:
        table.add_column(heading, justify="right", no_wrap=True)
    for index in report.order():
        verdict = report.estimates[index].verdict
        texts = [column[index] for _, column in fields]
        table.add_row(content.rows[index], f"{MARKS[verdict]} {verdict}", *texts, style=_STYLES[verdict])
    table.caption, table.caption_justify = content.caption, "left"
    return table


def _rows(content: NumberTable, *, details: bool) -> Table:
    table = _table(content.caption, content.heading)
    columns = [column for column in content.columns if details or not column.detail]
    for column in columns:
        table.add_column(column.short, justify="right", no_wrap=True)
    for name, *texts in zip(content.rows, *map(_texts, columns), strict=True):
        table.add_row(name, *texts)
    return table


def _texts(column: Column) -> list[str]:
    """What the fields of a column say, before and after in one; of an absent class once."""
    before = [cell.text for cell in column.cells]
    if column.after is None:
        return before
    after = [cell.text for cell in column.after]
    pairs = zip(before, after, column.cells, strict=True)
    return [f"{one}→{other}" if cell.value == cell.value else one for one, other, cell in pairs]


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    return table
