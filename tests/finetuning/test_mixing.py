import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from blda_cli.core import IGNORE_INDEX
from blda_cli.finetuning.data.mixing import block_mask, class_masks, paste


@given(seed=st.integers(0, 2**16), classes=st.integers(1, 6))
def test_half_of_the_batchs_classes_are_pasted_whole(seed: int, classes: int) -> None:
    """Classes of the whole batch, and no label as one of them, drawn for each image."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([*range(250, 250 + 2 * classes, 2), IGNORE_INDEX], (2, 12, 9))
    labels[1][labels[1] == 250] = IGNORE_INDEX  # a class that only the first image has
    orders = np.stack([generator.permutation(np.arange(IGNORE_INDEX, 300)) for _ in labels])
    masks = class_masks(labels, orders)
    present = sorted(set(np.unique(labels)))
    for label, mask, order in zip(labels, masks, orders, strict=True):
        first = sorted(present, key=order.tolist().index)[: (len(present) + 1) // 2]
        np.testing.assert_array_equal(mask, [[one in first for one in row] for row in label])


def test_every_class_is_pasted_as_often() -> None:
    labels = np.array([[[0, 1, 2, IGNORE_INDEX]]])
    generator = np.random.default_rng(0)
    masks = [class_masks(labels, generator.permutation(np.arange(IGNORE_INDEX, 3))[None])[0, 0] for _ in range(2000)]
    np.testing.assert_allclose(np.mean(masks, axis=0), 0.5, atol=0.05)


def test_blocks_are_blanked_whole_at_the_ratio() -> None:
    mask = block_mask(np.random.default_rng(0), (1000, 1030), 10, 0.7)
    assert mask.shape == (1000, 1030)
    blocks = mask[:, :1030].reshape(100, 10, 103, 10)
    assert (blocks.all(axis=(1, 3)) | ~blocks.any(axis=(1, 3))).all()
    assert abs(mask.mean() - 0.3) < 0.02


def test_paste_takes_the_source_where_the_mask_is() -> None:
    mask = torch.rand(2, 4, 5) < 0.5
    source, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    mixed = paste(mask, source, target)
    assert torch.equal(mixed.permute(0, 2, 3, 1)[mask], source.permute(0, 2, 3, 1)[mask])
    assert torch.equal(mixed.permute(0, 2, 3, 1)[~mask], target.permute(0, 2, 3, 1)[~mask])
    assert torch.equal(paste(mask, source[:, 0], target[:, 0]), mixed[:, 0])
