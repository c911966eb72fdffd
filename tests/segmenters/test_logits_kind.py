from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from blda_cli.data.logit_arrays import find_logits
from blda_cli.data.pillow_images import PillowImage
from blda_cli.data.source import ImageSource
from blda_cli.errors import BldaError
from blda_cli.segmenters import load_segmenter
from blda_cli.segmenters.base import LogitBatch, Segmenter
from blda_cli.segmenters.options import InferenceOptions
from blda_cli.segmenters.spec import parse_model

CPU = torch.device("cpu")


@pytest.fixture
def arrays(tmp_path: Path, images: list[ImageSource]) -> dict[str, np.ndarray]:
    """Logits for the three images: at their size, at a quarter, and for one stored by its plain name."""
    generator = np.random.default_rng(1)
    shapes = {"town/a": (5, 50, 70), "town/b": (5, 13, 18), "c": (5, 40, 60)}
    made = {key: generator.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    folder = tmp_path / "logits"
    (folder / "town").mkdir(parents=True)
    np.save(folder / "town" / "a.npy", made["town/a"])
    np.savez_compressed(folder / "town" / "b.npz", made["town/b"])
    np.savez(folder / "c.npz", other=np.zeros(3), logits=made["c"][None].astype(np.float16))
    return made


def load(tmp_path: Path, section: str = "") -> Segmenter:
    file = tmp_path / "logits.toml"
    file.write_text(f'[segmenter]\nkind = "logits"\npath = "logits"\n{section}')
    return load_segmenter(parse_model(str(file)), CPU)


def run(segmenter: Segmenter, files: Sequence[ImageSource], **options: int) -> list[LogitBatch]:
    return list(segmenter.stream(files, InferenceOptions(**options)))  # type: ignore[arg-type]


def test_arrays_are_given_at_the_images_size(
    tmp_path: Path, images: list[ImageSource], arrays: dict[str, np.ndarray]
) -> None:
    segmenter = load_segmenter(parse_model(f"logits:{tmp_path / 'logits'}"), CPU)
    batches = run(segmenter, images, batch_size=2)
    assert [tuple(batch.logits.shape) for batch in batches] == [(2, 5, 50, 70), (1, 5, 40, 60)]
    assert all(batch.logits.dtype == torch.float32 for batch in batches)
    assert torch.equal(batches[0].logits[0], torch.from_numpy(arrays["town/a"]))
    expected = F.interpolate(torch.from_numpy(arrays["town/b"])[None], (50, 70), mode="bilinear")[0]
    assert torch.equal(batches[0].logits[1], expected)
    torch.testing.assert_close(batches[1].logits[0], torch.from_numpy(arrays["c"]), atol=1e-3, rtol=1e-3)


def test_the_folder_of_logits_may_stand_for_the_images(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    files = find_logits(tmp_path / "logits")
    assert [file.key for file in files] == ["c", "town/a", "town/b"]
    batches = run(load(tmp_path), files)
    assert tuple(batches[2].logits.shape) == (1, 5, 13, 18)


def test_channels_groups_and_probabilities(
    tmp_path: Path, images: list[ImageSource], arrays: dict[str, np.ndarray]
) -> None:
    probabilities = torch.from_numpy(arrays["town/a"]).softmax(0)
    np.save(tmp_path / "logits" / "town" / "a.npy", probabilities.numpy())
    section = (
        "channels = 4\n[preprocessing]\noutput = 'probabilities'\n"
        "[classes]\nnames = ['a', 'b', 'c', 'd']\n[classes.groups]\nx = ['a', 'd']\ny = ['c']"
    )
    segmenter = load(tmp_path, section)
    (batch,) = run(segmenter, images[:1])
    kept = probabilities[:4] / probabilities[:4].sum(0)
    expected = torch.stack([(kept[0] + kept[3]).log(), kept[2].log()])
    torch.testing.assert_close(batch.logits[0], expected)
    assert segmenter.classes.names == ("x", "y")
    assert segmenter.identity["groups"] == {"x": ["a", "d"], "y": ["c"]}


def test_a_classifiers_logits(tmp_path: Path, images: list[ImageSource], arrays: dict[str, np.ndarray]) -> None:
    for key in arrays:
        for suffix in (".npy", ".npz"):
            (tmp_path / "logits" / f"{key}{suffix}").unlink(missing_ok=True)
        np.save(tmp_path / "logits" / f"{key}.npy", arrays[key].mean(axis=(1, 2)))
    (batch,) = run(load(tmp_path), images, batch_size=8)
    torch.testing.assert_close(batch.logits, torch.from_numpy(np.stack([arrays[f.key].mean((1, 2)) for f in images])))


def test_padding_left_in_is_cut(tmp_path: Path, images: list[ImageSource], arrays: dict[str, np.ndarray]) -> None:
    padded = np.pad(arrays["town/a"], ((0, 0), (0, 14), (0, 26)), constant_values=50)
    np.save(tmp_path / "logits" / "town" / "a.npy", padded)
    segmenter = load(tmp_path)
    (batch,) = run(segmenter, images[:1])
    assert torch.equal(batch.logits[0], torch.from_numpy(arrays["town/a"]))
    assert any("padding to 64x96" in note for note in segmenter.notes)


def test_one_array_for_two_images_is_refused(
    tmp_path: Path, images: list[ImageSource], arrays: dict[str, np.ndarray]
) -> None:
    flat = [PillowImage(file.path, f"deep/{file.path.stem}") for file in images]
    (tmp_path / "logits" / "town" / "a.npy").rename(tmp_path / "logits" / "a.npy")
    (batch,) = run(load(tmp_path), flat[:1])
    assert torch.equal(batch.logits[0], torch.from_numpy(arrays["town/a"]))
    twin = PillowImage(images[0].path, "deeper/a")
    with pytest.raises(BldaError, match=r"a\.npy would be the logits of .* and of"):
        run(load(tmp_path), [flat[0], twin])


def test_arrays_of_another_machine_are_read(
    tmp_path: Path, images: list[ImageSource], arrays: dict[str, np.ndarray]
) -> None:
    np.save(tmp_path / "logits" / "town" / "a.npy", arrays["town/a"].astype(">f8"))
    (batch,) = run(load(tmp_path), images[:1])
    assert torch.equal(batch.logits[0], torch.from_numpy(arrays["town/a"]))


def test_identity_does_not_depend_on_the_images(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    before = load(tmp_path).identity
    np.save(tmp_path / "logits" / "town" / "a.npy", arrays["town/a"] + 1)
    assert load(tmp_path).identity == before
    assert str(tmp_path) not in repr(before)


@pytest.mark.parametrize(("array", "message"), [
    (np.array([{"a": 1}], dtype=object), "is pickled"),
    (np.zeros((5, 50, 70), dtype=np.int64), "class ids, not logits"),
    (np.zeros((50, 70), dtype=np.uint8), "class ids, not logits"),
    (np.zeros((2, 5, 50, 70), dtype=np.float32), "is of shape"),
    (np.full((5, 50, 70), "x"), "holds <U1 values"),
    (np.zeros((50, 70, 6), dtype=np.float32), "50 channels, but 5 classes are named"),
    (np.full((5, 50, 70), 0.2, dtype=np.float32), 'output = "probabilities"'),
    (np.full((5, 50, 70), np.nan, dtype=np.float32), "not finite"),
    (np.zeros((6, 50, 70), dtype=np.float32), "6 channels, but 5 classes are named"),
])  # fmt: skip
def test_arrays_that_will_not_do_are_named(
    tmp_path: Path, images: list[ImageSource], arrays: dict[str, np.ndarray], array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "logits" / "town" / "a.npy", array)
    segmenter = load(tmp_path, "[classes]\nnames = ['a', 'b', 'c', 'd', 'e']")
    with pytest.raises(BldaError, match=message) as caught:
        run(segmenter, images)
    assert "a.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_arrays_are_named(
    tmp_path: Path, images: list[ImageSource], arrays: dict[str, np.ndarray]
) -> None:
    segmenter = load(tmp_path)
    (tmp_path / "logits" / "town" / "a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(BldaError, match=r"a\.npy: cannot be read"):
        run(segmenter, images)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "new.png")
    with pytest.raises(BldaError, match=r"no logits for .*new\.png"):
        run(segmenter, [PillowImage(tmp_path / "images" / "new.png", "new")])
    with pytest.raises(BldaError, match="need a network"):
        list(segmenter.stream(images, InferenceOptions(flip=True)))
    with pytest.raises(BldaError, match="no such folder"):
        load_segmenter(parse_model("logits:nowhere"), CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BldaError, match="holds no logits"):
        find_logits(tmp_path / "empty")
