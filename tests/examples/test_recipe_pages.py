"""The recipes of docs/recipes, followed line by line, and their claims."""

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from draw import DAY, DUSK, Domain, draw_scene
from PIL import Image
from streetnet import streetnet

from tests.pages import ROOT, follow

RECIPES = ROOT / "docs" / "recipes"
PAGES = sorted(page.stem for page in RECIPES.glob("*.md") if page.stem != "README")
STREETS = ROOT / "examples" / "streets"
MODULES = {"hf": "transformers", "onnx": "onnxscript", "video": "av", "geo": "rasterio"}
SHORTER = {"--iterations": "2", "--crop": "64", "--validate-every": "1"}

PREPARE: dict[str, Callable[[Path], None]] = {}
CLAIMS: dict[str, Callable[[Path], None]] = {}


def before(page: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """What the reader of a page has already."""
    return lambda function: PREPARE.setdefault(page, function)


def after(page: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """What a page promises."""
    return lambda function: CLAIMS.setdefault(page, function)


def scenes(domain: Domain, images: Path, labels: Path | None = None, count: int = 4) -> None:
    for index in range(count):
        pixels, classes = draw_scene(domain, (7, index))
        for folder, array in ((images, pixels), (labels, classes.astype(np.uint8))):
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{index}.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Holds drawn frames, a few of them labelled, and a network with two descriptions of it."""
    for name in ("streetnet.py", "streetnet.pth", "streets.toml"):
        shutil.copy(STREETS / name, tmp_path)
    shutil.copy(STREETS / "streets.toml", tmp_path / "net.toml")
    scenes(DUSK, tmp_path / "frames")
    scenes(DUSK, tmp_path / "few", tmp_path / "few-labels", 2)
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield tmp_path
    for name in set(sys.modules) - known:  # a description's factory must not be found by the next test
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


SLOW = {"cluster", "without-blda"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PAGES])
def test_recipe(name: str, here: Path) -> None:
    page = RECIPES / f"{name}.md"
    for extra in re.findall(r"blda-cli\[(\w+)\]", page.read_text(encoding="utf-8")):
        pytest.importorskip(MODULES[extra], reason=f"the extra {extra} is not installed")
    if name in PREPARE:
        PREPARE[name](here)
    assert follow(page, SHORTER) >= 3
    CLAIMS[name](here)


def test_every_recipe_is_in_the_list_and_has_its_claims_checked() -> None:
    listed = re.findall(r"\]\(([\w-]+)\.md\)", (RECIPES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == PAGES == sorted(CLAIMS)


def classes(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def predictions(folder: Path, images: Path) -> list[np.ndarray]:
    """A prediction for each image, of the image's size."""
    found = []
    for image in sorted(images.rglob("*.png")):
        found.append(classes(folder / "predictions" / image.relative_to(images)))
        assert found[-1].shape == classes(image).shape[:2]
    return found


@before("hugging-face")
def segformer(here: Path) -> None:
    import transformers

    torch.manual_seed(5)
    names = dict(enumerate(["road", "tree", "car", "sky"]))
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        id2label=names, label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained("segformer")
    transformers.SegformerImageProcessor().save_pretrained("segformer")
    scenes(DAY, here / "photos")


@after("hugging-face")
def _(here: Path) -> None:
    predictions(here / "aligned", here / "photos")
    assert (here / "check" / "overlays.png").is_file()
    assert (here / "report" / "report.html").is_file()


@before("pytorch-checkpoint")
def checkpoint(here: Path) -> None:
    """The library's own network where it is installed, else another in its place."""
    if importlib.util.find_spec("segmentation_models_pytorch"):
        import segmentation_models_pytorch as smp

        network = smp.Unet("resnet18", encoder_weights=None, classes=11)
        torch.save(network.state_dict(), here / "unet.pth")
    else:
        shutil.copy(here / "streetnet.pth", here / "unet.pth")
        (here / "segmentation_models_pytorch.py").write_text(
            "from streetnet import streetnet\n\n\ndef Unet(encoder_name, encoder_weights, classes):\n"
            "    assert encoder_weights is None and classes == 11\n    return streetnet()\n"
        )


@after("pytorch-checkpoint")
def _(here: Path) -> None:
    predictions(here / "aligned", here / "frames")
    assert (here / "check" / "check.html").is_file()


@before("onnx")
def onnx_file(here: Path) -> None:
    network = streetnet().eval()
    network.load_state_dict(torch.load(here / "streetnet.pth"))
    sizes = {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    torch.onnx.export(
        network, (torch.rand(2, 3, 128, 192),), here / "net.onnx", dynamo=True, dynamic_shapes=(sizes,), verbose=False
    )


@after("onnx")
def _(here: Path) -> None:
    import onnxruntime

    predictions(here / "aligned", here / "frames")
    given, corrected = (onnxruntime.InferenceSession(path) for path in ("net.onnx", "corrected/network.onnx"))
    assert [one.name for one in given.get_inputs()] == [one.name for one in corrected.get_inputs()]
    assert [one.name for one in given.get_outputs()] == [one.name for one in corrected.get_outputs()]


@before("other-frameworks")
def framework(here: Path) -> None:
    (here / "your_network.py").write_text(
        "import numpy as np\n\nWEIGHTS = np.random.default_rng(0).normal(size=(11, 3))\n\n\n"
        "def logits_of(image):\n    return np.einsum('kc,hwc->khw', WEIGHTS, image / 64 - 2)\n"
    )


@after("other-frameworks")
def _(here: Path) -> None:
    offsets = np.loadtxt("offsets.txt")
    for image, wanted in zip(
        sorted((here / "frames").glob("*.png")), predictions(here / "aligned", here / "frames"), strict=True
    ):
        logits = np.load(here / "logits" / f"{image.stem}.npy").astype(np.float32)
        assert ((logits + offsets[:, None, None]).argmax(axis=0) == wanted).mean() > 0.999


@before("video")
def drive(here: Path) -> None:
    import av

    with av.open(str(here / "drive.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
        for index in range(24):
            frame = av.VideoFrame.from_ndarray(draw_scene(DUSK, (7, index // 6))[0], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@after("video")
def _(here: Path) -> None:
    assert len(list((here / "aligned" / "predictions" / "drive").glob("*.png"))) == 24
    assert classes(here / "aligned" / "predictions" / "drive" / "000010.png").shape == (128, 192)
    assert (here / "aligned.mp4").stat().st_size > 1000
    assert json.loads((here / "report" / "report.json").read_text())["images"] == 3


@before("geotiff")
def land(here: Path) -> None:
    import rasterio
    from rasterio.transform import from_origin

    (here / "land.py").write_text(
        "from torch import nn\n\n\ndef network():\n"
        "    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))\n"
    )
    network = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)
    )
    torch.save(network.state_dict(), here / "land.pth")
    (here / "maps").mkdir()
    pixels = np.random.default_rng(0).integers(0, 10_000, (8, 120, 90)).astype(np.uint16)
    with rasterio.open(
        here / "maps" / "scene.tif", "w", driver="GTiff", height=120, width=90, count=8, dtype="uint16", nodata=65535,
        crs="EPSG:32633", transform=from_origin(5e5, 4e6, 10, 10),
    ) as raster:  # fmt: skip
        raster.write(pixels)


@after("geotiff")
def _(here: Path) -> None:
    import rasterio

    with rasterio.open(here / "aligned" / "predictions" / "scene.tif") as predicted:
        assert (predicted.crs.to_epsg(), predicted.shape) == (32633, (120, 90))
        assert predicted.tags(1)["class_1"] == "forest" or predicted.tags()["class_1"] == "forest"
        assert set(np.unique(predicted.read(1))) <= {0, 1, 2, 3}


@before("several-domains")
def drives(here: Path) -> None:
    scenes(DAY, here / "drives" / "day")
    scenes(DUSK, here / "drives" / "night")


@after("several-domains")
def _(here: Path) -> None:
    for domain, folder in (("day", "aligned-day"), ("night", "aligned-night"), ("night", "aligned")):
        predictions(here / folder, here / "drives" / domain)
        record = json.loads((here / folder / "run.json").read_text())
        assert f"drives-{domain}.h5" in json.dumps(record)
    assert "day.h5" in json.dumps(json.loads((here / "aligned" / "run.json").read_text()))


@after("no-source")
def _(here: Path) -> None:
    predictions(here / "aligned", here / "frames")
    predictions(here / "trained", here / "frames")
    assert (here / "run" / "model.toml").is_file()


@after("few-labels")
def _(here: Path) -> None:
    predictions(here / "aligned", here / "frames")
    assert (here / "drafts" / "annotations" / "labelmap.txt").is_file()
    assert "supervised" in json.dumps(json.loads((here / "aligned" / "run.json").read_text()))


@before("without-blda")
def frame(here: Path) -> None:
    shutil.copy(here / "frames" / "1.png", here / "frame.png")


@after("without-blda")
def _(here: Path) -> None:
    import blda_cli

    assert "blda" not in (here / "predict.py").read_text()
    blda_cli.align(model="streets.toml", images="frames", stats="frames.h5", output="aligned", device="cpu")
    wanted = classes(here / "aligned" / "predictions" / "1.png")
    assert (classes(here / "classes.png") == wanted).mean() > 0.9999


@after("cluster")
def _(here: Path) -> None:
    import blda_cli

    predictions(here / "aligned", here / "frames")
    jobs, processes = (blda_cli.read_statistics(here / name).statistics for name in ("stats.h5", "frames.h5"))
    assert jobs.compute()["predicted_share"].tolist() == processes.compute()["predicted_share"].tolist()
