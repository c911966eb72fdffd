import numpy as np

from blda_cli.finetuning.rare_classes import RareClassSampler

PIXELS = np.array([[9000, 500, 0, 0], [8000, 4000, 100, 0], [9500, 0, 3500, 0]])


def test_classes_are_drawn_by_their_rarity() -> None:
    sampler = RareClassSampler(PIXELS, temperature=0.5, enough=3000)
    frequency = PIXELS.sum(axis=0) / PIXELS.sum()
    weights = np.exp((1 - frequency) / 0.5) * [1, 1, 1, 0]
    np.testing.assert_allclose(sampler.probabilities, weights / weights.sum())
    generator = np.random.default_rng(0)
    drawn = np.bincount([sampler.draw(generator)[0] for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, sampler.probabilities, atol=0.03)


def test_an_image_with_enough_of_the_class_is_drawn_or_else_any_that_has_it() -> None:
    generator = np.random.default_rng(0)
    images = {
        3000: {(0, 0), (0, 1), (0, 2), (1, 1), (2, 2)},
        20_000: {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 1), (2, 2)},
    }
    for enough, expected in images.items():
        sampler = RareClassSampler(PIXELS, temperature=1.0, enough=enough)
        assert {sampler.draw(generator) for _ in range(300)} == expected


def test_the_published_temperature_does_not_overflow() -> None:
    sampler = RareClassSampler(PIXELS, temperature=1e-4, enough=3000)
    assert np.isfinite(sampler.probabilities).all()
    assert sampler.probabilities[2] > 0.99


def test_crops_keep_half_of_the_class() -> None:
    labels = np.zeros((60, 80), dtype=np.uint8)
    labels[20:30, 30:50] = 1
    sampler = RareClassSampler(np.array([[4600, 200]]), 0.01, enough=150)
    generator = np.random.default_rng(0)
    kept = []
    for _ in range(200):
        top, left = sampler.crop(generator, labels, 1, (30, 40))
        assert 0 <= top <= 30
        assert 0 <= left <= 40
        kept.append(np.count_nonzero(labels[top : top + 30, left : left + 40]))
    # Half of min(200, 150); ten tries fail now and then.
    assert np.mean(np.array(kept) >= 75) > 0.95
