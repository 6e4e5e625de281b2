"""What may be kept in lm-eval's `--use_cache` database, and what may not.

lm-eval looks an answer up by the request's text. That is right for a likelihood and for the greedy text of a decoder without
latents, which are functions of the request. A sampled text is not: a repeat of the question, which wants another sample, would
get a copy of the first. lm-eval itself holds back only where `do_sample` is set; latents, drawn anew for each repeat, and a
bare `temperature` are unknown to it.

So such a text is a `Sample`, which the database does not take under lm-eval's key. The adapter keeps it under a key of its own,
which has the number of the repeat in it. Beside each likelihood it keeps the score that it is of, and so its error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, hash_args
from sqlitedict import SqliteDict

from latentlm.likelihood import Score


class Sample(str):
    """A text that another repeat of the same question would not have."""

    __slots__ = ()


class Answers(SqliteDict):  # type: ignore[misc]
    """lm-eval's database, which takes no `Sample`."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(value, Sample):
            super().__setitem__(key, value)


class Sealed(SqliteDict):  # type: ignore[misc]
    """lm-eval's database, which takes nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing."""


def seal(database: Any) -> None:
    """From now on the database, which lm-eval has opened, takes nothing: what a dry run answers is no answer."""
    if isinstance(database, SqliteDict):
        database.__class__ = Sealed


def refuse_samples(database: Any) -> None:
    """From now on the database, which lm-eval has opened, takes no `Sample`."""
    if type(database) is SqliteDict:
        database.__class__ = Answers  # lm-eval makes it, holds it and offers no other place to step in


def recall(hook: CacheHook, request: Iterable[Any], repeat: int) -> str | None:
    """The text that was kept of this repeat of a request for generation."""
    database = hook.dbdict
    found = None if database is None else database.get(hash_args("generate_until", [*request, repeat]))
    return None if found is None else str(found)


def keep(hook: CacheHook, request: Iterable[Any], repeat: int | None, text: str) -> str:
    """Keep a text, of this repeat alone if it has a number; returns it as lm-eval may have it."""
    if repeat is None:
        hook.add_partial("generate_until", request, text)
        return text
    hook.add_partial("generate_until", [*request, repeat], text)
    return Sample(text)


def keep_score(hook: CacheHook, kind: str, request: Iterable[Any], score: Score) -> None:
    """Keep the score of a request for a likelihood (`kind` is lm-eval's), which says more than lm-eval keeps."""
    hook.add_partial(f"latentlm score of {kind}", request, score)


def recall_score(hook: CacheHook, kind: str, request: Iterable[Any]) -> Score | None:
    """The score that was kept of a request."""
    found = None if hook.dbdict is None else hook.dbdict.get(hash_args(f"latentlm score of {kind}", request))
    return found if isinstance(found, Score) else None


def repeat_numbers(requests: Sequence[Instance]) -> list[int]:
    """The number of each request among its repeats. lm-eval repeats a request by passing the same object several times; equal
    prompts of different documents are no repeats, so that the order of documents does not matter."""
    seen: Counter[int] = Counter()
    numbers = []
    for request in requests:
        numbers.append(seen[id(request)])
        seen[id(request)] += 1
    return numbers
