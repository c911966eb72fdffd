from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import world as worlds
from tests.hostile.world import World


@pytest.fixture(scope="session")
def _world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(_world: World, tmp_path: Path) -> World:
    return worlds.copy(_world, tmp_path / "world")
