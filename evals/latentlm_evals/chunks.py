"""Requests answered a chunk at a time: progress is seen, and what was answered is in the cache if the run is cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

Answer = TypeVar("Answer")

CHUNK = 64
"""Requests between two steps of the progress bar."""


def answer_in_chunks(
    order: Sequence[int], answer: Callable[[list[int]], Iterable[Answer]], *, title: str, quiet: bool, chunk: int = CHUNK
) -> list[Answer]:
    """Answers to requests 0..n-1, in that order, worked off in `order` (a permutation of them); `answer` takes request numbers
    and gives their answers in the same order."""
    answers: dict[int, Answer] = {}
    with tqdm(total=len(order), desc=title, disable=quiet) as bar:
        for first in range(0, len(order), chunk):
            numbers = list(order[first : first + chunk])
            answers.update(zip(numbers, answer(numbers), strict=True))
            bar.update(len(numbers))
    return [answers[number] for number in range(len(order))]
