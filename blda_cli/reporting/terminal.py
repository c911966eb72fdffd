"""The report on the terminal: the findings in words, then a table of the classes."""

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from blda_cli.reporting.report import Report, Verdict
from blda_cli.reporting.words import next_steps, percent, points, score, summary

_STYLES = {Verdict.OVER: "dark_orange", Verdict.UNDER: "blue", Verdict.UNCLEAR: "", Verdict.UNKNOWN: "dim"}
_MARKS = {Verdict.OVER: "▲", Verdict.UNDER: "▼", Verdict.UNCLEAR: "·", Verdict.UNKNOWN: " "}


def print_report(report: Report, console: Console) -> None:
    """Print the findings, the tables and the next steps."""
    console.print(render(report))


def render(report: Report) -> RenderableType:
    """All that is printed, as one renderable."""
    parts: list[RenderableType] = [Padding(Text(sentence), (0, 0, 1, 0)) for sentence in summary(report)]
    parts += [Text(f"Note: {remark}", style="yellow") for remark in report.remarks]
    parts.append(_class_table(report))
    if report.before.scores is not None or len(report.runs) > 1:
        parts.append(_overall_table(report))
    if report.candidates:
        parts.append(_candidate_table(report))
    for step in next_steps(report):
        parts += [Text(f"\nNext: {step.text}"), Text(f"  {step.command}", style="bold")]
    return Group(*parts)


def _class_table(report: Report) -> Table:
    labelled = report.before.scores is not None
    table = Table(title="Classes, in percent of pixels; the estimate uses no labels", title_justify="left")
    table.add_column("class")
    table.add_column("predicted")
    for heading in ("estimated bias", "90 % interval", "share", *("→ share" for _ in report.runs[:1])):
        table.add_column(heading, justify="right")
    if labelled:
        for heading in ("bias", "IoU", "accuracy"):
            table.add_column(heading, justify="right")
            if report.runs:
                table.add_column(f"→ {heading}", justify="right")
    for index, (name, estimate) in enumerate(zip(report.classes.names, report.estimates, strict=True)):
        verdict = estimate.verdict
        interval = f"{points(estimate.low)} … {points(estimate.high)}" if estimate.low == estimate.low else "n/a"
        row = [name, f"{_MARKS[verdict]} {verdict}", points(estimate.bias), interval]
        stages = [report.before, *(run.after for run in report.runs[:1])]
        row += [percent(stage.share[index]) for stage in stages]
        for measure, show in (("bias", points), ("iou", score), ("accuracy", score)):
            row += [show(getattr(stage.scores, measure)[index]) for stage in stages if stage.scores is not None]
        table.add_row(*row, style=_STYLES[verdict])
    if report.runs:
        table.caption = f"→ after {report.runs[0].name}: {report.runs[0].method}"
        table.caption_justify = "left"
    return table


def _overall_table(report: Report) -> Table:
    table = Table(title="Scores pooled over pixels, in percent; absent classes left out", title_justify="left")
    table.add_column("predictions")
    headings = ("mIoU", "mean accuracy", "std of IoU", "std of accuracy", "Σ |Bias|", "changed")
    for heading in headings if report.before.scores is not None else headings[-1:]:
        table.add_column(heading, justify="right")
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
    table = Table(title="Methods tried on the sampled pixels of the statistics, in percent", title_justify="left")
    table.add_column("method")
    labelled = report.candidates[0].scores is not None
    for heading in ("changed", *(("mIoU", "mean accuracy", "Σ |Bias|") if labelled else ())):
        table.add_column(heading, justify="right")
    for tried in report.candidates:
        scores = tried.scores
        values = [] if scores is None else [scores.mean_iou, scores.mean_accuracy, scores.total_bias]
        table.add_row(tried.method, percent(tried.changed), *map(score, values))
    return table
