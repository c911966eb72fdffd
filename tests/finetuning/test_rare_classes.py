import numpy as np

from blda_cli.finetuning.data.rare_classes import RareClassSampler, crop_with

PIXELS = np.array([[9000, 500, 0, 0], [8000, 4000, 100, 0], [9500, 0, 3500, 0]])


def test_classes_are_drawn_by_their_rarity() -> None:
    sampler = RareClassSampler(PIXELS, temperature=0.5, share=0.3)
    frequency = PIXELS.sum(axis=0) / PIXELS.sum()
    weights = np.exp((1 - frequency) / 0.5) * [1, 1, 1, 0]
    np.testing.assert_allclose(sampler.probabilities, weights / weights.sum())
    generator = np.random.default_rng(0)
    drawn = np.bincount([sampler.draw(generator)[0] for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, sampler.probabilities, atol=0.03)


def test_an_image_with_enough_of_the_class_is_drawn_or_else_any_that_has_it() -> None:
    generator = np.random.default_rng(0)
    images = {
        0.26: {(0, 0), (0, 1), (0, 2), (1, 1), (2, 2)},
        0.99: {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 1), (2, 2)},
    }
    for share, expected in images.items():
        sampler = RareClassSampler(PIXELS, temperature=1.0, share=share)
        assert {sampler.draw(generator) for _ in range(300)} == expected
        # Thresholds follow the area: at half the resolution a quarter of the pixels do.
        smaller = RareClassSampler(PIXELS // 4, temperature=1.0, share=share)
        assert {smaller.draw(generator) for _ in range(300)} == expected


def test_enough_is_a_share_of_the_image_and_not_of_the_class() -> None:
    sampler = RareClassSampler(np.array([[100, 10], [10_000, 10]]), temperature=1.0, share=0.05)
    generator = np.random.default_rng(0)
    assert {image for drawn, image in (sampler.draw(generator) for _ in range(100)) if drawn == 1} == {0}


def test_the_published_temperature_does_not_overflow() -> None:
    sampler = RareClassSampler(PIXELS, temperature=1e-4, share=0.3)
    assert np.isfinite(sampler.probabilities).all()
    assert sampler.probabilities[2] > 0.99


def crops(labels: np.ndarray, size: tuple[int, int], count: int = 200) -> np.ndarray:
    generator = np.random.default_rng(0)
    kept = []
    for _ in range(count):
        top, left = crop_with(generator, labels, 1, size)
        assert 0 <= top <= labels.shape[0] - size[0]
        assert 0 <= left <= labels.shape[1] - size[1]
        kept.append(np.count_nonzero(labels[top : top + size[0], left : left + size[1]] == 1))
    return np.array(kept)


def test_crops_hold_enough_of_the_class() -> None:
    """1500 pixels of 512², and as much of any other size: 7 of 30×40, 27 of 60×80."""
    labels = np.zeros((60, 80), dtype=np.uint8)
    labels[20:30, 30:50] = 1
    kept = crops(labels, (30, 40))
    assert np.mean(kept >= 7) > 0.95  # ten tries fail now and then
    assert np.mean(kept < 100) > 0.1  # and no more is asked for
    doubled = crops(labels.repeat(2, 0).repeat(2, 1), (60, 80))
    assert np.mean(doubled >= 27) > 0.95
    assert np.mean(doubled < 400) > 0.1


def test_of_a_class_with_few_pixels_crops_keep_half() -> None:
    labels = np.zeros((60, 80), dtype=np.uint8)
    labels[12, 15:21] = 1
    assert np.mean(crops(labels, (30, 40)) >= 3) > 0.7  # of single crops 0.2
