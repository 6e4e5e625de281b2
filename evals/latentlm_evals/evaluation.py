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
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lm_eval
from lm_eval.evaluator_utils import print_writeout
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from latentlm.config.checking import real
from latentlm.config.training import means_file
from latentlm.errors import UserError, path_of, short, unknown_name
from latentlm.interface import LatentDecoder
from latentlm.likelihood import Method
from latentlm_evals.adapter import LatentLM
from latentlm_evals.fingerprint import check_cache
from latentlm_evals.results import TaskResult
from latentlm_evals.suites import DEFAULT_SUITE, SUITES, task_path

_LISTED = 40  # names in an error message
_log = logging.getLogger("latentlm_evals")
_CODE_ALLOWED = "HF_ALLOW_CODE_EVAL"
_OURS = "latentlm_"  # no task of lm-eval's own begins so


class Tasks(TaskManager):
    """lm-eval's index of tasks, which says in one message why some cannot be loaded."""

    runs_code = True
    """Whether tasks that run what a model wrote may run."""
    shots: int | None = None
    """What `--num-fewshot` says; of tasks whose file says 0, lm-eval takes no notice of it."""

    def __init__(self, **given: Any) -> None:
        try:
            with _odd_names_left_out():
                super().__init__(**given)
        except Exception as error:  # which file is at fault is not said
            where = ", ".join(map(str, given.get("include_path") or ()))
            said = f"the task files in {where} cannot be indexed ({_reason(error)})"
            raise UserError(f"{said}. Mend or remove the one that is at fault.") from None
        self._building: str | None = None
        build = self._factory.build  # no public place says which task of a group could not be built

        def noted(entry: Any, **how: Any) -> Any:
            self._building = entry.name
            return build(entry, **how)

        self._factory.build = noted  # type: ignore[method-assign]

    def load(self, task_list: Any) -> Any:
        """The tasks, with their data. Raises UserError."""
        for name in task_list if isinstance(task_list, list) else [task_list]:
            if isinstance(name, str) and not means_file(name) and name not in self.task_index:  # lm-eval would take any file
                raise unknown_task(name, self)
        try:
            loaded = super().load(task_list)
        except UserError:
            raise
        except Exception as error:  # a task brings code and a data source of its own: anything may come
            asked = [*task_list] if isinstance(task_list, list) else [task_list]
            if "Duplicate task" in str(error):
                named = ", ".join(map(str, asked))
                raise UserError(f"{named}: several hold one task ({_reason(error)}). Name one of them at a time.") from error
            of = "" if self._building in asked or self._building is None else f", of {', '.join(map(str, asked))},"
            name = self._building or ", ".join(map(str, asked))
            raise UserError(f"the task {name}{of} cannot be loaded ({_reason(error)}){_remedy(error)}") from error
        unsafe = [name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
        if unsafe and not self.runs_code:
            raise UserError(
                f"task {unsafe[0]} runs code that the model writes: say --confirm-run-unsafe-code if this machine may run it."
            )
        for name, task in loaded["tasks"].items():
            odd = [metric for metric, function in task.aggregation().items() if not callable(function)]
            if odd:  # lm-eval would find that out after the work
                raise UserError(f"task {name}: lm-eval knows no such aggregation of {odd[0]}. Mend its metric_list.")
            if not isinstance(repeats := task.get_config("repeats"), int | None) or (repeats is not None and repeats < 1):
                raise UserError(f"task {name}: repeats is {short(repr(repeats))}, and should be 1 or more. Mend its file.")
        fixed = [name for name, task in loaded["tasks"].items() if task.get_config("num_fewshot") == 0]
        if self.shots and fixed:
            _log.warning(
                "latentlm: %s: no example is put first, whatever --num-fewshot says: the task's file says 0.", ", ".join(fixed)
            )
        return loaded


@contextmanager
def _odd_names_left_out() -> Iterator[None]:
    """Leave out each file whose names are no texts, and say so: lm-eval would take it into its index, and fail to sort that."""
    process = TaskIndex.process_cfg  # an error of it costs the one file, without a word

    def checked(cfg: dict[str, Any], path: Path, index_: dict[str, Any]) -> None:
        own, tags = "group" if "group" in cfg and "class" not in cfg else "task", cfg.get("tag") or []
        named = [(own, cfg[own])] if own in cfg else []  # what names nothing is there to be included
        for key, name in [*named, *(("tag", tag) for tag in (tags if isinstance(tags, list) else [tags]))]:
            if not isinstance(name, str):
                _log.warning("latentlm: %s is left out: its %s is %s, which is no text.", path, key, short(repr(name)))
                raise TypeError(key)
        process(cfg, path, index_)

    TaskIndex.process_cfg = staticmethod(checked)  # type: ignore[method-assign]
    try:
        yield
    finally:
        TaskIndex.process_cfg = staticmethod(process)  # type: ignore[method-assign]


def _reason(error: Exception) -> str:
    """The kind of an error and the first line that has words in it, without frames of signs around it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return ": ".join([type(error).__name__, *[line for line in lines if any(map(str.isalpha, line))][:1]])


def _remedy(error: Exception) -> str:
    if _CODE_ALLOWED in str(error):
        return f": it runs code that the model writes, which {_CODE_ALLOWED}=1 in the environment allows."
    return ": are its data and metrics here (docs/lm-eval.md says how), or on the network?"


def task_manager(
    tasks: Sequence[str], include_path: Path | None = None, *, metadata: dict[str, Any] | None = None
) -> Tasks:
    """An index of tasks in which every one of `tasks` is found: ours and those of `include_path`, else lm-eval's own too, which
    takes seconds to index. Tasks get `metadata` beside their own. Raises UserError for names, and patterns of names, that
    nothing answers to."""
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"--include-path {include_path} is not a folder; give one with task files (.yaml).")
    folders = [str(task_path())] + ([str(include_path)] if include_path else [])
    manager = Tasks(include_path=folders, include_defaults=False, metadata=metadata)
    others = SUITES.keys() - {DEFAULT_SUITE}
    if others & set(tasks) or any(not name.startswith(_OURS) for name in _unknown(tasks, manager)):
        manager = Tasks(include_path=folders, metadata=metadata)
    for name in _unknown(tasks, manager):
        raise unknown_task(name, manager)
    return manager


def unknown_task(name: str, manager: TaskManager) -> UserError:
    """The error of a name that is not in an index of tasks, which says what is near."""
    error = unknown_name("task", name, manager.all_tasks, remedy=_as_a_file(name))
    if len(manager.all_tasks) <= _LISTED:
        return error
    hint = str(error).partition(" Available:")[0]  # naming all of lm-eval's would bury the message
    shipped = ", ".join(Tasks(include_path=manager.include_path, include_defaults=False).all_tasks)
    return type(error)(f"{hint} Available: {shipped}, and lm-eval's own (lm_eval ls tasks). {_as_a_file(name)}".rstrip())


def _as_a_file(name: str) -> str:
    return f"For the file of that name write ./{name}." if Path(name).is_file() else ""


def is_task_file(name: str) -> bool:
    """Whether a task is given as a file that is there."""
    return means_file(name) and Path(name).is_file()


def _unknown(tasks: Sequence[str], manager: TaskManager) -> list[str]:
    """Names that are no task, group or tag, no file, and no pattern that fits one."""
    return [name for name in tasks if not is_task_file(name) and not manager.match_tasks([name])]


def check_tasks(tasks: Sequence[str], include_path: Path | None = None) -> None:
    """Raise UserError, with the nearest name, unless there are tasks and lm-eval knows every one."""
    if not tasks:
        raise UserError("--tasks names no task; leave it out for the shipped ones.")
    task_manager(tasks, include_path)


def run_tasks(
    adapter: LatentLM, tasks: Sequence[str], *, limit: float | None = None, include_path: Path | None = None, **options: Any
) -> dict[str, Any]:
    """lm-eval's results of the tasks, samples included. `limit`: items per task, or their share below 1. `options`: as
    `run_with`."""
    results = run_with(adapter, tasks, include_path=include_path, limit=limit, **options)
    assert results is not None, "one process has the results"
    return results


def run_with(
    adapter: LatentLM, tasks: Sequence[str], *, include_path: Path | None = None, **options: Any
) -> dict[str, Any] | None:
    """The same with any option of `lm_eval.simple_evaluate` (`gen_kwargs` as a mapping); None in the processes of a shared
    evaluation but the first. Raises UserError, before any work, for tasks that cannot be loaded or served."""
    if (limit := options.get("limit")) is not None:
        share = real("limit", limit, above=0)
        if share > 1 and not share.is_integer():
            raise UserError(f"limit={limit} is neither a number of items nor a share of them.")
        options["limit"] = int(share) if share >= 1 else share
    manager = task_manager(tasks, include_path, metadata=options.pop("metadata", None))
    manager.runs_code, manager.shots = bool(options.get("confirm_run_unsafe_code")), options.get("num_fewshot")
    names = [match for name in tasks for match in ([name] if is_task_file(name) else manager.match_tasks([name]))]
    if options.get("apply_chat_template"):
        adapter.chat_template(options["apply_chat_template"])
    if options.get("use_cache"):
        path_of(f"{options['use_cache']}_rank0.db-journal")  # what sqlite would make of it
        check_cache(Path(options["use_cache"]))
    with errors_only(), _first_prompts_said(bool(options.get("write_out"))):
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
def _first_prompts_said(wanted: bool) -> Iterator[None]:
    """Let what lm-eval logs under `write_out` be seen on standard error; its log is silent outside of its own command."""
    logger = logging.getLogger(print_writeout.__module__)
    handler, level = logging.StreamHandler(), logger.level
    if not wanted:
        yield
        return
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def errors_only() -> Iterator[None]:
    """Silence lm-eval's log of tasks but for errors: it warns about every one that brings its own data. What it has to say of
    settings (a temperature without sampling) is heard."""
    logger = logging.getLogger("lm_eval.api.task")
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
