import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from blda_cli.finetuning.mixing import block_mask, class_mask, paste


@given(seed=st.integers(0, 2**16), classes=st.integers(1, 6))
def test_half_of_the_classes_present_are_pasted_whole(seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.choice([*range(0, 2 * classes, 2), 255], (12, 9))
    mask = class_mask(generator, labels)
    present = set(np.unique(labels)) - {255}
    pasted = {one for one in present if mask[labels == one].all()}
    assert len(pasted) == (len(present) + 1) // 2
    assert mask.sum() == sum((labels == one).sum() for one in pasted)


def test_nothing_is_pasted_from_an_image_without_labels() -> None:
    assert not class_mask(np.random.default_rng(0), np.full((4, 4), 255, dtype=np.uint8)).any()


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
