from collections.abc import Iterator

import pytest

from blda_cli.errors import BldaError
from blda_cli.runtime.read_ahead import one_behind


def numbers(count: int, made: list[int], error: type[Exception] | None = None) -> Iterator[int]:
    for number in range(count):
        made.append(number)
        yield number
    if error is not None:
        raise error("no more")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_item_is_given_in_order(count: int) -> None:
    assert list(one_behind(numbers(count, []))) == list(range(count))


def test_an_item_is_given_once_the_next_one_is_made_and_no_earlier_or_later() -> None:
    made: list[int] = []
    behind = one_behind(numbers(3, made))
    assert made == []
    seen = [(next(behind), list(made)) for _ in range(3)]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2])]


def test_what_was_made_before_an_error_is_given_first() -> None:
    behind = one_behind(numbers(2, [], BldaError))
    assert [next(behind), next(behind)] == [0, 1]
    with pytest.raises(BldaError, match="no more"):
        next(behind)


def test_a_fault_of_the_program_stops_at_once() -> None:
    behind = one_behind(numbers(2, [], RuntimeError))
    assert next(behind) == 0
    with pytest.raises(RuntimeError):
        next(behind)
