"""The report on the terminal: the findings in words, then a table of the classes."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blda_cli.reporting.model import Report, Verdict
from blda_cli.reporting.words import next_steps, percent, points, score, summary

_STYLES = {Verdict.OVER: "dark_orange", Verdict.UNDER: "blue", Verdict.UNCLEAR: "", Verdict.UNKNOWN: "dim"}
_MARKS = {Verdict.OVER: "▲", Verdict.UNDER: "▼", Verdict.UNCLEAR: "·", Verdict.UNKNOWN: " "}
_WIDE = 100


def print_report(report: Report, console: Console) -> None:
    """Print the findings, the tables and the next steps."""
    for sentence in summary(report):
        console.print(Text(sentence), end="\n\n")
    for remark in report.remarks:
        console.print(Text(f"Note: {remark}", style="yellow"), end="\n\n")
    console.print(_class_table(report, intervals=console.width >= _WIDE or report.before.scores is None))
    if report.before.scores is not None or len(report.runs) > 1:
        console.print(_overall_table(report))
    if report.candidates:
        console.print(_candidate_table(report))
    for step in next_steps(report):
        console.print(Text(f"Next: {step.text}"))
        console.print(Text(f"  {step.command}", style="bold"), soft_wrap=True)


def _class_table(report: Report, *, intervals: bool) -> Table:
    """One line a class; ``a→b`` is before and after."""
    stages = [report.before, *(run.after for run in report.runs[:1])]
    table = _table("Over- and under-predicted classes (percent; est.: bias estimated without labels)", "class")
    table.add_column("is", no_wrap=True)
    headings = ["est.", *(["90 % interval"] if intervals else []), "share"]
    if report.before.scores is not None:
        headings += ["bias", "IoU", "acc."]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for index, (name, estimate) in enumerate(zip(report.classes.names, report.estimates, strict=True)):
        verdict = estimate.verdict
        row = [name, f"{_MARKS[verdict]} {verdict}", points(estimate.bias)]
        if intervals:
            row.append(f"{points(estimate.low)} … {points(estimate.high)}" if estimate.low == estimate.low else "n/a")
        row.append("→".join(score(stage.share[index]) for stage in stages))
        for measure, show in (("bias", points), ("iou", score), ("accuracy", score)):
            values = [getattr(stage.scores, measure)[index] for stage in stages if stage.scores is not None]
            if values:
                row.append("→".join(map(show, values)) if values[0] == values[0] else "n/a")
        table.add_row(*row, style=_STYLES[verdict])
    if report.runs:
        table.caption = f"→ after {report.runs[0].name}: {report.runs[0].method}"
        table.caption_justify = "left"
    return table


def _overall_table(report: Report) -> Table:
    table = _table("Scores (percent, pooled over pixels; absent classes left out)", "predictions")
    headings = ("mIoU", "mean acc.", "std IoU", "std acc.", "Σ |Bias|", "changed")
    for heading in headings if report.before.scores is not None else headings[-1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    stages = [
        ("argmax", report.before, ""),
        *((f"{run.name}: {run.method}", run.after, percent(run.changed)) for run in report.runs),
    ]
    for name, stage, changed in stages:
        scores = stage.scores
        values = (
            []
            if scores is None
            else [scores.mean_iou, scores.mean_accuracy, scores.iou_spread, scores.accuracy_spread, scores.total_bias]
        )
        table.add_row(name, *map(score, values), changed)
    return table


def _candidate_table(report: Report) -> Table:
    table = _table("Methods tried on the sampled pixels of the statistics (percent)", "method")
    labelled = report.candidates[0].scores is not None
    for heading in ("changed", *(("mIoU", "mean acc.", "Σ |Bias|") if labelled else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for tried in report.candidates:
        scores = tried.scores
        values = [] if scores is None else [scores.mean_iou, scores.mean_accuracy, scores.total_bias]
        table.add_row(tried.method, percent(tried.changed), *map(score, values))
    return table


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    return table
