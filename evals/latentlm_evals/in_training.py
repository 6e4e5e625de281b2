"""lm-eval's tasks on a model that is being trained (`train.evaluate.tasks`): the entry point of `latentlm.evaluators`."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lm_eval.api.metrics
import lm_eval.api.task
import lm_eval.evaluator
import tqdm
from lm_eval.api.metrics import sample_stddev

from latentlm.interface import LatentDecoder
from latentlm_evals.adapter import LatentLM
from latentlm_evals.dry_run import DryLM
from latentlm_evals.evaluation import run_tasks, task_results
from latentlm_evals.fingerprint import Facts
from latentlm_evals.task_names import resolve_tasks

_BOOTSTRAPS = 1000
"""For standard errors of what has none in closed form (perplexities). lm-eval's own 100,000 take longer than the tasks."""


class _Unsigned(LatentLM):
    """Its answers are kept nowhere, and not signed with the hash of weights that are gone with the next step."""

    def facts(self) -> Facts:
        """None."""
        return {}


class _Dry(_Unsigned, DryLM):
    """Answers nothing."""


class _Silent(_Unsigned):
    """Shows no progress: the run has a bar of its own."""

    def _quiet(self, disable_tqdm: bool) -> bool:
        return True


class LmEval:
    """Some tasks, of each at most `limit` items, answered as `latentlm eval run` does by default."""

    def __init__(self, tasks: Sequence[str], limit: int | None) -> None:
        """Raises UserError for tasks that are not there or cannot be loaded."""
        self._names, self._limit = resolve_tasks(tasks), limit

    def check(self, model: LatentDecoder) -> None:
        """Make every request, and answer none. Raises UserError for those that the model cannot take."""
        self._run(_Dry(model))

    def answer(self, model: LatentDecoder) -> dict[str, dict[str, Any]]:
        """Metrics and their standard errors by task."""
        found: dict[str, dict[str, Any]] = {}
        for row in task_results(self._run(_Silent(model))):
            own = found.setdefault(row.task, {"items": row.items, "metrics": {}})
            name = row.metric if row.filter == "none" else f"{row.metric},{row.filter}"
            own["metrics"][name] = {"value": row.value, "standard_error": row.standard_error}
        return found

    def _run(self, adapter: LatentLM) -> dict[str, Any]:
        """lm-eval's results."""
        with _as_the_only_one():
            return run_tasks(adapter, self._names, limit=self._limit, bootstrap_iters=_BOOTSTRAPS)


@contextmanager
def _as_the_only_one() -> Iterator[None]:
    """lm-eval gives results to one process of a machine alone, by the environment. And it draws bars while it makes requests,
    has git say of what folder it is called, and bootstraps in processes of its own (forks of one that trains), loudly, which no
    option of its turns off."""
    local = os.environ.pop("LOCAL_RANK", None)
    silent = functools.partial(tqdm.tqdm, disable=True)
    with ExitStack() as stack:
        for owner, name, value in (
            (lm_eval.api.task, "tqdm", silent),
            (lm_eval.evaluator, "get_git_commit_hash", lambda: None),
            (lm_eval.api.metrics, "bootstrap_stderr", _bootstrapped),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        if local is not None:
            stack.callback(os.environ.__setitem__, "LOCAL_RANK", local)
        yield


def _bootstrapped(statistic: Callable[[Sequence[Any]], float], values: Sequence[Any], iters: int) -> float:
    """The standard error of a statistic of values."""
    draw = random.Random(0)
    return sample_stddev([statistic(draw.choices(values, k=len(values))) for _ in range(iters)])
