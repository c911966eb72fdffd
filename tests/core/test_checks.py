"""What is given from Python is checked, with a line that says what is wanted."""

import copy
import pickle
from typing import Any

import pytest
import torch

from blda_cli.core.statistics import LogitStatistics

C = 3
LOGITS = torch.randn(2, C, 8, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("logits", "error", "wanted"),
    [
        (LOGITS[0], ValueError, r"logits\[None\]"),
        (LOGITS.movedim(1, -1), ValueError, r"channels last: give logits.movedim\(-1, 1\)"),
        (LOGITS.numpy(), TypeError, "torch.from_numpy"),
        ({"out": LOGITS, "aux": LOGITS}, TypeError, r"give the entry that holds them, of \['out', 'aux'\]"),
        (LOGITS.argmax(dim=1), TypeError, "class ids after an argmax"),
        (LOGITS.softmax(dim=1), ValueError, "the values are probabilities"),
        (LOGITS[:, :2], ValueError, r"\[N, 3, H, W\], not \[2, 2, 8, 6\]"),
        (LOGITS[:0], ValueError, "it is empty"),
    ],
)
def test_other_than_logits(logits: Any, error: type[Exception], wanted: str) -> None:
    statistics = LogitStatistics(C)
    with pytest.raises(error, match=wanted):
        statistics.update(logits)
    assert statistics.images == statistics.pixels == len(statistics.sample) == 0


@pytest.mark.parametrize(
    ("labels", "keys", "wanted"),
    [
        (torch.zeros(2, 8, 5, dtype=torch.int64), None, r"labels should be of shape \[2, 8, 6\]"),
        (torch.zeros(2, 8, 6), None, r"tensor of integers \[2, 8, 6\], not torch.float32"),
        (None, ["a"], "a list of 2 names"),
        (None, "ab", "a list of 2 names"),
        (None, ["a", "a"], "keys should be different"),
        (None, ["a", 1], r"keys should be text, not int: str\(1\)"),
        (torch.zeros(2, 8, 6, dtype=torch.int64).numpy(), None, "not ndarray: torch.from_numpy"),
    ],
)
def test_labels_and_keys(labels: Any, keys: Any, wanted: str) -> None:
    with pytest.raises((ValueError, TypeError), match=wanted):
        LogitStatistics(C).update(LOGITS, labels, keys)


def test_tensors_on_another_device_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"logits are on meta, the statistics on cpu: give logits.to\('cpu'\), or count"
    ):
        LogitStatistics(C).update(LOGITS.to("meta"))
    with pytest.raises(ValueError, match=r"labels are on meta, the logits on cpu: labels.to\('cpu'\)"):
        LogitStatistics(C).update(LOGITS, torch.zeros(2, 8, 6, dtype=torch.int64, device="meta"))


def test_keys_counted_before_are_refused() -> None:
    statistics = LogitStatistics(C)
    for keys in (["a", "b"], ["c", "d"]):
        statistics.update(LOGITS, keys=keys)
    with pytest.raises(ValueError, match="'b' is counted already"):
        statistics.update(LOGITS, keys=["e", "b"])
    assert statistics.images == 4
    unnamed = LogitStatistics(C)
    unnamed.update(LOGITS)
    unnamed.update(LOGITS)  # their numbers go on
    assert unnamed.images == 4


def test_statistics_of_the_same_keys_add_up_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="a different key for every image"):
        assert (counted(1) + counted(1)).images == 4
    with pytest.raises(ValueError, match="statistics of 3 and 4 classes"):
        _ = LogitStatistics(C) + LogitStatistics(C + 1)
    for other in (1, None, "x"):
        with pytest.raises(TypeError, match="unsupported operand"):
            _ = counted(1) + other  # type: ignore[operator]


def test_logits_of_a_network_that_learns_are_counted() -> None:
    learning, plain = LogitStatistics(C), LogitStatistics(C)
    learning.update(LOGITS.clone().requires_grad_())
    plain.update(LOGITS)
    assert same(learning, plain)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"num_classes": 0}, "should be positive, not 0"),
        ({"num_classes": 3.0}, "'float' object cannot be interpreted as an integer"),
        ({"num_classes": C, "sources": ["truth"]}, "sources should be of ground_truth, pseudo, soft, not 'truth'"),
        ({"num_classes": C, "space": "center"}, "space should be of raw, centred, log-softmax, not 'center'"),
    ],
)
def test_what_is_counted_is_checked(arguments: dict[str, Any], wanted: str) -> None:
    with pytest.raises((ValueError, TypeError), match=wanted):
        LogitStatistics(**arguments)
    assert list(LogitStatistics(C, "soft").cells) == ["soft"]


def test_logits_that_look_like_probabilities_here_and_there_are_counted() -> None:
    inside = LOGITS.sigmoid()  # in 0..1, but not a distribution
    for logits in (inside, torch.zeros_like(LOGITS), torch.full_like(LOGITS, 1 / C), LOGITS.log_softmax(dim=1)):
        statistics = LogitStatistics(C)
        statistics.update(logits)
        assert statistics.images == 2
    one = LogitStatistics(1)
    one.update(torch.ones(1, 1, 4, 4))


def counted(*seeds: int) -> LogitStatistics:
    statistics = LogitStatistics(C, ["ground_truth", "pseudo"], bins=64)
    for seed in seeds:
        logits = torch.randn(2, C, 8, 6, generator=torch.Generator().manual_seed(seed))
        statistics.update(logits, logits.argmin(dim=1), [f"{seed} {index}" for index in range(2)])
    return statistics


def same(one: LogitStatistics, other: LogitStatistics) -> bool:
    def flat(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: flat(entry) for key, entry in value.items()}
        if isinstance(value, tuple):
            return [flat(entry) for entry in value]
        return value.tolist() if isinstance(value, torch.Tensor) else value

    return bool(str(flat(one.state_dict())) == str(flat(other.state_dict())))


def test_the_parts_of_a_metric() -> None:
    whole = counted(1, 2, 3)
    assert not same(whole, counted(1, 2))
    merged = counted(1)
    for seed in (2, 3):
        merged.merge_state(counted(seed))
    assert same(merged, whole)
    assert same(sum([counted(1), counted(2), counted(3)]), whole)  # type: ignore[arg-type]
    assert same(pickle.loads(pickle.dumps(whole)), whole)
    restored = LogitStatistics(C)
    restored.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert same(restored, whole)
    assert repr(whole) == "LogitStatistics(3 classes, 6 images, 288 pixels, ground_truth, pseudo)"
    whole.reset()
    assert same(whole, counted())
    whole.update(LOGITS, LOGITS.argmin(dim=1))
    assert bool(torch.isfinite(whole.compute()["predicted_share"]).all())
