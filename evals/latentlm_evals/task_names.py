"""What `--tasks` names: lm-eval's tasks, groups, tags, task files and patterns, all found and loaded before any long work."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

from latentlm.errors import UserError
from latentlm_evals.evaluation import Tasks, errors_only, is_task_file, task_manager, unknown_task
from latentlm_evals.suites import task_path

_OURS = "latentlm_"  # no task of lm-eval's own begins so


def resolve_tasks(names: Sequence[str], include_path: Path | None = None) -> list[str]:
    """The names with their patterns spelled out, each task in it once: what a group holds is not named again beside it.

    Raises UserError for a name or pattern that nothing answers to, for a task whose data cannot be loaded, and for tasks that
    no comparison of text models can run."""
    if not names:
        raise UserError("--tasks names no task; leave it out for the shipped ones.")
    names = [found for name in names for found in (_task_files(name) or [name])]
    patterns = [name for name in names if _is_pattern(name)]
    manager = task_manager([name for name in names if name not in patterns], include_path)
    if any(not pattern.startswith(_OURS) for pattern in patterns):  # lm-eval's own tasks take seconds to index
        manager = Tasks(include_path=[str(task_path())] + ([str(include_path)] if include_path else []))
    found: dict[str, None] = {}
    for name in names:
        matches = manager.match_tasks([name]) if name in patterns else [name]
        if not matches:
            raise unknown_task(name, manager)
        found.update(dict.fromkeys(matches))
    return _without_repeats({name: _load(name, manager) for name in found})


def _task_files(pattern: str) -> list[str]:
    """The files that a pattern of files means; none for a pattern of names."""
    return sorted(glob(pattern)) if pattern.endswith((".yaml", ".yml")) and _is_pattern(pattern) else []


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[") and not is_task_file(name)


def _load(name: str, manager: Tasks) -> dict[str, Any]:
    """Every task below a name, with its data. Raises UserError."""
    with errors_only():
        tasks = manager.load([name])["tasks"]
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"{task.task_name} runs code that a model wrote, which this command does not: evaluate each model with lm_eval "
                "--confirm_run_unsafe_code --log_samples, and compare the two folders."
            )
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"{task.task_name} shows images, which these models do not see; leave it out of --tasks.")
    return dict(tasks)


def _without_repeats(tasks: dict[str, dict[str, Any]]) -> list[str]:
    """Leave out each name whose tasks another name has already: lm-eval takes no task twice."""
    kept: list[str] = []
    covered: set[str] = set()
    for name in sorted(tasks, key=lambda name: -len(tasks[name])):
        again = covered & tasks[name].keys()
        if again and again != tasks[name].keys():
            raise UserError(f"{name} and other names of --tasks share {', '.join(sorted(again)[:5])}; name each task once.")
        if not again:
            kept.append(name)
            covered |= tasks[name].keys()
    return [name for name in tasks if name in kept]
