"""The report's tables on terminals of several widths, and with many classes."""

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from blda_cli.core.confusion import ConfusionMatrix
from blda_cli.data.classes import class_set
from blda_cli.reporting.model import Estimate, Predictions, Report, Run, scores_of
from blda_cli.reporting.terminal import print_report
from blda_cli.store.provenance import Provenance

NAMES = ["road", "pedestrian", "conveyor belt"]


def printed(report: Report, width: int, *, all_classes: bool = False) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    print_report(report, console, all_classes=all_classes)
    return console.export_text().splitlines()


def report_of(names: list[str], estimates: list[Estimate]) -> Report:
    """A report of one correction, with labels."""
    count = len(names)
    confusion = ConfusionMatrix(count)
    truth = torch.arange(4000) % count
    confusion.update(truth, torch.where(torch.arange(4000) % 7 == 0, 0, truth))
    predictions = Predictions([1 / count] * count, scores_of(confusion))
    return Report(
        classes=class_set(names),
        images=4,
        pixels=4000,
        source="sample",
        estimates=estimates,
        mean_shifts=[[0.0] * count] * count,
        shift_source="pseudo",
        before=predictions,
        runs=[Run("a folder of another name", "a", "blda negative, τ 0.26", {}, 0.1, predictions, {})],
        candidates=[],
        rank_correlation=math.nan,
        made={"statistics": {"file": "s.h5"}},
        provenance=Provenance(),
    )


FEW = report_of(NAMES, [Estimate(0.242, 0.23, 0.25, 2.0), Estimate(-0.06, -0.07, -0.05, 0.5), Estimate(0, -1, 1, 1)])


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, ["is", "est.", "share", "IoU"]),
        (80, ["is", "est.", "share", "bias", "IoU", "acc."]),
        (120, ["is", "est.", "90 % interval", "share", "bias", "IoU", "acc."]),
    ],
)
def test_columns_are_left_out_by_importance_and_nothing_is_cut(width: int, columns: list[str]) -> None:
    lines = printed(FEW, width)
    start = next(index for index, line in enumerate(lines) if line.split()[:2] == ["class", "is"])
    heading = lines[start]
    places = [heading.index(f" {name}") for name in columns]
    assert places == sorted(places)
    for name, line in zip(NAMES, lines[start + 2 :], strict=False):
        assert line.strip().startswith(name)
    assert "▲ over" in lines[start + 2]
    assert "+24.2" in lines[start + 2]
    assert "…" not in "".join(lines)
    assert all(len(line) <= width for line in lines if not line.startswith("  blda"))
    told = next((line for line in lines if line.startswith("no room for: ")), "")
    every = {"90 % interval", "share", "bias", "IoU", "acc."}
    assert set(told.removeprefix("no room for: ").strip().split(", ")) - {""} == every - set(columns)


def test_a_name_wider_than_the_terminal_is_wrapped() -> None:
    long = replace(FEW, classes=class_set(["x" * 70, "y", "z"]))
    lines = printed(long, 60)
    assert "".join(lines).count("x") >= 70
    assert "+24.2" in "".join(lines)
    assert all(len(line) <= 60 for line in lines if not line.startswith("  blda"))


def many() -> Report:
    """150 classes: even ones are over-predicted, later ones more, odd ones under-predicted; the last is unknown."""
    estimates = []
    for index in range(149):
        over = index % 2 == 0
        bias = 0.01 if over else -0.01
        ratio = 1 + index / 10
        estimates.append(Estimate(bias, bias - 0.001, bias + 0.001, ratio if over else 1 / ratio))
    names = [f"class {index}" for index in range(150)]
    return report_of(names, [*estimates, Estimate(math.nan, math.nan, math.nan)])


def classes_in(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith(" class ") and line.split()[1].isdigit()]


def test_of_many_classes_the_most_biased_are_shown_over_and_under_apart() -> None:
    shown = printed(many(), 80)
    assert classes_in(shown) == [*range(148, 129, -2), *range(147, 128, -2)]
    assert any("130 more classes: --all" in line for line in shown)
    between = shown[next(i for i, line in enumerate(shown) if line.startswith(" class 130 ")) + 1]
    assert not between.strip()
    assert len(shown) < 70
    every = printed(many(), 80, all_classes=True)
    assert classes_in(every) == [*range(148, -1, -2), *range(147, 0, -2), 149]
    assert not any("--all" in line for line in every)


def test_many_classes_without_a_verdict_are_counted() -> None:
    unknown = replace(many(), estimates=[Estimate(math.nan, math.nan, math.nan)] * 150)
    assert any(line.strip() == "150 classes: --all" for line in printed(unknown, 80))
