from types import ModuleType

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blda_cli.core.self_training import class_thresholds


@settings(deadline=None, max_examples=50)
@given(
    pixels=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), min_size=1, max_size=40),
    portion=st.sampled_from([0.01, 0.2, 0.5, 1.0]),
)
def test_thresholds_are_the_ranked_confidences(
    reference: ModuleType, pixels: list[tuple[int, int]], portion: float
) -> None:
    confidence, predicted = torch.tensor([c / 32 for c, _ in pixels]), torch.tensor([label for _, label in pixels])
    expected = reference.class_thresholds(confidence.double().numpy(), predicted.numpy(), 5, portion)
    np.testing.assert_array_equal(class_thresholds(confidence, predicted, 5, portion).numpy(), expected)


def test_without_a_pixel_nothing_is_thresholded() -> None:
    none = torch.zeros(0)
    assert class_thresholds(none, none.long(), 3, 0.2).tolist() == [1, 1, 1]
