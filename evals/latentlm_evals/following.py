"""One evaluation of lm-eval's as its model follows it: all of its requests, and the scores that it gave.

lm-eval hands a model its requests one kind after another. It does not say that an evaluation begins, nor what else is to come:
what cannot be served would be found hours late, after the likelihoods of other tasks, and answers from a `--use_cache` database
would never be heard of. `announce` has `lm_eval.evaluate` tell a model that listens, and show it the results. Nor does lm-eval
tell a model of its seeds: `torch_seed` looks torch's up.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.task import Task

from latentlm.errors import UserError
from latentlm.likelihood import Score
from latentlm.likelihood.results import exact_score
from latentlm_evals.answers import recall_score
from latentlm_evals.ranks import build_own_requests
from latentlm_evals.scored import Owner

LIKELIHOODS = ("loglikelihood", "loglikelihood_rolling")
_EMPTY = exact_score(0.0, tokens=0, method="exact", tolerance=0.0, greedy=None)
"""Of an empty text."""


class Evaluation:
    """What is known of an evaluation; of one that nobody announced, the requests that were scored."""

    def __init__(self, tasks: Mapping[str, Any] | None = None, samples: Mapping[str, Sequence[int]] | None = None) -> None:
        """`tasks`: by name, as lm-eval loads them. `samples`: what `--samples` chose, the numbers of each task's documents."""
        self._tasks = dict(tasks or {})
        self._samples = dict(samples or {})
        self._scores: dict[int, tuple[Instance, Score | None]] = {}
        self._heard: set[int] = set()

    def share(self, rank: int, count: int) -> None:
        """This process, of `count`, will have the requests of every `count`-th document (ranks.py)."""
        for task in self._tasks.values():
            build_own_requests(task, rank, count)

    def requests(self) -> Iterator[Instance]:
        """This process's requests, task by task; of each task lm-eval builds them before the first one is answered."""
        for task in self._tasks.values():
            yield from getattr(task, "instances", None) or ()

    def unheard(self) -> list[Instance]:
        """The requests that the model was not asked, as often as they are repeated: a `--use_cache` database answered them."""
        silent = [request for request in self.requests() if id(request) not in self._heard]
        return [request for request in silent for _ in range(request.repeats or 1)]

    def hear(self, requests: Sequence[Instance], check: Callable[[Instance], None], *, besides: str | None = None) -> None:
        """The model is asked `requests`. Before its first answer, `check` every request of the evaluation, besides those of a
        kind that its caller checks. Raises the check's UserError, with the task's name."""
        first = not self._heard
        self._heard.update(map(id, requests))
        for request in self.requests() if first else ():
            if request.request_type == besides:
                continue
            try:
                check(request)
            except UserError as error:
                raise UserError(f"task {request.task_name}: {error}") from None

    def note(self, request: Instance, score: Score | None) -> None:
        """Remember the score of a request; None of an empty text."""
        self._scores[id(request)] = (request, score)

    def recall(self, hook: CacheHook) -> list[Score]:
        """The scores of those requests that a `--use_cache` database answered, as far as it kept them."""
        found = []
        for request in self.requests():
            if request.request_type not in LIKELIHOODS or id(request) in self._scores:
                continue
            if (score := recall_score(hook, request.request_type, request.args)) is not None:
                self.note(request, score)
                found.append(score)
        return found

    def scores(self) -> dict[Owner, list[Score]]:
        """Scores of each document's requests, in lm-eval's order."""
        noted = sorted((request for request, _ in self._scores.values()), key=lambda request: request.idx)
        asked = list(self.requests()) if self._tasks else noted  # noted in the order in which they were scored
        found: dict[Owner, list[Score]] = {}
        for request in asked:
            if id(request) in self._scores and (owner := self._owner(request)) is not None:
                score = self._scores[id(request)][1]
                found.setdefault(owner, []).append(_EMPTY if score is None else score)
        return found

    def _owner(self, request: Instance) -> Owner | None:
        """Whose request this is; None where lm-eval has not said."""
        if request.task_name is None or request.doc_id is None:
            return None
        chosen = self._samples.get(request.task_name)  # lm-eval counts documents among these, and logs their own numbers
        return request.task_name, request.doc_id if chosen is None else chosen[request.doc_id]


def announce() -> None:
    """From now on `lm_eval.evaluate` calls `begin_evaluation` of a model that has it, with an `Evaluation`, and in the end, in
    the process that has the results, its `end_evaluation` with them."""
    if not hasattr(evaluator.evaluate, "announces"):
        evaluator.evaluate = _announcing(evaluator.evaluate)  # lm-eval offers no other place to step in


def _announcing(evaluate: Any) -> Any:
    @functools.wraps(evaluate)
    def announcing(lm: Any, *rest: Any, **options: Any) -> Any:
        if (begin := getattr(lm, "begin_evaluation", None)) is not None:
            begin(Evaluation(_flat(options.get("task_dict", *rest[:1]) or {}), options.get("samples")))
        results = evaluate(lm, *rest, **options)
        if results is not None and (end := getattr(lm, "end_evaluation", None)) is not None:
            end(results)
        return results

    announcing.announces = True  # type: ignore[attr-defined]
    return announcing


def torch_seed() -> int | None:
    """The seed that lm-eval gave torch before it had this model made: `--seed`, or `torch_random_seed`. None where lm-eval gave
    none, or has not asked for the model; the seed in force may then be anybody's."""
    frame = inspect.currentframe()
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) == (evaluator.__name__, "simple_evaluate"):
            seed = frame.f_locals.get("torch_random_seed")
            return seed if isinstance(seed, int) else None
        frame = frame.f_back
    return None


def _flat(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks in what lm-eval takes: with their groups beside them, or, of old, with groups around them."""
    found: dict[str, Any] = {}
    for name, held in tasks.get("tasks", tasks).items():
        found |= _flat(held) if isinstance(held, dict) else {name: held} if isinstance(held, Task) else {}
    return found
