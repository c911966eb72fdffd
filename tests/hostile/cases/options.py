"""Options without sense, out of range, or that would do nothing."""

from typing import Any

from tests.hostile.world import Case, World, case


def collecting(*options: Any, says: str = "", code: int = 2, **env: str) -> Case:
    """Options of ``collect-stats``."""
    return case(f"collect-stats {_name(options, env)}", lambda w: w.collect(*options), says, code=code, **env)


def aligning(*options: Any, says: str = "", code: int = 2, **env: str) -> Case:
    """Options of ``align``."""
    return case(f"align {_name(options, env)}", lambda w: w.align(*options), says, code=code, **env)


def _name(options: tuple[Any, ...], env: dict[str, str]) -> str:
    return " ".join([*(f"{name}={value}" for name, value in env.items()), *map(str, options)])[:60]


def _csv(world: World, lines: str) -> list[str]:
    (world.root / "table.csv").write_text(lines)
    return world.collect("--labels", world.root / "table.csv")


HUGE = "1" + "0" * 400
DIGITS = "1" + "0" * 5000

CASES: list[Case] = [
    case("no images at all", lambda w: [*w.collect(), "--images", ""], "--images is empty", code=2),
    case("an empty --labels=", lambda w: w.collect("--labels="), "--labels is empty", code=2),
    case("an empty output", lambda w: [*w.align(), "--output", ""], "--output is empty", code=2),
    case("an empty part to merge", lambda w: ["merge", str(w.stats), "", "--output", str(w.root / "m.h5")], code=2),
    aligning("--tau", -1, says="--tau"),
    aligning("--tau", "1e300", says="--tau"),
    aligning("--tau", "1e400", says="--tau"),
    aligning("--shift", "balanced", "--method", "logit-adjust", says="--shift does nothing with --method logit-adjust"),
    aligning("--label-source", "soft", "--method", "class-confidence", says="--label-source does nothing"),
    aligning("--tau", 1, "--method", "none", says="--tau does nothing"),
    collecting("--label-encoding", "ids", says="--label-encoding does nothing without --labels"),
    collecting("--ignore-label", 3, says="--ignore-label does nothing without --labels"),
    case("encoding of no labels", lambda w: w.report("--label-encoding", "ids"), "does nothing without", code=2),
    aligning("--tau", DIGITS, says="--tau"),
    aligning("--method", DIGITS, says="is not one of 'blda'"),
    aligning("--shift", DIGITS, says="is not one of 'negative'"),
    collecting("--bins", DIGITS, says="--bins"),
    collecting("--labels", "labels", "--ignore-label", DIGITS, says="--ignore-label"),
    collecting("--labels", "labels", "--label-encoding", DIGITS, says="no label encoding", code=1),
    collecting("--labels", "labels", "--label-encoding", "citiscapes", says="do you mean cityscapes?", code=1),
    collecting("--norms", DIGITS, says="1000", code=1),
    case("a class of 5000 digits", lambda w: _csv(w, f"east/1,{DIGITS}\n"), "east/1", "none of the 3 classes"),
    collecting("--batch-size", "1" + "0" * 20, says="--batch-size"),
    collecting("--batch-size", HUGE, says="--batch-size"),
    collecting("--workers", 10**9, says="--workers"),
    collecting("--bins", 1 << 40, says="--bins"),
    collecting("--bins", 100, says="--bins 100 is not a power of two"),
    collecting("--slide", f"{HUGE}x8", says="--slide"),
    collecting("--slide", "8x8", "--stride", f"8x{10**7}", says="--stride"),
    collecting("--slide", "٣x٣", says="--slide"),
    collecting("--scales", "1e300", says="--scales"),
    collecting("--scales", "1e-300", says="--scales"),
    collecting("--scales", ",".join(["1"] * 5000), says="--scales"),
    collecting("--device", "meta", says="--device meta", code=1),
    collecting("--device", "cpu:7", says="--device cpu:7", code=1),
    collecting("--device", "cuda:9999", says="--device cuda:9999", code=1),
    collecting("--device", "vulkan", says="--device vulkan", code=1),
    collecting("--shard", "0/3", says="--shard"),
    collecting("--shard", "4/3", says="--shard"),
    collecting("--shard", "1/x", says="--shard"),
    case("a shard without statistics", lambda w: w.align("--shard", "1/2", stats=None), "--shard needs", code=2),
    collecting(says="WORLD_SIZE=two", code=1, WORLD_SIZE="two"),
    collecting(says="RANK=9", code=1, WORLD_SIZE="2", RANK="9"),
    aligning(says="WORLD_SIZE=-3", code=1, WORLD_SIZE="-3"),
    collecting("--ignore-label", HUGE, says="--ignore-label"),
    case(
        "a key of the table twice",
        lambda w: _csv(w, "east/1,road\neast/3,road\nwest/0,road\nwest/2,tree\neast/1,tree\n"),
        "table.csv",
        "east/1 is given twice",
    ),
    case("a table with an odd number", lambda w: _csv(w, "east/1,²\n"), "'²', the class of east/1"),
]
