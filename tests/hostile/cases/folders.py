"""Outputs that are somebody else's, or the input itself; inputs that change between two runs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.hostile.world import Case, World, case, invoke


def _stopped(world: World, command: list[str], last: Path | None = None) -> None:
    """Run a command that stops at the last image."""
    last = last or world.images / "west" / "2.png"
    data, times = last.read_bytes(), last.stat()
    last.write_bytes(data[:50])
    assert invoke(command).exit_code == 1
    last.write_bytes(data)
    os.utime(last, ns=(times.st_atime_ns, times.st_mtime_ns))


def _replace(path: Path) -> None:
    """Another picture of the same name."""
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    os.utime(path, ns=(1, 1))


def another_image_on_resume(world: World) -> list[str]:
    command = world.collect()
    _stopped(world, command)
    _replace(world.first)
    return command


def another_label_on_resume(world: World) -> list[str]:
    command = world.collect("--labels", world.labels)
    _stopped(world, command)
    _replace(world.labels / "east" / "1.png")
    return command


def another_image_on_resumed_align(world: World) -> list[str]:
    command = world.align()
    _stopped(world, command)
    _replace(world.first)
    return command


def other_statistics_on_resumed_align(world: World) -> list[str]:
    assert invoke(world.collect("--bins", 64, output="other.h5")).exit_code == 0
    _stopped(world, world.align("--tau", 1))
    return world.align("--tau", 1, stats="other.h5")


def another_array_on_resume(world: World) -> list[str]:
    command = world.collect(model=f"logits:{world.logits}")
    _stopped(world, command, world.logits / "west" / "2.npy")
    os.utime(world.logits / "east" / "1.npy", ns=(1, 1))
    return command


def overwriting_that_fails(world: World) -> list[str]:
    world.first.write_text("no picture")
    return world.align("--overwrite", output="aligned")


def overwriting_statistics_that_fails(world: World) -> list[str]:
    world.first.write_text("no picture")
    return world.collect("--overwrite", output="stats.h5")


def statistics_of_other_images(world: World) -> list[str]:
    assert invoke(world.collect(images=world.images / "east", output="new.h5")).exit_code == 0
    return world.align(stats=None)


def statistics_of_images_as_they_were(world: World) -> list[str]:
    assert invoke(world.collect(output="new.h5")).exit_code == 0
    _replace(world.first)
    return world.align(stats=None)


def odd_one(place: int, command: str) -> Case:
    """One of three parts, at a place among them, that does not go with the others."""

    suffix = ".h5" if command == "collect" else ""

    def act(world: World) -> list[str]:
        parts = []
        for number, name in enumerate(("east/1", "east/3", "west/0")):
            parts.append(str(world.root / f"part{number}{suffix}"))
            options = (["--flip"] if command == "collect" else ["--tau", "0.3"]) if number == place else []
            making = getattr(world, command)(*options, images=world.images / f"{name}.png", output=parts[-1])
            assert invoke(making).exit_code == 0
        return ["merge", *parts, "--output", str(world.root / "new")]

    return case(f"merge of what {command} made, number {place} odd", act, f"part{place}{suffix} does not go with")


def holding(*names: str, command: str) -> Case:
    """A command into a folder that holds files of others."""

    def act(world: World) -> list[str]:
        for name in names:
            path = world.root / "new" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("precious = 1\n")
        arguments: list[str] = getattr(world, command)()
        return arguments

    return case(f"{command} into a folder with {', '.join(names)}", act, "new", "holds")


def over(name: str, command: str = "collect") -> Case:
    """``--overwrite`` of a file that holds something else."""

    def act(world: World) -> list[str]:
        if command == "merge":
            return ["merge", str(world.stats), "--output", str(world.root / name), "--overwrite"]
        return world.collect("--overwrite", output=name)

    return case(f"{command} over {name}", act, f"{name} is no statistics file")


def linked(target: str, command: str) -> Case:
    """An output behind a link."""

    def act(world: World) -> list[str]:
        (world.root / "away").symlink_to(target)
        arguments: list[str] = getattr(world, command)(output="away/x")
        return arguments

    return case(f"{command} behind a link to {target}", act, "away/x")


def without(path: str, *says: str, command: Callable[[World], list[str]]) -> Case:
    """Something is missing from the predictions."""

    def act(world: World) -> list[str]:
        lost = world.root / path
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        return command(world)

    return case(f"without {path}", act, *says)


def below(command: str) -> Case:
    """An output below a file."""

    def act(world: World) -> list[str]:
        arguments: list[str] = getattr(world, command)(output="stats.h5/x")
        return arguments

    return case(f"{command} below a file", act, "stats.h5/x")


def _vanishing(path: str, *options: str) -> Callable[[World], list[str]]:
    """The network takes images away while it runs."""

    def act(world: World) -> list[str]:
        origin, place = str(world.root / path), str(world.root / "taken")
        code = f"(__import__('subprocess').run(['mv', '-n', '-T', {origin!r}, {place!r}]), scores)[1]"
        world.describe(factory="odd", arguments=f"code = {json.dumps(code)}")
        return world.collect("--workers", 1, *options)

    return act


def _merging(*parts: str, output: str = "new") -> Callable[[World], list[str]]:
    return lambda world: ["merge", *(str(world.root / part) for part in parts), "--output", str(world.root / output)]


def _same_name(kind: Callable[..., Any], name: str) -> Callable[[World], list[str]]:
    """The same statistics under two names."""

    def act(world: World) -> list[str]:
        kind(world.stats, world.root / name)
        return _merging("stats.h5", name)(world)

    return act


CASES: list[Case] = [
    *(over(name) for name in ("tiny.toml", "images/east/1.png", "tiny.py")),
    over("tiny.toml", "merge"),
    *(linked("away", command) for command in ("collect", "align", "report", "finetune")),
    *(linked("nowhere/at/all", command) for command in ("collect", "align", "report")),
    *(below(command) for command in ("collect", "align", "report", "finetune")),
    case("statistics in a name of 300 letters", lambda w: w.collect(output="n" * 300), "too long"),
    case("predictions in a name of 254 letters", lambda w: w.align(stats=None, output="n" * 254), "too long"),
    case("predictions into the statistics", lambda w: w.align(output="stats.h5"), "stats.h5 is no folder"),
    case("statistics into a device", lambda w: w.collect(output="/dev/null"), "/dev/null"),
    case("a report into a device", lambda w: w.report(output="/dev/null"), "/dev/null"),
    case("a report of statistics that are a picture", lambda w: w.report(stats="images/east/1.png"), "1.png"),
    case("a report of images", lambda w: w.report(aligned="images"), "images holds no run.json"),
    case("labels without predictions", lambda w: w.report("--labels", w.labels, aligned=None), "leave out --labels"),
    without("aligned/argmax", "argmax", "1.png", command=lambda w: w.report("--labels", w.labels)),
    without("aligned/predictions", "predictions", "1.png", command=lambda w: w.report("--labels", w.labels)),
    without("aligned/predictions/east/1.png", "1.png", command=_merging("aligned")),
    case("merge of statistics and predictions", _merging("stats.h5", "aligned"), "aligned"),
    case("merge of nothing there", _merging("no.h5"), "no.h5"),
    case("merge of images", _merging("images"), "images holds no run.json"),
    case("merge into a part", _merging("aligned", output="aligned"), "aligned holds predictions already"),
    case("merge of predictions into a file", _merging("aligned", output="stats.h5"), "stats.h5"),
    case("merge of statistics into a folder", _merging("stats.h5", output="aligned"), "aligned"),
    case("merge with a link to a part", _same_name(lambda old, new: new.symlink_to(old), "link.h5"), "twice"),
    case("merge with a second name of a part", _same_name(os.link, "second.h5"), "second.h5", "east/1"),
    case("a folder of images that vanishes", _vanishing("images/west", "--on-error", "skip"), "2 skipped", code=0),
    case("another image on resume", another_image_on_resume, "1.png", "--overwrite starts anew"),
    case("another label on resume", another_label_on_resume, "1.png", "--overwrite starts anew"),
    case("another image on resumed align", another_image_on_resumed_align, "1.png", "--overwrite starts anew"),
    case(
        "other statistics on resumed align", other_statistics_on_resumed_align, "statistics", "--overwrite starts anew"
    ),
    case("another array on resume", another_array_on_resume, "1.png", "--overwrite starts anew"),
    case("overwriting predictions fails", overwriting_that_fails, "1.png"),
    case("overwriting statistics fails", overwriting_statistics_that_fails, "1.png"),
    case("statistics of other images", statistics_of_other_images, "new.h5", "of other images"),
    case("statistics of images as they were", statistics_of_images_as_they_were, "new.h5", "1.png"),
    case("predictions into a folder of images", lambda w: w.align(output="images/out"), "images/out"),
    case(
        "predictions into a glob of images",
        lambda w: w.align(images=w.images / "**" / "*.png", output="images/out"),
        "images/out",
    ),
    case(
        "predictions into a glob of folders of images",
        lambda w: w.align(images=w.images / "*" / "*.png", output="images/out"),
        "images/out",
    ),
    case(
        "predictions beside images of a glob",
        lambda w: w.align(images=w.images / "east" / "*.png", output="images/east/out"),
        "images/east/out",
    ),
    case(
        "predictions beside images of a list",
        lambda w: (
            (w.root / "list.txt").write_text("images/east/1.png\n"),
            w.align(images=w.root / "list.txt", output="images/east/out"),
        )[1],
        "images/east/out",
    ),
    case(
        "predictions that a glob does not find",
        lambda w: w.align(images=w.root / "ima*" / "*" / "*.png", output="out"),
        code=0,
    ),
    *(odd_one(place, command) for place in range(3) for command in ("collect", "align")),
    holding("notes.txt", command="align"),
    holding("predictions/mine.png", command="align"),
    holding("config.toml", command="finetune"),
    holding("config.toml", "run.json", command="finetune"),
    holding("model.toml", command="finetune"),
    case("training into the target", lambda w: w.finetune(output="images/run"), "images/run"),
    case(
        "training into a glob of the target",
        lambda w: w.finetune(output="images/run", target=w.images / "*" / "*.png"),
        "images/run",
    ),
    case("training into the labels", lambda w: w.finetune(output="labels/run"), "labels/run"),
]
