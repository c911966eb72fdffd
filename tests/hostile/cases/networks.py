"""Networks that return something else, and the files they come from."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.hostile.world import Case, World, case, invoke


def odd(code: str, *options: str) -> Callable[[World], list[str]]:
    """A network whose output is what ``code`` makes of ``scores`` and ``images``."""

    def act(world: World) -> list[str]:
        return world.collect(*options, model=world.describe(factory="odd", arguments=f"code = {json.dumps(code)}"))

    return act


def _classifier(labels: str) -> Callable[[World], list[str]]:
    """A network that gives one answer an image, and labels."""

    def act(world: World) -> list[str]:
        model = world.describe(factory="odd", arguments='code = "scores.mean(dim=(2, 3))"')
        return world.collect("--labels", world.root / labels, model=model)

    return act


def _table(world: World) -> list[str]:
    keys = [path.relative_to(world.images).with_suffix("") for path in sorted(world.images.rglob("*.png"))]
    (world.root / "table.csv").write_text("".join(f"{key},0\n" for key in keys))
    return world.collect("--labels", world.root / "table.csv")


def _weights_key(key: str) -> Callable[[World], list[str]]:
    return lambda world: [*weights(TWO)(world), "--weights-key", key]


def described(**change: Any) -> Callable[[World], list[str]]:
    return lambda world: world.collect(model=world.describe(**change))


def weights(save: Any, name: str = "w.pth") -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        if isinstance(save, bytes):
            (world.root / name).write_bytes(save)
        else:
            torch.save(save, world.root / name)
        return world.collect("--weights", world.root / name)

    return act


def file(name: str, data: bytes) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        (world.root / name).write_bytes(data)
        return world.collect(model=str(world.root / name))

    return act


def _hugging_face(**processor: Any) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        small = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "decoder_hidden_size": 8}
        config = SegformerConfig(num_labels=3, num_attention_heads=[1, 1, 1, 1], **small)
        SegformerForSemanticSegmentation(config).save_pretrained(world.root / "hf")
        kind = {"image_processor_type": "SegformerImageProcessor"}
        (world.root / "hf" / "preprocessor_config.json").write_text(json.dumps({**kind, **processor}))
        return world.collect(model=str(world.root / "hf"))

    return act


def _hugging_face_names(id2label: dict[str, str]) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        command = _hugging_face()(world)
        path = world.root / "hf" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": id2label}))
        return command

    return act


def _constant(world: World) -> list[str]:
    model = world.describe(factory="odd", arguments='code = "scores * 0 + 1"')
    for command in (world.collect(model=model), world.align(model=model, stats="new.h5")):
        assert invoke(command).exit_code == 0
    return world.report("--compare", stats="new.h5", aligned="new")


def _stored(change: Callable[[World], Any]) -> Callable[[World], list[str]]:
    """Ready-made logits after a change."""

    def act(world: World) -> list[str]:
        change(world)
        return world.collect(model=f"logits:{world.logits}")

    return act


def _archive(*shape: int, **more: Any) -> Callable[[World], Any]:
    """An archive in the place of the first array."""

    def change(world: World) -> None:
        (world.logits / "east" / "1.npy").unlink()
        np.savez_compressed(world.logits / "east" / "1.npz", scores=np.zeros(shape, np.float32), **more)

    return change


def _toml(text: Callable[[bytes], bytes]) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        world.toml.write_bytes(text(world.toml.read_bytes()))
        return world.collect()

    return act


def _module(text: str) -> Callable[[World], list[str]]:
    def act(world: World) -> list[str]:
        (world.root / "tiny.py").write_text(text)
        return world.collect()

    return act


def _called(model: str) -> Callable[[World], list[str]]:
    return lambda world: world.collect(model=model)


TWO = {
    name: {"head.weight": torch.full((3, 3, 1, 1), value), "head.bias": torch.zeros(3)}
    for name, value in (("student", 0.5), ("teacher", 1.0))
}


def _named_pth(world: World) -> list[str]:
    save_file({"head.weight": WEIGHT, "head.bias": BIAS}, world.root / "w.pth")
    return world.collect("--weights", world.root / "w.pth")


def _calibrator(world: World) -> list[str]:
    torch.save({"f": json.loads}, world.root / "calibrator.pth")
    return world.collect("--calibrator", world.root / "calibrator.pth")


HEADER = {
    "head.weight": {"dtype": "F32", "shape": [3, 3, 1, 1], "data_offsets": [0, 36]},
    "head.bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
}
OVERLAPPING = len(json.dumps(HEADER)).to_bytes(8, "little") + json.dumps(HEADER).encode() + bytes(36)

WEIGHT, BIAS = torch.zeros(3, 3, 1, 1), torch.zeros(3)

CASES: list[Case] = [
    case("one image more", odd("torch.cat([scores, scores])"), "2 images for 1"),
    case("no image", odd("scores[:0]"), "0 images for 1"),
    case("no pixels", odd("scores[:, :, :0]"), "shape [1, 3, 0, 20]"),
    case("nothing", odd("(None)"), "NoneType"),
    case("text", odd("'road'"), "str"),
    case("an empty list", odd("[]"), "list"),
    case("a list within itself", odd("(lambda l: l.append(l) or l)([])"), "1.png"),
    case("huge scores", odd("scores * 0 + 1e37"), "1.png", "1e+37"),
    case("huge negative scores", odd("scores * 0 - 3e38"), "1.png"),
    case("infinity", odd("scores / 0"), "1.png", "not finite"),
    case("not a number", odd("scores * float('nan')"), "1.png", "not finite"),
    case("a sparse tensor", odd("scores.to_sparse()"), "sparse"),
    case("a tensor without values", odd("scores.to('meta')"), "meta"),
    case("a tensor that wants gradients", odd("scores.clone().requires_grad_()"), "4 images", code=0),
    case("a parameter", odd("nn.Parameter(scores)"), "4 images", code=0),
    case("complex scores", odd("scores + 0j"), "complex"),
    case("scores of 8 bits", odd("scores.to(torch.float8_e4m3fn)"), "float8_e4m3fn values"),
    case("quantised scores", odd("torch.quantize_per_tensor(scores, 0.1, 0, torch.qint8)"), "4 images", code=0),
    case("whole numbers for scores", odd("scores.to(torch.uint8)"), "quantised ="),
    case("double scores", odd("scores.double()"), "4 images", code=0),
    case("channels last", odd("scores.permute(0, 2, 3, 1)"), "4 images", code=0),
    case("two outputs of one size", odd("[scores, scores + 1]"), "head =", "[1, 3, 16, 20]"),
    case("sigmoids", odd("scores.sigmoid()"), "sigmoid"),
    case("one channel of three classes", odd("scores[:, :1]"), "one channel", "3 classes"),
    case(
        "a classifier with pictures for labels", _classifier("labels"), "1.png", "answer for a whole image", "key,class"
    ),
    case("a segmenter with a table for labels", _table, "1.png", "answer for each pixel", "label pictures"),
    case("a key of weights of 5000 letters", _weights_key("k" * 5000), "w.pth", "weights_key"),
    case("a key of no weights", lambda w: w.collect("--weights-key", "ema"), "--weights-key", "--weights too"),
    case("weights of two networks", weights(TWO), "w.pth", "student, teacher", "weights_key"),
    case("a mask", odd("(scores > 0)"), "class ids"),
    case("half of the image", odd("scores[..., :10]"), "16x10", "16x20"),
    case("one value everywhere", _constant, "report.html", code=0),
    case("a tensor of inference mode", odd("torch.inference_mode()(self.head)(images)", "--flip"), code=0),
    case("an archive far larger than its image", _stored(_archive(3, 200, 200)), "1.npz", "[3, 200, 200]"),
    case("an archive of two arrays", _stored(_archive(3, 16, 20, other=np.zeros(3))), "1.npz", "logits"),
    case("an array of a vector among maps", _stored(_archive(3)), "per pixel"),
    case("an archive of no pixels", _stored(_archive(3, 0, 20)), "1.npz"),
    case("a description with a mark of Windows", _toml(lambda text: b"\xef\xbb\xbf" + text), "4 images", code=0),
    case("a description with lines of Windows", _toml(lambda text: text.replace(b"\n", b"\r\n")), code=0),
    case("a description in UTF-16", _toml(lambda text: text.decode().encode("utf-16")), "tiny.toml"),
    case("a description of nothing", _toml(lambda text: b""), "tiny.toml", "segmenter.kind"),
    case("a module that does not parse", _module("def (:"), "tiny", "SyntaxError"),
    case("a module of NUL", _module("\0"), "tiny"),
    case("a module without the factory", _module("x = 1"), "tiny", "'make'"),
    *(
        case(f"a model called {name}", _called(name), name)
        for name in ("hf:", "logits:", "tiny:", ":make", "tiny.make", "json:loads", "os:getcwd", "-")
    ),
    case("safetensors called .pth", _named_pth, "4 images", code=0),
    case("safetensors cut short", weights(b"\x10", "w.safetensors"), "w.safetensors"),
    case("safetensors of a huge header", weights(b"\0" * 7 + b"\x10{}", "w.safetensors"), "w.safetensors"),
    case("safetensors that overlap", weights(OVERLAPPING, "w.safetensors"), "w.safetensors"),
    case("torch weights called .safetensors", weights({"head.weight": WEIGHT}, "w.safetensors"), "w.safetensors"),
    case("a calibrator of code", _calibrator, "calibrator.pth"),
    case("class ids", odd("scores.argmax(dim=1)"), "class ids"),
    case("a network that leaves", odd("sys.exit(3)"), "sys.exit"),
    case("a network that fails", odd("1 / 0"), "ZeroDivisionError"),
    case("a network that takes all memory", odd("torch.empty(1 << 50)"), "memory", "1.png", "--slide"),
    case("a network that recurses", odd("(lambda f: f(f))(lambda f: f(f))"), "RecursionError"),
    case("a factory that leaves", described(factory="leave"), "sys.exit"),
    case("a factory of nothing", described(factory="COLORS"), "tiny"),
    case("a NUL in a class name", described(names=["a\0b", "c", "d"]), "tiny.toml", "names"),
    case("an escape sequence in a class name", described(names=["a\x1b[2J", "c", "d"]), "names"),
    case("a class twice", described(names=["a", "a", "d"]), "tiny.toml", "names"),
    case("brackets in class names", described(names=["[red]a", "[/]b", ":smile:"]), "4 images", code=0),
    case("a date for an argument", described(arguments="bias = 2020-01-01"), "tiny.toml", "arguments"),
    case("not a number for an argument", described(arguments="bias = nan"), "tiny.toml", "arguments"),
    case("a number of 400 digits", described(arguments=f"bias = 1{'0' * 400}"), "tiny.toml"),
    case("a number of 5000 digits", described(arguments=f"bias = 1{'0' * 5000}"), "tiny.toml"),
    case("5000 brackets", described(arguments=f"bias = {'[' * 5000}{']' * 5000}"), "tiny.toml"),
    case("an unknown key", described(more="\n[preprocess]\nx = 1\n"), "tiny.toml", "preprocess"),
    case("a size beyond sense", described(more="\n[preprocessing]\nsize = [1000000000, 8]\n"), "tiny.toml", "size"),
    case("a padding beyond sense", described(more="\n[preprocessing]\nmultiple_of = 100000000\n"), "multiple_of"),
    case("weights of nothing", weights(b""), "w.pth"),
    case("weights of noise", weights(bytes(range(256)) * 9), "w.pth"),
    case("weights of code", weights({"head.weight": WEIGHT, "f": json.loads}), "w.pth", "Python objects"),
    case("weights of a list", weights([WEIGHT]), "w.pth"),
    case("sparse weights", weights({"head.weight": WEIGHT.to_sparse(), "head.bias": BIAS}), "w.pth", "head.weight"),
    case("weights without values", weights({"head.weight": WEIGHT.to("meta"), "head.bias": BIAS}), "head.weight"),
    case("complex weights", weights({"head.weight": WEIGHT + 0j, "head.bias": BIAS}), "w.pth", "head.weight"),
    case(
        "weights that are not numbers", weights({"head.weight": WEIGHT / 0, "head.bias": BIAS}), "w.pth", "head.weight"
    ),
    case("weights of another shape", weights({"head.weight": WEIGHT[:2], "head.bias": BIAS}), "head.weight"),
    case("weights under a number", weights({1: WEIGHT}), "w.pth"),
    case("a program cut short", file("net.pt2", b"PK\x03\x04" + bytes(100)), "net.pt2"),
    case("a program of noise", file("net.ts", bytes(range(256)) * 4), "net.ts"),
    case("a graph of noise", file("net.onnx", bytes(range(256)) * 4), "net.onnx"),
    case("class names by ids with a gap", _hugging_face_names({"0": "a", "2": "b", "5": "c"}), "hf", "ids 0, 2, 5"),
    case("an image_mean of text", _hugging_face(image_mean="grey"), "hf", "image_mean"),
    case("an image_mean of two", _hugging_face(image_mean=[0.5, 0.5]), "hf", "image_mean"),
    case("an image_std of zero", _hugging_face(image_std=[0, 0, 0]), "hf", "image_std"),
    case("a model of nowhere", lambda w: w.collect(model="hf:nobody/nothing-at-all"), "nobody/nothing-at-all"),
]
