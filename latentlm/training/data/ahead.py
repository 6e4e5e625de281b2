"""Batches made ahead: while one is trained on, a thread makes the next."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """What is made of numbers below `end` that are mostly taken in turn; `make` is called by one thread at a time.

    Example::

        ahead = Ahead(str)
        assert (ahead.take(0), ahead.take(1), ahead.take(7)) == ("0", "1", "7")  # "1" was made ahead, "2" in vain
    """

    def __init__(self, make: Callable[[int], T], *, end: int | None = None) -> None:
        self._make, self._end = make, end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: tuple[int, Future[T]] | None = None

    def take(self, number: int) -> T:
        """What is made of `number`; the making of the next one begins. Raises what `make` raises, for its own number only."""
        if self._next is None or self._next[0] != number:
            self._next = number, self._thread.submit(self._make, number)
        made = self._next[1].result()
        self._next = None
        if number + 1 != self._end:
            self._next = number + 1, self._thread.submit(self._make, number + 1)
        return made

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
