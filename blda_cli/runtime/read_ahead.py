"""Read-ahead in threads: results in order, memory bounded."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

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
        ahead: most items that are taken and not given yet.

    Yields:
        Every item and its result, in order; asking a result that is not there yet waits for it.
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
