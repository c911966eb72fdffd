"""What tables for people and programs must not be able to do."""

from __future__ import annotations

import csv

from tests.hostile.world import World, invoke


def test_no_cell_of_a_table_is_a_formula(world: World) -> None:
    model = world.describe(names=["=cmd|' /C calc'!A0", "@SUM(1)", "-road"])
    for command in (world.align(model=model, stats=None), world.report(stats="new.h5", aligned="new")):
        result = invoke(command)
        assert result.exit_code == 0, result.output
    with (world.root / "report" / "report.csv").open(newline="") as file:
        cells = [row["class"] for row in csv.DictReader(file)]
    assert cells == ["'=cmd|' /C calc'!A0", "'@SUM(1)", "'-road"]
