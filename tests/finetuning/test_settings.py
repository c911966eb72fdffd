from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blda_cli.errors import BldaError
from blda_cli.finetuning.settings import HOSTS, PUBLISHED, Settings, read_settings

PRINTED = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8)


def test_defaults_and_preset_are_the_published_values() -> None:
    settings = Settings().with_values(PUBLISHED, "test").resolved()
    training, host, blda = settings.training, settings.host, settings.blda
    assert (training.iterations, training.crop, training.batch_size) == (40_000, (512, 512), 2)
    assert (training.learning_rate, training.head_factor, training.weight_decay) == (6e-5, 10, 0.01)
    assert (training.warmup, blda.warmup, blda.momentum) == (1500, 1500, 0.99)
    assert (blda.tau, blda.density_weight) == (0.1, 0.2)
    assert (host.teacher_momentum, host.confidence) == (0.999, 0.968)
    assert (host.color_jitter, host.color_strength, host.blur, host.blur_sigma) == (0.8, 0.2, 0.5, (0.15, 1.15))
    assert (host.rare_class_temperature, host.rare_class_share) == (0.01, 0.0015)
    assert (host.mask_ratio, host.mask_block) == (0.7, 64)


@pytest.mark.parametrize(
    ("host", "parts"), [("dacs", (False, 0, 0)), ("daformer", (True, 0.005, 0)), ("mic", (True, 0.005, 1))]
)
def test_hosts_have_their_published_parts(host: str, parts: tuple[bool, float, float]) -> None:
    for other in HOSTS.values():  # whatever was set before
        settings = Settings().with_values(other, "test").with_values(HOSTS[host], "test").host
        assert (settings.rare_class_sampling, settings.feature_distance, settings.masked_consistency) == parts


@given(
    crop=st.tuples(st.integers(8, 4000), st.integers(8, 4000)),
    rate=st.floats(1e-9, 1.0),
    things=st.lists(PRINTED.filter(bool), max_size=3, unique=True),
    amp=st.booleans(),
    weights=st.none() | PRINTED.filter(bool),
)
def test_settings_survive_toml(
    tmp_path_factory: pytest.TempPathFactory,
    crop: tuple[int, int],
    rate: float,
    things: list[str],
    amp: bool,
    weights: str | None,
) -> None:
    values = {
        "training.crop": crop,
        "training.learning_rate": rate,
        "host.thing_classes": things,
        "training.amp": amp,
        "data.weights": weights,
    }
    settings = Settings().with_values(values, "test")
    path = tmp_path_factory.mktemp("settings") / "config.toml"
    path.write_text(settings.to_toml(), encoding="utf-8")
    assert read_settings(path) == settings


def test_short_runs_have_short_warm_ups() -> None:
    settings = Settings().with_values({"training.iterations": 200}, "test").resolved()
    assert (settings.training.warmup, settings.blda.warmup) == (20, 20)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\niteration = 3", "unknown key training.iteration; the nearest known one is training.iterations"),
        ("[trainig]\niterations = 3", "unknown key trainig; the nearest known one is training"),  # codespell:ignore
        ("method = 'blda'", "unknown key method"),
        ("training = 'blda'", 'training = "blda" should be a table'),
        ("[training]\niterations = '3'", "should be a whole number of at least 1"),
        ("[training]\niterations = true", "training.iterations = true should be a whole number"),
        ("[training]\nlearning_rate = nan", "should be a number of at least 0"),
        ("[training]\ncrop = [3]", r"\[height, width\], each a whole number of at least 8"),
        ("[training]\nmethod = 'daformer'", 'training.method = "daformer" should be one of blda, dacs, source'),
        ("[host]\nthing_classes = ['car', 'car']", "a list of different names"),
        ("[training", "not TOML"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(BldaError, match=said):
        read_settings(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("blda.tau", -1.0), ("host.confidence", 1.5), ("training.crop", (4, 64)), ("run.export", "both")],
)
def test_values_out_of_range_are_named(key: str, value: object) -> None:
    with pytest.raises(BldaError, match=key):
        Settings().with_values({key: value}, "test").resolved()
