"""Hostile input through the command line, table by table."""

from __future__ import annotations

import pytest

from tests.hostile import world as worlds
from tests.hostile.cases import TABLES
from tests.hostile.world import Case, World


@pytest.mark.parametrize(
    "tried", [pytest.param(one, id=f"{table}: {one.name}") for table, cases in TABLES.items() for one in cases]
)
def test_case(world: World, tried: Case) -> None:
    worlds.check(world, tried)


def test_there_are_enough_cases_and_none_twice() -> None:
    names = [(table, one.name) for table, cases in TABLES.items() for one in cases]
    assert len(names) == len(set(names)) >= 150
