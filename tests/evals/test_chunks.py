"""Requests are answered a chunk at a time, and a question is never torn apart."""

from __future__ import annotations

from latentlm_evals.chunks import answer_in_chunks


def test_a_chunk_holds_whole_questions() -> None:
    asked: list[list[int]] = []

    def answer(numbers: list[int]) -> list[int]:
        asked.append(numbers)
        return [10 * number for number in numbers]

    questions = ["a", "a", "a", "b", "c", "c"]
    found = answer_in_chunks([4, 5, 3, 0, 1, 2], answer, title="", quiet=True, chunk=2, together=questions)
    assert asked == [[4, 5, 3], [0, 1, 2]]
    assert found == [0, 10, 20, 30, 40, 50]


def test_a_chunk_holds_so_many_requests_where_nothing_belongs_together() -> None:
    asked: list[list[int]] = []
    answer_in_chunks([2, 0, 1], lambda numbers: asked.append(numbers) or numbers, title="", quiet=True, chunk=2)  # type: ignore[func-returns-value]
    assert asked == [[2, 0], [1]]
