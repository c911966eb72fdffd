"""Outputs that are somebody else's, or the input itself; inputs that change between two runs."""

import os
from pathlib import Path

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


CASES: list[Case] = [
    case("another image on resume", another_image_on_resume, "1.png", "--overwrite starts anew"),
    case("another label on resume", another_label_on_resume, "1.png", "--overwrite starts anew"),
    case("another image on resumed align", another_image_on_resumed_align, "1.png", "--overwrite starts anew"),
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
