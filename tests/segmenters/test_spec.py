from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blda_cli.errors import BldaError
from blda_cli.segmenters.spec import (
    ClassesSection,
    LabelsSection,
    NetworkSection,
    PreprocessingSection,
    SegmenterSpec,
    parse_model,
    to_toml,
    with_changes,
)

FULL = """
[segmenter]
kind = "python"
factory = "espnet:espnet"
arguments = {p = 2, name = "x", nested = {deep = [1.5, true]}}
weights = "espnet.pth"
weights_key = "ema_model"
head = 1
channels = 19

[preprocessing]
color = "bgr"
mean = [72.39, 82.91, 73]
std = [45.32, 46.15, 44.91]
scale = 255.0
size = [512, 1024]
multiple_of = 32
bits = 12
margin = 8
output = "sigmoid"
quantised = [0.5, 128]

[classes]
names = "cityscapes"
background = "void"
palette = [[0, 0, 0], [1, 2, 255]]
[classes.groups]
sky = ["sky"]
"any thing" = ["building", "wall"]

[labels]
encoding = "cityscapes"
orientation = "stored"
[labels.mapping]
7 = "road"
8 = "road"
"""


def write(folder: Path, text: str) -> str:
    file = folder / "net.toml"
    file.write_text(text)
    return str(file)


def test_every_key_is_read(tmp_path: Path) -> None:
    spec = parse_model(write(tmp_path, FULL))
    assert spec == SegmenterSpec(
        NetworkSection(
            kind="python",
            factory="espnet:espnet",
            arguments={"p": 2, "name": "x", "nested": {"deep": [1.5, True]}},
            weights=tmp_path / "espnet.pth",
            weights_key="ema_model",
            head=1,
            channels=19,
        ),
        PreprocessingSection(
            "bgr",
            (72.39, 82.91, 73.0),
            (45.32, 46.15, 44.91),
            255.0,
            (512, 1024),
            32,
            "sigmoid",
            bits=12,
            margin=8,
            quantised=(0.5, 128.0),
        ),
        ClassesSection(
            "cityscapes",
            ((0, 0, 0), (1, 2, 255)),
            {"sky": ("sky",), "any thing": ("building", "wall")},
            background="void",
        ),
        LabelsSection("cityscapes", {"7": "road", "8": "road"}, "stored"),
        tmp_path,
    )


def test_weights_given_beside_replace_those_in_the_file(tmp_path: Path) -> None:
    spec = parse_model(write(tmp_path, FULL), Path("other.safetensors"))
    assert spec.segmenter.weights == Path("other.safetensors")
    assert spec.segmenter.weights_key is None
    assert parse_model(write(tmp_path, FULL), None, "teacher").segmenter.weights_key == "teacher"
    assert parse_model(write(tmp_path, FULL), Path("o.pth"), "teacher").segmenter.weights_key == "teacher"


def test_a_key_of_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BldaError, match=r"segmenter\.weights_key chooses among the networks of weights"):
        parse_model(write(tmp_path, FULL.replace('weights = "espnet.pth"', "")))
    with pytest.raises(BldaError, match="--weights-key chooses among the networks of a weights file"):
        parse_model("a:b", None, "teacher")
    onnx = '[segmenter]\nkind = "onnx"\npath = "a.onnx"\nweights_key = "x"'
    with pytest.raises(BldaError, match="means nothing for kind onnx"):
        parse_model(write(tmp_path, onnx))


def test_written_and_read_again_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "espnet.py").write_text("")
    spec = parse_model(write(tmp_path, FULL))
    run = tmp_path / "run" / "one"
    run.mkdir(parents=True)
    again = parse_model(write(run, to_toml(spec, run)))
    assert again.segmenter.weights is not None
    assert again.segmenter.weights.resolve() == tmp_path / "espnet.pth"
    assert again.segmenter.factory == "../../espnet.py:espnet"
    assert replace(again, segmenter=spec.segmenter, folder=spec.folder) == spec
    assert to_toml(again, run) == to_toml(spec, run)


text = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12)


@settings(deadline=None, max_examples=50)
@given(
    groups=st.dictionaries(text, st.lists(text, min_size=1, max_size=3, unique=True).map(tuple), max_size=4),
    names=st.none() | text | st.lists(text, min_size=1, unique=True).map(tuple),
    scale=st.none() | st.floats(1e-6, 1e6),
)
def test_any_names_and_numbers_survive_writing(
    tmp_path_factory: pytest.TempPathFactory,
    groups: dict[str, tuple[str, ...]],
    names: str | tuple[str, ...] | None,
    scale: float | None,
) -> None:
    folder = tmp_path_factory.mktemp("spec")
    spec = SegmenterSpec(
        NetworkSection("huggingface", path="someone/some-model"),
        PreprocessingSection(scale=scale),
        ClassesSection(names, None, groups),
        folder=folder,
    )
    assert parse_model(write(folder, to_toml(spec, folder))) == spec


@pytest.mark.parametrize(
    ("model", "kind", "where"),
    [
        ("hf:nvidia/segformer-b0", "huggingface", "nvidia/segformer-b0"),
        ("hf:somewhere", "huggingface", "somewhere"),
        ("folder", "huggingface", "folder"),
        ("net.pt2", "exported", "net.pt2"),
        ("sub/net.ts", "torchscript", "sub/net.ts"),
        ("net.onnx", "onnx", "net.onnx"),
        ("logits:folder", "logits", "folder"),
        ("package.module:factory", "python", "package.module:factory"),
        ("nets/espnet.py:factory", "python", "nets/espnet.py:factory"),
    ],
)
def test_short_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, kind: str, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    spec = parse_model(model)
    assert spec.segmenter.kind == kind
    assert where in (spec.segmenter.path, spec.segmenter.factory)
    assert spec.folder == tmp_path


def test_paths_are_relative_to_the_file_and_hub_names_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    section = '[segmenter]\nkind = "huggingface"\npath = "{}"\n'
    assert parse_model(write(tmp_path, section.format("mine"))).segmenter.path == str(tmp_path / "mine")
    assert parse_model(write(tmp_path, section.format("hub/name"))).segmenter.path == "hub/name"
    onnx = '[segmenter]\nkind = "onnx"\npath = "net.onnx"\n'
    assert parse_model(write(tmp_path, onnx)).segmenter.path == str(tmp_path / "net.onnx")


PYTHON = '[segmenter]\nkind = "python"\nfactory = "a:b"\n'


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (PYTHON + 'weight = "x"', "unknown key segmenter.weight; the nearest known one is segmenter.weights"),
        (PYTHON + "[preprocess]\nscale = 1", "unknown key preprocess; the nearest known one is preprocessing"),
        (PYTHON + "[classes]\nname = 1", "unknown key classes.name; the nearest known one is classes.names"),
        (PYTHON + "[labels]\nencodings = 1", "the nearest known one is labels.encoding"),
        (PYTHON + 'channels = "19"', 'segmenter.channels = "19" should be a whole number from 1 to 65536'),
        (PYTHON + "channels = true", "a whole number from 1 to 65536"),
        (PYTHON + "path = 'x'", "path means nothing for kind python"),
        (PYTHON + '[preprocessing]\ncolor = "rbg"', "one of rgb, bgr"),
        (
            PYTHON + "[preprocessing]\nmean = [1, 2]",
            "mean has 2 numbers: give one for each of the three",
        ),
        (PYTHON + "[preprocessing]\nmean = [nan, 0, 0]", "one number per channel"),
        (PYTHON + "[preprocessing]\nstd = [1, 0, 1]", "one number per channel, each a number above 0"),
        (PYTHON + "[preprocessing]\nbands = [1, 2]\nstd = [1]", "std has 1 numbers: give one for each of the 2 bands"),
        (PYTHON + '[preprocessing]\nbands = [1]\ncolor = "rgb"', "bands says the order of the channels: remove color"),
        (PYTHON + "[preprocessing]\nbands = [0]", "a list of band numbers from 1, or of names"),
        (PYTHON + "[preprocessing]\nrange = [5, 5]", r"range = \[5.0, 5.0\] should be \[low, high\]"),
        (PYTHON + "[preprocessing]\nscale = 0", "should be a number above 0"),
        (PYTHON + "[preprocessing]\nsize = 512", r"\[height, width\]"),
        (PYTHON + "[preprocessing]\nmean = [123.7, 116.3, 103.5]", "add scale = 1.0"),
        (PYTHON + '[classes]\nnames = ["a", "a"]', "different class names"),
        (
            PYTHON + "[classes]\npalette = [[0, 0, 256]]",
            "each a whole number from 0 to 255",
        ),
        (PYTHON + "[classes.groups]\nsky = 'sky'", 'groups.sky = "sky" should be a list of different class names'),
        ('[segmenter]\nkind = "pythons"', "one of python"),
        ("[segmenter]\nfactory = 'a:b'", "kind is missing"),
        ("[segmenter]\nkind = 'onnx'", "path is missing"),
        ("kind = onnx", "not TOML"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(BldaError, match=message) as caught:
        parse_model(write(tmp_path, toml))
    assert "net.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("missing.toml", "no such file"),
        ("net.pth", "weights and no network"),
        ("empty", "no config.json"),
        ("nothing", "no such file or folder"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BldaError, match=message):
        parse_model(model)


def test_weights_for_a_kind_that_has_its_own_are_refused() -> None:
    with pytest.raises(BldaError, match="--weights: onnx models hold their weights themselves"):
        parse_model("net.onnx", Path("w.pth"))


def test_keys_are_set_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("road\n\n tree \n")
    changes = ["preprocessing.color=bgr", "mean = [0.1, 0.25, 0.3]", "segmenter.arguments={p=2}", "size=[8, 16]"]
    changes.append("size=[4, 4]")
    spec = with_changes(parse_model("net:make"), changes, str(tmp_path / "names.txt"))
    assert spec.preprocessing.color == "bgr"
    assert spec.preprocessing.mean == (0.1, 0.25, 0.3)
    assert spec.preprocessing.size == (4, 4)
    assert spec.segmenter.arguments == {"p": 2}
    assert spec.segmenter.factory == "net:make"
    assert spec.classes.names == ("road", "tree")
    assert with_changes(spec, [], "cityscapes").classes.names == "cityscapes"
    (tmp_path / "model.toml").write_text(to_toml(spec, tmp_path))
    assert parse_model(str(tmp_path / "model.toml")).preprocessing == spec.preprocessing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("color", r"give \[SECTION\.\]KEY=VALUE, e\.g\. --set color=bgr"),
        ("colour=bgr", "no key 'colour'; do you mean color?"),
        ("multiple=4", "no key 'multiple'; do you mean multiple_of?"),
        ("=4", "no key ''"),
        ("preprocessing.colour=bgr", "the nearest known one is preprocessing.color"),
        ("preprocessing.color=green", "should be one of rgb, bgr"),
        ("labels.mapping=3", "should be a table"),
        ("mean=[1, 2.5, 3]", "add scale = 1.0"),
        ("std=[1, 2]", "one for each of the three"),
        ("labels.encoding=cityscape", "--set: "),
    ],
)
def test_keys_that_cannot_be_set(change: str, message: str) -> None:
    with pytest.raises(BldaError, match=message):
        with_changes(parse_model("net:make"), [change])


@pytest.mark.parametrize(("change", "message"), [
    (('encoding = "cityscapes"', 'encoding = "citiscapes"'), "no label encoding 'citiscapes'; do you mean cityscapes"),
    (('8 = "road"', '"1,2" = "road"'), "neither a pixel value"),
    (("bits = 12", "bits = 12\nrange = [0, 1]"), "bits = 12 says the range, too"),
])  # fmt: skip
def test_slips_are_refused_before_anything_is_loaded(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(BldaError, match=message):
        parse_model(write(tmp_path, FULL.replace(*change)))


def test_bits_are_a_range() -> None:
    assert PreprocessingSection(bits=12).pixels.range == (0, 4095)
    assert PreprocessingSection(range=(1, 2)).pixels.range == (1, 2)
    assert PreprocessingSection().pixels.range is None
