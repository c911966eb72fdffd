"""Work ahead of its use: reading in threads, a device's next batch; in order, memory bounded."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from blda_cli.errors import BldaError

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    function: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int
) -> Generator[tuple[T, Future[R]]]:
    """Call a function on items in threads, ahead of the consumer.

    Closing the iterator waits for the calls under way and drops the rest.

    Args:
        function: called from several threads.
        items: taken as they are needed.
        workers: threads.
        ahead: most items that are taken but not yet yielded.

    Yields:
        Every item and its result, in order; reading a pending result waits for it.
    """
    remaining = iter(items)
    waiting: deque[tuple[T, Future[R]]] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="blda-read")
    try:
        while True:
            for item in islice(remaining, ahead - len(waiting)):
                waiting.append((item, executor.submit(function, item)))
            if not waiting:
                return
            yield waiting.popleft()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each item once the next one has been made, so that a GPU already works on the next.

    Args:
        items: each is taken before the one before it is yielded.

    Yields:
        Every item, in order.

    Raises:
        BldaError: an item could not be made; those before it have been yielded.
    """
    made: deque[T] = deque()
    try:
        for item in items:
            made.append(item)
            if len(made) > 1:
                yield made.popleft()
    except BldaError:
        yield from made
        raise
    yield from made
