"""Run lm-eval tasks on a model and read the results: what `latentlm eval` and `latentlm compare` do.

    results = run_tasks(LatentLM(model), ["latentlm_short"])     # lm-eval's own results, as `lm_eval --output_path` writes them
    rows = task_results(results)                                 # one metric of one task each, with its standard error

lm-eval gives no standard error for bits per byte; here it is that of a ratio of sums, clustered by document.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lm_eval
from lm_eval.tasks import TaskManager

from latentlm.errors import UserError, unknown_name
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Method
from latentlm_evals.adapter import LatentLM
from latentlm_evals.generation_settings import GenerationSettings
from latentlm_evals.results import TaskResult
from latentlm_evals.suites import DEFAULT_SUITE, SUITES, task_path

_LISTED = 40  # names in an error message
_OURS = "latentlm_"  # no task of lm-eval's own begins so


class _Checked(TaskManager):
    """An index that refuses, as soon as tasks are loaded, what could not be generated: hours of likelihoods may come first."""

    generation: Mapping[str, Any] = {}
    """What `--gen_kwargs` says."""
    max_length: int | None = None

    def load(self, task_list: Any) -> Any:
        """The tasks. Raises UserError for generation arguments that cannot be served."""
        loaded = super().load(task_list)
        for name, task in loaded["tasks"].items():
            if self.max_length is not None and task.get_config("output_type") == "generate_until":
                try:
                    GenerationSettings.of({**(task.get_config("generation_kwargs") or {}), **self.generation}, self.max_length)
                except UserError as error:
                    raise UserError(f"task {name}: {error}") from None
        return loaded


def task_manager(tasks: Sequence[str], include_path: Path | None = None) -> _Checked:
    """An index of tasks in which every one of `tasks` is found: ours and those of `include_path`, else lm-eval's own too, which
    takes seconds to index. Raises UserError for names, and patterns of names, that nothing answers to."""
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"--include-path {include_path} is not a folder; give one with task files (.yaml).")
    folders = [str(task_path())] + ([str(include_path)] if include_path else [])
    manager = _Checked(include_path=folders, include_defaults=False)
    others = SUITES.keys() - {DEFAULT_SUITE}
    if others & set(tasks) or any(not name.startswith(_OURS) for name in _unknown(tasks, manager)):
        manager = _Checked(include_path=folders)
    for name in _unknown(tasks, manager):
        error = unknown_name("task", name, manager.all_tasks)
        if len(manager.all_tasks) > _LISTED:  # naming all of lm-eval's would bury the message
            hint = str(error).partition(" Available:")[0]
            shipped = ", ".join(_Checked(include_path=folders, include_defaults=False).all_tasks)
            raise type(error)(f"{hint} Available: {shipped}, and lm-eval's own (lm_eval ls tasks).")
        raise error
    return manager


def _unknown(tasks: Sequence[str], manager: TaskManager) -> list[str]:
    """Names that are no task, group or tag, no file, and no pattern that fits one."""
    return [name for name in tasks if not Path(name).is_file() and not manager.match_tasks([name])]


def check_tasks(tasks: Sequence[str], include_path: Path | None = None) -> None:
    """Raise UserError, with the nearest name, unless there are tasks and lm-eval knows every one."""
    if not tasks:
        raise UserError("--tasks names no task; leave it out for the shipped ones.")
    task_manager(tasks, include_path)


def run_tasks(
    adapter: LatentLM, tasks: Sequence[str], *, limit: float | None = None, include_path: Path | None = None
) -> dict[str, Any]:
    """lm-eval's results of the tasks, samples included. `limit`: items per task, or their share below 1."""
    results = run_with(adapter, tasks, include_path=include_path, limit=limit)
    assert results is not None, "one process has the results"
    return results


def run_with(
    adapter: LatentLM, tasks: Sequence[str], *, include_path: Path | None = None, **options: Any
) -> dict[str, Any] | None:
    """The same with any option of `lm_eval.simple_evaluate` (`gen_kwargs` as a mapping); None in the processes of a shared
    evaluation but the first. Raises UserError, before any work, for generation arguments that cannot be served."""
    manager = task_manager(tasks, include_path)
    manager.generation, manager.max_length = options.get("gen_kwargs") or {}, adapter.max_length
    names = [match for name in tasks for match in ([name] if Path(name).is_file() else manager.match_tasks([name]))]
    adapter.begin()
    if options.get("apply_chat_template"):
        adapter.chat_template(options["apply_chat_template"])
    with _errors_only():
        results = lm_eval.simple_evaluate(
            model=adapter,
            tasks=list(dict.fromkeys(names)),
            task_manager=manager,
            # The process's own generators are left alone: every random number of the adapter is keyed.
            random_seed=None,  # type: ignore[arg-type]
            numpy_random_seed=None,  # type: ignore[arg-type]
            torch_random_seed=None,  # type: ignore[arg-type]
            **options,
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
    samples: int | Literal["auto"] = 16,
    seed: int = 0,
    limit: float | None = None,
) -> list[TaskResult]:
    """Every metric of every task on a model."""
    return task_results(run_tasks(LatentLM(model, score=score, samples=samples, seed=seed), tasks, limit=limit))


def task_results(results: dict[str, Any]) -> list[TaskResult]:
    """One row per metric, filter and task, from lm-eval's results; groups and aliases are left out."""
    rows = []
    for task, config in sorted(results["configs"].items()):
        samples = (results.get("samples") or {}).get(task, [])
        chances = (config.get("metadata") or {}).get("chance") or {}
        items = int(results["n-samples"][task]["effective"])
        for row in _rows(task, results["results"][task], items):
            if row.standard_error is None and row.metric == "bits_per_byte" and samples:
                row = replace(row, standard_error=bits_per_byte_error([sample["bits_per_byte"] for sample in samples]))
            rows.append(replace(row, chance=chances.get(row.metric) if isinstance(chances, dict) else None))
    return rows


def group_results(results: dict[str, Any]) -> list[TaskResult]:
    """One row per metric, filter and group that puts its tasks together."""
    groups: dict[str, Any] = results.get("groups") or {}
    return [row for name, metrics in groups.items() for row in _rows(name, metrics, int(metrics.get("sample_len") or 0))]


def _rows(name: str, metrics: dict[str, Any], items: int) -> list[TaskResult]:
    """The numbers of one task or group, without chances."""
    rows = []
    for key, value in metrics.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        error = metrics.get(f"{metric}_stderr,{filtered}")
        rows.append(
            TaskResult(
                task=name,
                metric=metric,
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                chance=None,
                items=items,
                filter=filtered,
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
