"""Statistics and run records with one thing edited: everything that reads them says the file and the field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.hostile.world import Case, World, case, invoke

Edit = Callable[[h5py.File], Any]


def edited(edit: Edit, command: str = "report") -> Callable[[World], list[str]]:
    """Statistics after an edit, given to a command."""

    def act(world: World) -> list[str]:
        with h5py.File(world.stats, "r+") as file:
            edit(file)
        if command == "merge":
            return ["merge", str(world.stats), "--output", str(world.root / "new.h5")]
        arguments: list[str] = getattr(world, command)()
        return arguments

    return act


def replaced(name: str, values: Any, **options: Any) -> Edit:
    """Put something else in the place of a dataset."""

    def edit(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    return edit


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Change a dataset's values."""
    return lambda file: replaced(name, change(file[name][...]))(file)


def attribute(name: str, value: Any, group: str = "/") -> Edit:
    """Change an attribute."""
    return lambda file: file[group].attrs.__setitem__(name, value)


def _put(index: Any, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[index] = value
        return values

    return change


def _declared(file: h5py.File) -> None:
    del file["cells/pseudo/counts"]
    file.create_dataset("cells/pseudo/counts", (3, 3, 1 << 40), dtype="i8", chunks=(1, 1, 1 << 10), compression="gzip")


def _external_values(file: h5py.File) -> None:
    del file["confusion"]
    file.create_dataset("confusion", (3, 3), dtype="i8", external=[("/etc/passwd", 0, 72)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 3), dtype="i8")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", (3, 3))
    del file["confusion"]
    file.create_virtual_dataset("confusion", layout)


def _link(target: Any, name: str = "confusion") -> Edit:
    def edit(file: h5py.File) -> None:
        del file[name]
        file[name] = target

    return edit


EDITS: list[tuple[str, Edit, str]] = [
    ("edges reversed", changed("edges", lambda edges: edges[::-1]), "edges"),
    ("edges of nothing", replaced("edges", np.zeros(0)), "edges"),
    ("edges of one bin", replaced("edges", np.array([-1.0, 1.0])), "edges"),
    ("edges beyond all sense", changed("edges", lambda edges: edges * 2.0**900), "edges"),
    ("edges in steps", changed("edges", _put(3, -0.1)), "edges"),
    ("edges as text", replaced("edges", "text"), "edges"),
    ("edges with NaN", changed("edges", _put(3, np.nan)), "edges"),
    ("no edges", lambda file: file.__delitem__("edges"), "edges"),
    ("no cells", lambda file: file.__delitem__("cells"), "cells"),
    ("cells that are a dataset", replaced("cells", np.zeros(3)), "cells"),
    ("cells of no source", lambda file: file["cells"].move("soft", "hard"), "hard"),
    ("counts below nothing", changed("cells/pseudo/counts", _put((0, 0, 0), -1)), "cells/pseudo/counts"),
    ("counts with NaN", changed("cells/soft/counts", _put((0, 0, 0), np.nan)), "cells/soft/counts"),
    ("counts of one channel", changed("cells/pseudo/counts", _put((0, 1, 5), 9)), "cells/pseudo/counts"),
    ("counts of other pixels", changed("cells/pseudo/counts", lambda counts: counts * 2), "cells/pseudo/counts"),
    ("counts of two classes", changed("cells/pseudo/counts", lambda counts: counts[:2]), "cells/pseudo/counts"),
    ("complex counts", changed("cells/pseudo/counts", lambda counts: counts + 0j), "cells/pseudo/counts"),
    ("counts that are not there", _declared, "cells/pseudo/counts declares"),
    ("a confusion of half pixels", changed("confusion", lambda counts: counts / 2), "confusion"),
    ("a confusion elsewhere", _external_values, "confusion"),
    ("a virtual confusion", _virtual, "confusion"),
    ("a link to a file", _link(h5py.ExternalLink("/etc/passwd", "/")), "confusion is a link to elsewhere"),
    ("a link to nowhere", _link(h5py.SoftLink("/nowhere")), "confusion is a link to elsewhere"),
    ("sampled classes beyond", changed("sample/predicted", _put(0, 7)), "sample/predicted"),
    ("sampled labels beyond", changed("sample/labels", _put(0, 7)), "sample/labels"),
    ("sampled logits of NaN", changed("sample/logits", _put((0, 0), np.nan)), "sample/logits"),
    ("sampled logits beyond", changed("sample/logits", _put((0, 0), 1e38)), "sample/logits"),
    ("priorities below nothing", changed("sample/priorities", _put(0, -1)), "sample/priorities"),
    ("more sampled than seen", changed("sample/seen", lambda seen: seen * 0), "sample"),
    ("a sample of no size", attribute("capacity", -5, "sample"), "sample"),
    ("a capacity of text", attribute("capacity", "many", "sample"), "capacity"),
    ("no sample", lambda file: file.__delitem__("sample"), "sample"),
    ("no classes", attribute("classes", []), "classes"),
    ("classes of numbers", attribute("classes", [1, 2, 3]), "classes"),
    ("a class twice", attribute("classes", ["road", "road", "car"]), "road"),
    ("a class that commands", attribute("classes", ["road\x1b[2J", "tree", "car"]), "class names"),
    ("a palette of two", attribute("palette", np.zeros((2, 3), np.uint8)), "palette"),
    ("a palette of fractions", attribute("palette", np.zeros((3, 3))), "palette"),
    ("ids below nothing", attribute("original_ids", np.array([-1, 0, 1])), "original_ids"),
    ("a version of text", attribute("format_version", "new"), "format_version"),
    ("a version of tomorrow", attribute("format_version", 99), "format version 99"),
    ("a space of its own", attribute("logit_space", "outer"), "outer"),
    ("pixels below nothing", attribute("pixels", -1), "pixels"),
    ("images of text", attribute("images", "four"), "images"),
    ("images of others", attribute("images", 5), "progress/images"),
    ("a model of text", attribute("model", "network"), "stats.h5"),
    ("a model of a list", attribute("model", "[1]"), "model"),
    ("complete as text", attribute("complete", "yes"), "complete"),
    ("an image twice", lambda f: replaced("progress/images", [b"a", b"a", b"b", b"c"])(f), "progress/images"),
    ("names of numbers", replaced("progress/images", np.arange(4)), "progress/images"),
    ("provenance of a list", replaced("provenance", "[1, 2]"), "provenance"),
    ("provenance of a number", replaced("provenance", 5), "provenance"),
    ("skipped as a number", replaced("provenance", '{"skipped": 3}'), "provenance.skipped"),
    ("nested provenance", replaced("provenance", '{"merged": ' * 5000), "stats.h5"),
    ("a shard of text", replaced("provenance", '{"shard": {"number": "x", "of": 2}}'), "provenance.shard"),
]


def record(change: Callable[[dict[str, Any]], Any]) -> Callable[[World], list[str]]:
    """A ``run.json`` after an edit, reported on."""

    def act(world: World) -> list[str]:
        path = world.aligned / "run.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return world.report()

    return act


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """Another value of a field; dots lead into it."""

    def change(content: dict[str, Any]) -> None:
        *path, last = name.split("/")
        for key in path:
            content = content[key]
        content[last] = value

    return change


RECORDS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    *((f"no {name}", lambda content, name=name: content.pop(name), name) for name in ("classes", "settings", "images")),
    *((f"{name} of a number", put(name, 7), name) for name in ("classes", "palette", "ids", "model", "changed")),
    ("classes of numbers", put("classes", [1, 2, 3]), "classes"),
    ("a palette of two", put("palette", [[0, 0, 0]] * 2), "palette"),
    ("a palette beyond", put("palette", [[0, 0, 300]] * 3), "palette"),
    ("ids twice", put("ids", [1, 1, 2]), "ids"),
    ("ids beyond", put("ids", [0, 1, 10**9]), "ids"),
    ("pixels below nothing", put("pixels_before", [-1, 0, 0]), "pixels_before"),
    ("pixels that do not add up", put("pixels_after", [1, 2, 3]), "pixels_after"),
    ("huge pixels", put("pixels_changed", 10**400), "pixels_changed"),
    ("a share of two", lambda content: content["changed"].update({"east/1": 2.0}), "changed"),
    ("a method of its own", put("settings/method", "magic"), "settings.method"),
    ("a strength of text", put("settings/tau", "much"), "settings.tau"),
    ("a strength of NaN", put("settings/tau", float("nan")), "settings.tau"),
    ("statistics of nothing", put("statistics", {}), "statistics.file"),
    ("a digest of a number", put("statistics/sha256", 7), "statistics.sha256"),
    ("skipped as a list", put("provenance/skipped", [1]), "provenance.skipped"),
    ("classified beyond", put("classified", {"east/1": [0, 9]}), "classified"),
    ("classified for no image", put("classified", {"x": [0, 1]}), "classified"),
    ("groups of text", put("model/groups", "all"), "model.groups"),
]


def _bytes(data: bytes) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        (world.aligned / "run.json").write_bytes(data)
        return world.report()

    return act


def _prediction(array: np.ndarray) -> Callable[[World], list[str]]:
    """A prediction in the gallery, without labels."""
    from PIL import Image

    def act(world: World) -> list[str]:
        for path in (world.aligned / "predictions").rglob("*.png"):
            Image.fromarray(array).save(path)
        content = json.loads((world.aligned / "run.json").read_text())
        content["changed"] = dict.fromkeys(content["changed"], 0.5)
        (world.aligned / "run.json").write_text(json.dumps(content))
        return world.report()

    return act


def _outside(world: World) -> list[str]:
    path: Path = world.aligned / "run.json"
    path.write_text(path.read_text().replace('"east/1"', '"../../../east/1"'))
    return world.report("--labels", world.labels)


def _without_favour(world: World) -> list[str]:
    path: Path = world.aligned / "run.json"
    content = json.loads(path.read_text())
    del content["settings"]["favour"]
    path.write_text(json.dumps(content))
    return world.report()


MAPPING = 'mapping = { "1" = "road", "2" = "tree", "3" = "car" }'


def _described_labels(said: str) -> Callable[[World], list[str]]:
    """Labels that count from 1, read as the description of the model says that predicted."""
    from PIL import Image

    def act(world: World) -> list[str]:
        world.describe(arguments="bias = 0.0", more=f"\n[labels]\n{said}\n")
        for path in world.labels.rglob("*.png"):
            Image.fromarray(np.array(Image.open(path)) + 1).save(path)
        for command in (world.collect(output="own.h5"), world.align("--tau", 0, stats="own.h5", output="own")):
            assert invoke(command).exit_code == 0
        return world.report("--labels", world.labels, stats="own.h5", aligned="own")

    return act


CASES: list[Case] = [
    *(
        case(name, edited(edit, ("report", "align", "merge")[place % 3]), "stats.h5", says)
        for place, (name, edit, says) in enumerate(EDITS)
    ),
    *(case(f"a record with {name}", record(change), "run.json", says) for name, change, says in RECORDS),
    case("a record of a list", _bytes(b"[]"), "run.json"),
    case("a record of 5000 brackets", _bytes(b"[" * 100_000), "run.json"),
    case("a record of 5000 digits", _bytes(b'{"format": 1' + b"0" * 5000 + b"}"), "run.json"),
    case("a record in another encoding", _bytes("{}".encode("utf-16")), "run.json"),
    case("a record of nothing", _bytes(b""), "run.json"),
    case("a prediction of another size", _prediction(np.zeros((3, 3), np.uint8)), "predictions", "3x3"),
    case("a prediction of no class", _prediction(np.full((16, 20), 9, np.uint8)), "predictions"),
    case("a prediction in colour", _prediction(np.full((16, 20, 3), (9, 8, 7), np.uint8)), "predictions"),
    case("a record of before it held what is favoured", _without_favour, "report.html", code=0),
    case("labels as the description says", _described_labels('encoding = "ids-from-1"'), "report.html", code=0),
    case("labels as its mapping says", _described_labels(MAPPING), "report.html", code=0),
    case("a name that leads out", _outside, "leads out"),
]
