"""Requests answered a chunk at a time: progress is seen, and what was answered is in the cache if the run is cut off."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

Answer = TypeVar("Answer")

CHUNK = 64
"""Requests between two steps of the progress bar; those that belong together count as one."""


def answer_in_chunks(
    order: Sequence[int],
    answer: Callable[[list[int]], Iterable[Answer]],
    *,
    title: str,
    quiet: bool,
    chunk: int = CHUNK,
    together: Sequence[Hashable] | None = None,
) -> list[Answer]:
    """Answers to requests 0..n-1, in that order, worked off in `order` (a permutation of them); `answer` takes request numbers
    and gives their answers in the same order. `together`: a name for each request; those of one name that follow one another
    are answered at once."""
    answers: dict[int, Answer] = {}
    with tqdm(total=len(order), desc=title, disable=quiet) as bar:
        for numbers in _chunks(order, chunk, together):
            answers.update(zip(numbers, answer(numbers), strict=True))
            bar.update(len(numbers))
    return [answers[number] for number in range(len(order))]


def _chunks(order: Sequence[int], chunk: int, together: Sequence[Hashable] | None) -> Iterator[list[int]]:
    numbers: list[int] = []
    units = 0
    for number in order:
        new = together is None or not numbers or together[number] != together[numbers[-1]]
        if new and units == chunk:
            yield numbers
            numbers, units = [], 0
        units += new
        numbers.append(number)
    if numbers:
        yield numbers
