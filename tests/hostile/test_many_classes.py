"""More classes than a byte holds, from labels of 16 bits to the report."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.hostile.world import SIZE, World, invoke

CLASSES = 260
VOID = 65535
HELD = np.array([0, 3, 254, 255, 256, 259])
# The number written into red and green, 256 a step of green; other numbers lie so much lower.
CODE = (
    "-(images[:, :1] * 255 + images[:, 1:2] * 65280 - torch.arange(260).view(1, 260, 1, 1)).square() / 4"
    " + 3 * (torch.arange(260) == 256).view(1, 260, 1, 1)"
)


@pytest.mark.slow
def test_labels_statistics_predictions_and_report(world: World) -> None:
    generator = np.random.default_rng(0)
    pairs = np.zeros((CLASSES, CLASSES), np.int64)
    for path in sorted(world.images.rglob("*.png")):
        truth = generator.choice(HELD, (4, 5)).repeat(4, axis=0).repeat(4, axis=1)
        seen = (truth + generator.choice([-1, 0, 0, 1], SIZE)).clip(0, CLASSES - 1)
        Image.fromarray(np.stack([seen % 256, seen // 256, 0 * seen], axis=-1).astype(np.uint8)).save(path)
        distance = -((seen[..., None] - np.arange(CLASSES)) ** 2) / 4 + 3 * (np.arange(CLASSES) == 256)
        void = generator.random(SIZE) < 0.2
        np.add.at(pairs, (truth[~void], distance.argmax(axis=-1)[~void]), 1)
        label = np.where(void, VOID, truth).astype(np.uint16)
        Image.fromarray(label).save(world.labels / path.relative_to(world.images))

    model = world.describe(
        factory="odd", arguments=f"code = {json.dumps(CODE)}", names=[f"c{index}" for index in range(CLASSES)]
    )
    labels = ["--labels", world.labels, "--label-encoding", "ids"]
    counting = ["--bins", 16, "--label-source", "pseudo", "--label-source", "ground_truth"]
    for command in (
        world.collect(*labels, *counting, model=model, output="many.h5"),
        world.align("--tau", 0.5, model=model, stats="many.h5", output="many"),
        world.report(*labels, stats="many.h5", aligned="many"),
    ):
        done = invoke(command)
        assert done.exit_code == 0, done.output

    with h5py.File(world.root / "many.h5") as file:
        np.testing.assert_array_equal(file["confusion"][...], pairs)
        labelled = file["cells/ground_truth/counts"][:, 0].sum(axis=-1)
    np.testing.assert_array_equal(labelled, pairs.sum(axis=1))
    after = np.zeros_like(pairs)
    for path in world.labels.rglob("*.png"):
        predicted, label = (
            np.asarray(Image.open(folder / path.relative_to(world.labels)))
            for folder in (world.many / "predictions", world.labels)
        )
        assert predicted.dtype == np.uint16
        np.add.at(after, (label[label != VOID], predicted[label != VOID]), 1)
    confusion = json.loads((world.root / "report" / "report.json").read_text())["confusion"]
    np.testing.assert_array_equal(confusion["before"], pairs)
    np.testing.assert_array_equal(confusion["runs"]["many"], after)
