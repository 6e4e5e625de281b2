"""Run lm-eval tasks on a model and read the results: what `latentlm eval` and `latentlm compare` do.

    results = run_tasks(LatentLM(model), ["latentlm_short"])     # lm-eval's own results, as `lm_eval --output_path` writes them
    rows = task_results(results)                                 # one metric of one task each, with its standard error

lm-eval gives no standard error for bits per byte; here it is that of a ratio of sums, clustered by document.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from latentlm.errors import UserError, unknown_name
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Method
from latentlm_evals.adapter import LatentLM
from latentlm_evals.results import TaskResult
from latentlm_evals.suites import task_path

_LISTED = 40  # names in an error message
_OURS = "latentlm_"  # no task of lm-eval's own begins so


def task_manager(tasks: Sequence[str], include_path: Path | None = None) -> TaskManager:
    """An index of tasks in which every one of `tasks` is found: ours and those of `include_path`, else lm-eval's own too, which
    takes seconds to index. Raises UserError for names that nothing answers to."""
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"--include-path {include_path} is not a folder; give one with task files (.yaml).")
    folders = [str(task_path())] + ([str(include_path)] if include_path else [])
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(not name.startswith(_OURS) for name in _unknown(tasks, manager)):
        manager = TaskManager(include_path=folders)
    for name in _unknown(tasks, manager):
        error = unknown_name("task", name, manager.all_tasks)
        if len(manager.all_tasks) > _LISTED:  # naming all of lm-eval's would bury the message
            hint = str(error).partition(" Available:")[0]
            shipped = ", ".join(TaskManager(include_path=folders, include_defaults=False).all_tasks)
            raise type(error)(f"{hint} Available: {shipped}, and lm-eval's own (lm_eval ls tasks).")
        raise error
    return manager


def _unknown(tasks: Sequence[str], manager: TaskManager) -> list[str]:
    return [name for name in tasks if name not in manager.all_tasks and not Path(name).is_file()]


def check_tasks(tasks: Sequence[str], include_path: Path | None = None) -> None:
    """Raise UserError, with the nearest name, unless there are tasks and lm-eval knows every one."""
    if not tasks:
        raise UserError("--tasks names no task; leave it out for the shipped ones.")
    task_manager(tasks, include_path)


def run_tasks(
    adapter: LatentLM, tasks: Sequence[str], *, limit: float | None = None, include_path: Path | None = None
) -> dict[str, Any] | None:
    """lm-eval's results of the tasks, samples included; None in the processes of an evaluation but the first. `limit`: items
    per task, or their share below 1."""
    adapter.begin()
    with _errors_only():
        results = lm_eval.simple_evaluate(
            model=adapter,
            tasks=list(tasks),
            task_manager=task_manager(tasks, include_path),
            limit=limit,
            # The process's own generators are left alone: every random number of the adapter is keyed.
            random_seed=None,  # type: ignore[arg-type]
            numpy_random_seed=None,  # type: ignore[arg-type]
            torch_random_seed=None,  # type: ignore[arg-type]
        )
    return None if results is None else dict(results)


@contextmanager
def _errors_only() -> Iterator[None]:
    """Silence lm-eval's log but for errors: it warns about every task that brings its own data."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def evaluate(
    model: LatentDecoder,
    tasks: Sequence[str],
    *,
    score: Method = "operational",
    samples: int = 16,
    seed: int = 0,
    limit: float | None = None,
) -> list[TaskResult]:
    """Every metric of every task on a model."""
    results = run_tasks(LatentLM(model, score=score, samples=samples, seed=seed), tasks, limit=limit)
    assert results is not None, "one process has the results"
    return task_results(results)


def task_results(results: dict[str, Any]) -> list[TaskResult]:
    """One row per metric and task, from lm-eval's results; groups and aliases are left out."""
    rows = []
    for task, config in sorted(results["configs"].items()):
        chances = (config.get("metadata") or {}).get("chance") or {}
        metrics = results["results"][task]
        samples = (results.get("samples") or {}).get(task, [])
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            if not isinstance(error, int | float) and metric == "bits_per_byte":
                error = bits_per_byte_error([sample["bits_per_byte"] for sample in samples])
            rows.append(
                TaskResult(
                    task=task,
                    metric=metric,
                    value=float(value),
                    standard_error=float(error) if isinstance(error, int | float) else None,
                    chance=chances.get(metric) if isinstance(chances, dict) else None,
                    items=int(results["n-samples"][task]["effective"]),
                )
            )
    return rows


def bits_per_byte_error(documents: Sequence[tuple[float, int]]) -> float | None:
    """Standard error of bits per byte from (nats, bytes) of each document: of a ratio of sums, clustered by document."""
    count = len(documents)
    if count < 2:
        return None
    size = sum(length for _, length in documents)
    ratio = -sum(nats for nats, _ in documents) / size  # nats per byte
    spread = sum((-nats - ratio * length) ** 2 for nats, length in documents)
    return math.sqrt(spread * count / (count - 1)) / size / math.log(2)
