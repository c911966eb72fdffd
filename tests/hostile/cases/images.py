"""Images, labels and their names: pipes, odd names, damage."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from tests.hostile.world import SIZE, Case, World, case


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, format="PNG")


def _pipe(world: World) -> list[str]:
    os.mkfifo(world.images / "east" / "pipe.png")
    return world.collect()


def _pipe_label(world: World) -> list[str]:
    label = world.labels / "east" / "1.png"
    label.unlink()
    os.mkfifo(label)
    return world.collect("--labels", world.labels)


def _pipe_array(world: World) -> list[str]:
    array = world.logits / "east" / "1.npy"
    array.unlink()
    os.mkfifo(array)
    return world.collect(model=f"logits:{world.logits}")


def _device(world: World) -> list[str]:
    (world.images / "zero.png").symlink_to("/dev/zero")
    return world.collect()


def _dangling(world: World) -> list[str]:
    (world.images / "gone.png").symlink_to("nowhere.png")
    return world.collect()


def _circle(world: World) -> list[str]:
    (world.images / "round").symlink_to(world.images)
    return world.collect()


def _clash(world: World) -> list[str]:
    picture(world.images / "x.jpg")
    picture(world.images / "x.png" / "y.png")
    return world.align()


def _named(name: str, command: str = "collect") -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        picture(world.images / name)
        arguments: list[str] = getattr(world, command)()
        return arguments

    return act


def _not_utf_8(command: str) -> Callable[[World], list[str]]:
    return _named(os.fsdecode(b"caf\xe9.png"), command)  # codespell:ignore


def _normal_forms(world: World) -> list[str]:
    picture(world.images / unicodedata.normalize("NFC", "café.png"))
    label = world.labels / unicodedata.normalize("NFD", "café.png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(label)
    return world.collect("--labels", world.labels)


def _bytes(data: bytes | int) -> Callable[[World], list[str]]:
    """The first image with other bytes, or cut to so many."""

    def act(world: World) -> list[str]:
        world.first.write_bytes(world.first.read_bytes()[:data] if isinstance(data, int) else data)
        return world.collect()

    return act


def _header(width: int, height: int) -> bytes:
    """A PNG's beginning that declares a size."""
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _skipping(world: World) -> list[str]:
    world.first.write_text("no picture")
    return world.align("--on-error", "skip", "--json")


def _skipping_all(world: World) -> list[str]:
    for path in world.images.rglob("*.png"):
        path.write_text("no picture")
    return world.collect("--on-error", "skip")


def _label(array: np.ndarray, encoding: str = "auto") -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        Image.fromarray(array).save(world.labels / "east" / "1.png")
        return world.collect("--labels", world.labels, "--label-encoding", encoding)

    return act


def _label_file(name: str, array: np.ndarray, **how: Any) -> Callable[[World], list[str]]:
    """Another file in the place of the first label."""

    def act(world: World) -> list[str]:
        (world.labels / "east" / "1.png").unlink()
        Image.fromarray(array).save(world.labels / "east" / name, **how)
        return world.collect("--labels", world.labels)

    return act


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def _image_file(name: str, mode: str, size: tuple[int, int] = SIZE, **how: Any) -> Callable[[World], list[str]]:
    """One image more, of a kind."""

    def act(world: World) -> list[str]:
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).convert(mode).save(world.images / name, **how)
        return world.align()

    return act


def _frames(name: str) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        first, second = (Image.open(world.images / "east" / f"{number}.png") for number in (1, 3))
        first.save(world.images / name, save_all=True, append_images=[second])
        return world.align()

    return act


def _no_label(world: World) -> list[str]:
    (world.labels / "east" / "1.png").unlink()
    return world.collect("--labels", world.labels)


IDS = np.arange(SIZE[0], dtype=np.uint8)[:, None].repeat(SIZE[1], axis=1) % 3


def _list(text: str | bytes) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        data = text.replace("ROOT", str(world.root)).encode() if isinstance(text, str) else text
        (world.root / "list.txt").write_bytes(data)
        return world.collect(images=world.root / "list.txt")

    return act


def _array(array: np.ndarray | bytes, name: str = "east/1.npy") -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        path = world.logits / name
        if isinstance(array, bytes):
            path.write_bytes(array)
        else:
            np.save(path, array, allow_pickle=True)
        return world.collect(model=f"logits:{world.logits}")

    return act


def _odd_first_array(world: World) -> list[str]:
    np.save(world.logits / "east" / "1.npy", np.zeros((5, *SIZE), np.float32))
    return world.collect(model=f"logits:{world.logits}")


def _declared(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


LONG = "n" * 236

CASES: list[Case] = [
    case("a pipe among the images", _pipe, "pipe.png", "no regular file"),
    case("a pipe for a label", _pipe_label, "1.png", "no regular file"),
    case("a pipe for an array", _pipe_array, "1.png", "there are no logits for"),
    case("a device among the images", _device, "zero.png", "no regular file"),
    case("a link to nothing", _dangling, "gone.png", "does not exist"),
    case("a link back up", _circle, "4 images", code=0),
    case("a picture beside a folder of its prediction's name", _clash, "x.jpg", "x.png/y.png"),
    case("a name that is not UTF-8", _not_utf_8("collect"), "5 images", code=0),
    case("a prediction whose name is not UTF-8", _not_utf_8("align"), "5 images", code=0),
    case("a name of 240 bytes", _named(f"{LONG}.png", "align"), "5 images", code=0),
    case("a name with brackets", _named("[bold]x[/].png", "align"), "5 images", code=0),
    case("a name that commands the terminal", _named("a\x1b[2Jb.png"), "5 images", code=0),
    case("a name with a line break", _named("a\nb.png", "align"), "5 images", code=0),
    case("an image in NFC, its label in NFD", _normal_forms, "5 images", code=0),
    case("** beside other letters", lambda w: w.collect(images=w.images / "**.png"), "**", "**/"),
    case("a glob of nothing", lambda w: w.collect(images=w.images / "*.gif"), "*.gif"),
    case("a glob that is no pattern", lambda w: w.collect(images=w.images / "[.png"), "[.png"),
    case("a name too long to exist", lambda w: w.collect(images="x" * 5000), "x" * 20, "too long"),
    case("a NUL in a name", lambda w: w.collect(images="x\0y"), "x\\x00y", code=2),
    case("an image of no bytes", _bytes(b""), "1.png"),
    case("an image cut in its header", _bytes(20), "1.png"),
    case("an image cut in its pixels", _bytes(200), "1.png"),
    case("an image of 4 billion pixels", _bytes(_header(65535, 65535)), "1.png"),
    case("an image of no width", _bytes(_header(0, 16)), "1.png"),
    case("an image of a whole disk", _bytes(_header(2**31 - 1, 2**31 - 1)), "1.png"),
    case("skips are said in JSON and to the quiet", _skipping, "skipped east/1", '"east/1"', code=0),
    case("nothing to count", _skipping_all, "no image could be read"),
    case("a label of another size", _label(np.zeros((3, 3), np.uint8)), "labels", "1.png", "3x3"),
    case("a label of a strange value", _label(np.full(SIZE, 77, np.uint8), "ids"), "1.png", "77", "[labels.mapping]"),
    case("a strange value in one label of several", _label(np.full(SIZE, 77, np.uint8)), "77 only in", "1.png"),
    case("a label of a huge value", _label(np.full(SIZE, 60000, np.uint16)), "1.png", "60000"),
    case("a label of RGBA", _label_file("1.png", np.stack([IDS] * 3 + [IDS * 0], axis=-1)), "4 images", code=0),
    case("a label of 16 bits", _label_file("1.png", IDS.astype(np.uint16)), "4 images", code=0),
    case("a label of floats that are ids", _label_file("1.tif", IDS.astype(np.float32)), "4 images", code=0),
    case("a label of halves", _label_file("1.tif", IDS + np.float32(0.5)), "1.tif", "whole numbers"),
    case("a label of NaN", _label_file("1.tif", IDS * np.float32(np.nan)), "1.tif", "whole numbers"),
    case("a label below nothing", _label_file("1.tif", IDS.astype(np.int32) - 5), "1.tif", "whole numbers"),
    case("a label as JPEG", _label_file("1.jpg", IDS), "no label found for", "1.png"),
    case("a JPEG called PNG for a label", _label_file("1.png", IDS * 100, format="JPEG"), "1.png"),
    case("a label that is turned", _label_file("1.png", IDS.T.copy(), exif=_turned()), "4 images", code=0),
    case("a label in two colours", _label_file("1.png", np.stack([IDS, IDS * 3, IDS], axis=-1)), "1.png", "colour"),
    case("no label for one", _no_label, "no label found for", "1.png"),
    case("the images for labels", lambda w: w.collect("--labels", w.images), "no label found for"),
    case("an image for print", _image_file("z.jpg", "CMYK"), "5 images", code=0),
    case("a grey image with alpha", _image_file("z.png", "LA"), "5 images", code=0),
    case("an image that is turned", _image_file("z.jpg", "RGB", exif=_turned()), "5 images", code=0),
    case("an image of one pixel", _image_file("z.png", "RGB", (1, 1)), "5 images", code=0),
    case("an image of one row", _image_file("z.png", "RGB", (1, 5000)), "5 images", code=0),
    case("an image of floats", _image_file("z.tif", "F"), "z.tif", "range = "),
    case("an image of several frames", _frames("z.tif"), "5 images", code=0),
    case("an image that moves", _frames("z.webp"), "5 images", code=0),
    case("a list of nothing", _list("# nothing\n"), "list.txt"),
    case("a list of what is not there", _list("images/none.png\n"), "list.txt", "line 1"),
    case("a list with a NUL", _list("images/a\0b.png\n"), "list.txt", "line 1"),
    case("a list in another encoding", _list("caf\xe9.png\n".encode("utf-16")), "list.txt"),  # codespell:ignore
    case("a list of folders", _list("images\n"), "list.txt", "line 1"),
    case("an array of text", _array(np.array(["a"])), "1.npy"),
    case("an array of objects", _array(np.array([object()])), "1.npy", "pickled"),
    case("a complex array", _array(np.zeros((3, *SIZE), np.complex64)), "1.npy"),
    case("an array of no pixels", _array(np.zeros((3, 0, 20), np.float32)), "1.npy"),
    case("an array of no dimensions", _array(np.array(1, np.float32)), "1.npy"),
    case("an array of huge numbers", _array(np.full((3, *SIZE), 1e37, np.float32)), "1.npy", "1e+37"),
    case("an array beyond single precision", _array(np.full((3, *SIZE), 1e300)), "1.npy"),
    case("an array that declares a disk", _array(_declared("(3, 1000000000, 1000000)")), "1.npy"),
    case("an array that declares less than nothing", _array(_declared("(3, -5, 7)")), "1.npy"),
    case("an array cut short", _array(_declared("(3, 16, 20)")), "1.npy"),
    case("an archive of nothing", _array(b"PK\x05\x06" + bytes(18), "east/3.npz"), "3.np"),
    case("the odd array of several, the first", _odd_first_array, "1.npy", "5 channels"),
]
