"""Paired comparison of lm-eval tasks: every model against the first, on the same items, per task and over groups.

    found = compare_tasks([Model("vanilla", (run,)), Model("free", (seed0, seed1))])

What cannot be compared is refused with what differs: the tasks, the items, the right answers, the metrics. Prompts may differ
(shots, a chat template): that is said in a note. Only what lm-eval itself reports is compared: a metric with an aggregation
of a task's own is left out, with a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from latentlm.errors import UserError, unknown_name
from latentlm_evals.aggregations import higher_is_better, items_of
from latentlm_evals.logged import Evaluation, Metric
from latentlm_evals.paired import Scores, Stratum, crossed_difference, mcnemar
from latentlm_evals.results import TaskComparison, TaskDifference

_SHOWN = 5  # items in an error message


@dataclass(frozen=True)
class Model:
    """A model and its runs: one, or several that differ by seed."""

    name: str
    runs: tuple[Evaluation, ...]


def compare_tasks(models: Sequence[Model], only: Sequence[str] = ()) -> TaskComparison:
    """The differences of every model from the first. `only`: names or patterns of tasks and groups; none means all.

    Raises UserError where runs did not answer the same items with the same metrics."""
    tasks = _common_tasks([run for model in models for run in model.runs], only)
    for task in tasks:
        _check_items(models, task)
    notes = [*_notes(models, tasks), *_unconverged(models, tasks)]
    scores, left_out = _scores(models, tasks)
    notes += [f"{task} {_label(metric)} is left out: its aggregation is not one of lm-eval's." for task, metric in left_out]
    found = TaskComparison({model.name: [run.name for run in model.runs] for model in models}, [], notes)
    rows = [(task, metric, np.ones(1), [task]) for task in tasks for metric in scores[task]]
    for group, below in sorted(models[0].runs[0].groups.items()):
        for metric in dict.fromkeys(metric for task in below for metric in scores.get(task, ())):
            having = [task for task in below if metric in scores.get(task, ())]
            if len(having) > 1:
                rows.append((group, metric, _weights(group, having, metric, models[0].runs[0], scores), having))
    for number, model in enumerate(models[1:], 1):
        for name, metric, weights, pooled in rows:
            pairs = [(scores[task][metric][0], scores[task][metric][number]) for task in pooled]
            strata = [Stratum(*pair, float(weight)) for pair, weight in zip(pairs, weights, strict=True)]
            found.differences.append(_difference(name, pooled, metric, models[0], model, strata))
    return found


_ByTask = dict[str, dict[Metric, list[Scores]]]
"""Task -> metric -> each model's scores (R, I)."""


def _scores(models: Sequence[Model], tasks: Sequence[str]) -> tuple[_ByTask, list[tuple[str, Metric]]]:
    """Numbers per item of every metric, and the metrics that have none."""
    found: _ByTask = {}
    left_out = []
    for task in tasks:
        found[task] = {}
        for metric in models[0].runs[0].tasks[task].values:
            items = items_of([run.tasks[task] for model in models for run in model.runs], metric)
            if items is None:
                left_out.append((task, metric))
                continue
            rows = iter(items)
            found[task][metric] = [np.stack([next(rows) for _ in model.runs]) for model in models]
    return found, left_out


def _weights(group: str, tasks: Sequence[str], metric: Metric, run: Evaluation, scores: _ByTask) -> NDArray[np.float64]:
    """What each task counts in its group: as its items, or alike where that is what lm-eval reports of the whole group."""
    sizes = np.array([len(run.tasks[task].values[metric]) for task in tasks], dtype=float)
    by_size, alike = sizes / sizes.sum(), np.full(len(tasks), 1 / len(tasks))
    means = np.array([scores[task][metric][0][0].mean() for task in tasks])
    reported = run.group_values[group].get(metric)
    whole = list(tasks) == [task for task in run.groups[group] if metric in run.tasks[task].values]
    if whole and reported is not None and not np.isclose(by_size @ means, reported) and np.isclose(alike @ means, reported):
        return alike
    return by_size


def _difference(
    name: str, tasks: list[str], metric: Metric, first: Model, second: Model, strata: Sequence[Stratum]
) -> TaskDifference:
    """Over one task, or the tasks of a group."""
    found = crossed_difference(strata)
    answers = _single_answers(strata)
    asked = [first.runs[0].tasks[task] for task in tasks]
    return TaskDifference(
        name=name,
        tasks=tasks if len(tasks) > 1 else [],
        metric=metric[0],
        filter=metric[1],
        first=first.name,
        second=second.name,
        items=sum(len(task.values[metric]) for task in asked),
        runs=(len(first.runs), len(second.runs)),
        first_value=float(sum(s.weight * s.first.mean() for s in strata)),
        second_value=float(sum(s.weight * s.second.mean() for s in strata)),
        difference=found.value,
        low=found.low,
        high=found.high,
        items_error=found.items_error,
        runs_error=found.runs_error,
        higher_is_better=higher_is_better(asked[0], metric[0]),
        only_first=answers[0] if answers else None,
        only_second=answers[1] if answers else None,
        mcnemar=mcnemar(*answers) if answers else None,
        unconverged=sum(run.tasks[task].unconverged for model in (first, second) for run in model.runs for task in tasks),
    )


def _single_answers(strata: Sequence[Stratum]) -> tuple[int, int] | None:
    """Items that the first or the second model alone gets right; None unless scores are 0 or 1 and each model has one run."""
    if not all(len(scores) == 1 and np.isin(scores, (0.0, 1.0)).all() for s in strata for scores in (s.first, s.second)):
        return None
    return sum(int((s.first > s.second).sum()) for s in strata), sum(int((s.second > s.first).sum()) for s in strata)


def _common_tasks(runs: Sequence[Evaluation], only: Sequence[str]) -> list[str]:
    """The tasks to compare; every run has them. Raises UserError."""
    wanted = []
    for run in runs:
        chosen = set(run.tasks)
        if only:
            chosen = {task for name in only for task in _named(name, run)}
        wanted.append(chosen)
    for run, chosen in zip(runs[1:], wanted[1:], strict=True):
        if chosen != wanted[0]:
            raise UserError(
                f"{runs[0].name} and {run.name} ran different tasks ({_only(wanted[0], runs[0].name, chosen, run.name)}); name "
                "those that both have with --tasks."
            )
    return sorted(wanted[0])


def _named(name: str, run: Evaluation) -> list[str]:
    """The tasks that a name, a group or a pattern stands for. Raises UserError."""
    known = {**{task: [task] for task in run.tasks}, **run.groups}
    found = [task for key, below in known.items() if key == name or fnmatchcase(key, name) for task in below]
    if not found:
        raise unknown_name(f"task of {run.name}", name, known)
    return found


def _check_items(models: Sequence[Model], task: str) -> None:
    """Raise UserError unless all runs have the same metrics, items and right answers."""
    first, *others = [run for model in models for run in model.runs]
    own = first.tasks[task]
    for run in others:
        other = run.tasks[task]
        if own.values.keys() != other.values.keys():
            differing = _only(map(_label, own.values), first.name, map(_label, other.values), run.name)
            raise UserError(f"{task}: {first.name} and {run.name} have different metrics ({differing}); evaluate both alike.")
        for metric, items in own.values.items():
            if items.keys() != other.values[metric].keys():
                raise UserError(_different_items(task, metric, first, run))
        changed = [item[0] for item, target in own.targets.items() if other.targets.get(item, target) != target]
        if changed:
            raise UserError(
                f"{task}: the right answers of {first.name} and {run.name} differ at doc_id {_listed(changed)} (versions "
                f"{own.version} and {other.version}); evaluate both with one version of the task."
            )


def _different_items(task: str, metric: Metric, first: Evaluation, other: Evaluation) -> str:
    """What differs: which items there are, or what stands in them."""
    own, others = first.tasks[task].values[metric].keys(), other.tasks[task].values[metric].keys()
    own_ids, other_ids = {number for number, _ in own}, {number for number, _ in others}
    if own_ids != other_ids:
        return (
            f"{task}: {first.name} and {other.name} answered different items of {_label(metric)}: {len(own)} and {len(others)} "
            f"(doc_id, {_only(own_ids, first.name, other_ids, other.name)}); evaluate both with the same --limit."
        )
    changed = [number for number, _ in own ^ others]
    return (
        f"{task}: the documents of {first.name} and {other.name} differ at doc_id {_listed(changed)} (versions "
        f"{first.tasks[task].version} and {other.tasks[task].version}); evaluate both with one version of task and data."
    )


def _notes(models: Sequence[Model], tasks: Sequence[str]) -> list[str]:
    """What a reader has to know of how these runs were made."""
    runs = [run for model in models for run in model.runs]
    found = []
    for run in runs[1:]:
        asked = [task for task in tasks if run.tasks[task].prompts != runs[0].tasks[task].prompts]
        if asked:
            found.append(f"{run.name} had other prompts than {runs[0].name} (shots, chat template): {_listed(asked)}.")
        cut = [task for task in tasks if run.tasks[task].windows != runs[0].tasks[task].windows]
        if cut:
            found.append(
                f"{run.name} read whole texts in {run.tasks[cut[0]].windows} windows, {runs[0].name} in "
                f"{runs[0].tasks[cut[0]].windows} ones, which differ where a text is longer than the model's context: "
                f"{_listed(cut)}. Evaluate both with the same windows=... in --model_args."
            )
    for run in runs:
        if run.older:
            found.append(f"{run.name} holds several evaluations of {_listed(run.older)}: the latest is compared.")
        if not run.complete:
            found.append(f"{run.name} has no results file beside its samples: its groups and aggregations are not known.")
    alone = [model.name for model in models if len(model.runs) == 1]
    if alone and len(alone) < len(models):
        found.append(f"Of {', '.join(alone)} one run is given: the spread over seeds is that of the other model alone.")
    return found


def _unconverged(models: Sequence[Model], tasks: Sequence[str]) -> list[str]:
    """The tasks whose numbers rest on likelihoods that are not good to the tolerance."""
    found = []
    for run in (run for model in models for run in model.runs):
        bad = {task: run.tasks[task] for task in tasks if run.tasks[task].unconverged}
        if bad:
            listed = "; ".join(f"{task}: {one.unconverged:,} of {one.likelihoods:,}" for task, one in bad.items())
            found.append(
                f"Likelihoods of {run.name} that are not good to the tolerance: {listed}. Differences there are not in bold."
            )
    return found


def _label(metric: Metric) -> str:
    return metric[0] if metric[1] == "none" else ",".join(metric)


def _only(first: Iterable[object], first_name: str, second: Iterable[object], second_name: str) -> str:
    """What each has that the other lacks."""
    one, two = set(first), set(second)
    parts = [f"only {name}: {_listed(more)}" for name, more in ((first_name, one - two), (second_name, two - one)) if more]
    return "; ".join(parts)


def _listed(values: Iterable[object]) -> str:
    ordered = sorted(dict.fromkeys(values), key=lambda value: (str(type(value)), value))  # type: ignore[arg-type, return-value]
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(map(str, ordered[:_SHOWN])) + more
