"""Networks that are odd and right: what comes out is what a plain one gives."""

from __future__ import annotations

import json

import pytest

from tests.hostile.test_sharing_out import datasets, ok
from tests.hostile.world import World, invoke

CODES = {
    "writes over its input": "[self.head(images), images.zero_()][0]",
    "gives the same tensor again": "vars(self).setdefault('kept', {}).setdefault(scores.shape, scores).copy_(scores)",
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES.keys())
@pytest.mark.parametrize("options", ["", "--flip --scales 1,2 --slide 8x8 --batch-size 2"])
def test_a_network_may_keep_its_tensors(world: World, code: str, options: str) -> None:
    ok(world.collect(*options.split(), output="plain.h5"))
    world.describe(factory="odd", arguments=f"code = {json.dumps(code)}")
    ok(world.collect(*options.split(), output="odd.h5"))
    plain, odd = datasets(world.root / "plain.h5"), datasets(world.root / "odd.h5")
    assert (plain["cells/pseudo/counts"] == odd["cells/pseudo/counts"]).all()


def test_what_a_network_prints_is_not_in_the_json(world: World) -> None:
    path = world.root / "tiny.py"
    path.write_text("print('loading')\n" + path.read_text())
    world.describe(factory="odd", arguments="code = \"[scores, print('running')][0]\"")
    for command in (world.collect("--json", output="stats2.h5"), world.align("--json", stats="stats2.h5")):
        result = invoke(command)
        assert json.loads(result.stdout)["images"] == 4
        assert "running" in result.stderr
