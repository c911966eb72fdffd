from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blda_cli.core import IGNORE_INDEX
from blda_cli.data.images import find_images
from blda_cli.data.pillow_images import read_image
from blda_cli.errors import BldaError
from blda_cli.finetuning.data.samples import Batch, count_class_pixels, fitting_crop
from blda_cli.runtime.monitor import SilentMonitor
from tests.scene import COLORS


def equal(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs if a is not one.target_wholes)


def test_a_sample_is_a_function_of_its_number(project: Any, batches: Callable[..., Any]) -> None:
    one, other = batches(project, [[3, 7]]), batches(project, [[3, 7]])
    assert equal(one[0], other[0])
    assert not equal(one[0], batches(project, [[3, 8]])[0])
    assert not equal(one[0], batches(project, [[3, 7]], training__seed=1)[0])


def test_labels_lie_on_their_images(project: Any, batches: Callable[..., Any]) -> None:
    for batch in batches(project, [[number] for number in range(12)]):
        assert batch.source_images.shape == (1, 3, 32, 40)
        labels = batch.source_labels[0].numpy()
        known = labels != IGNORE_INDEX
        difference = batch.source_images[0].permute(1, 2, 0).numpy()[known] - COLORS[labels[known]]
        assert np.abs(difference).mean() < 15  # the noise; a shift of a block would be far more


def test_crops_know_where_they_lie(project: Any, batches: Callable[..., Any]) -> None:
    drawn = batches(project, [[number] for number in range(12)])
    for batch in drawn:
        assert batch.files == [str(batch.source_crops[0].file.path), str(batch.target_crops[0].file.path)]
        for images, (crop,) in ((batch.source_images, batch.source_crops), (batch.target_images, batch.target_crops)):
            whole = read_image(crop.file.path)
            assert crop.image_size == whole.shape[:2]
            np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), crop.cut(whole))
        (whole,), (crop,) = batch.target_wholes, batch.target_crops
        np.testing.assert_array_equal(whole.permute(1, 2, 0).numpy(), read_image(crop.file.path))
        np.testing.assert_array_equal(crop.cut_map(whole).numpy(), batch.target_images[0].numpy())
    mirrored = {(batch.source_crops[0].mirrored, batch.target_crops[0].mirrored) for batch in drawn}
    assert len(mirrored) == 4  # each by its own draw
    assert len({batch.target_crops[0].left for batch in drawn}) > 3


def test_rows_at_the_borders_of_the_target_can_be_left_out(project: Any, batches: Callable[..., Any]) -> None:
    drawn = batches(project, [[n] for n in range(20)], host__ignore_rows=(4, 6))
    weighed = [batch.target_weighed[..., 0] for batch in drawn]
    counts = torch.cat(weighed).sum(dim=1)
    # Images have 40 rows, crops 32: of the first 4 and last 6 rows at least two are always in the crop.
    assert float(counts.max()) <= 30
    assert float(counts.min()) >= 22
    assert all(bool((batch.target_weighed == 1).all()) for batch in batches(project, [[0, 1]]))


def test_pixels_without_data_have_no_weight_and_no_label(
    project: Any, batches: Callable[..., Any], tmp_path: Path
) -> None:
    """Transparent ones, of target and source alike."""
    for name in ("source_images", "target_images"):
        folder = Path(getattr(project.settings().data, name))
        for file in find_images(folder):
            pixels = np.array(Image.open(file.path).convert("RGBA"))
            pixels[:, : pixels.shape[1] // 2, 3] = 0
            place = tmp_path / name / file.path.relative_to(folder).with_suffix(".png")
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)
    folders = {f"data__{name}": str(tmp_path / name) for name in ("source_images", "target_images")}
    shown = 0
    for batch in batches(project, [[number] for number in range(6)], **folders):
        for crop, image, seen in (
            (batch.target_crops[0], batch.target_images[0], batch.target_weighed[0] > 0),
            (batch.source_crops[0], batch.source_images[0], batch.source_labels[0] != IGNORE_INDEX),
        ):
            half = np.arange(crop.image_size[1])[None].repeat(crop.image_size[0], 0) >= crop.image_size[1] // 2
            there = torch.from_numpy(crop.cut(half).copy())
            assert not bool(seen[~there].any())
            assert bool((image[:, ~there] == 0).all())
            shown += int(seen.sum())
    assert shown > 0


def test_without_classmix_nothing_is_pasted(project: Any, batches: Callable[..., Any]) -> None:
    assert not batches(project, [[0, 1]], host__classmix=False)[0].pasted.any()
    assert batches(project, [[0, 1]])[0].pasted.any()


def test_rare_classes_are_seen_more_often(project: Any, batches: Callable[..., Any]) -> None:
    def share(**values: Any) -> float:
        drawn = batches(project, [list(range(40))], **values)[0].source_labels
        return float((drawn == 3).sum() / (drawn != IGNORE_INDEX).sum())

    assert share() > 1.2 * share(host__rare_class_sampling=False)


def test_pixels_of_every_class_are_counted(project: Any) -> None:
    files = find_images(project.folder / "day" / "images")
    labels = np.array([[0, 1], [1, IGNORE_INDEX]])
    pixels = count_class_pixels(files, lambda _: labels, 4, 2, SilentMonitor())
    assert pixels.tolist() == [[1, 2, 0, 0]] * 6


def test_a_crop_that_does_not_fit_is_named(project: Any) -> None:
    files = find_images(project.folder / "day" / "images")
    assert fitting_crop(files, (40, 56), SilentMonitor()) == (40, 56)
    with pytest.raises(BldaError, match=r"41x48 is larger than .*0.png \(40x56.*--crop 40 fits"):
        fitting_crop(files, (41, 48), SilentMonitor())


def test_the_default_crop_gets_smaller_where_images_are(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(SilentMonitor, "say", lambda _, line: said.append(line))
    files = find_images(project.folder / "day" / "images")
    assert fitting_crop(files, (512, 512), SilentMonitor()) == (32, 32)
    assert said == ["crops are 32x32, as the smallest image is smaller than the published 512x512"]
