"""From what lm-eval logs of a metric to one number per item, for any aggregation that lm-eval knows.

A mean's items are numbers already. A ratio of sums (bits per byte), a perplexity, an F1 or a BLEU is no mean: its items are the
jackknife's (paired.py). Which aggregation it is, is checked against the value that lm-eval itself reports: a task with an
aggregation of its own is left out, not misread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lm_eval.api.metrics
import numpy as np
from lm_eval.api.registry import aggregation_registry, higher_is_better_registry, metric_agg_registry
from numpy.typing import NDArray

from latentlm_evals.logged import LoggedTask, Metric
from latentlm_evals.paired import pseudo_values

Aggregation = Callable[[Sequence[Any]], float]

_MEAN: Aggregation = lm_eval.api.metrics.mean
_NOT_SMOOTH = ("median", "bypass")  # the jackknife's error of a median is wrong; "bypass" stands for no metric


def items_of(tasks: Sequence[LoggedTask], metric: Metric) -> list[NDArray[np.float64]] | None:
    """The numbers of every run of a task, each (I,) with I items in the order of their ids, or (G,) for blocks of them; their
    mean is what lm-eval reports. None where no aggregation of lm-eval's gives that."""
    runs = [[task.values[metric][item] for item in sorted(task.values[metric])] for task in tasks]
    for aggregate in _candidates(tasks[0], metric[0]):
        reported = [task.reported.get(metric) for task in tasks]
        if all(_gives(aggregate, values, value) for values, value in zip(runs, reported, strict=True)):
            if aggregate is _MEAN:
                return [np.array(values, dtype=np.float64) for values in runs]
            return [pseudo_values(values, aggregate) for values in runs]
    return None


def higher_is_better(task: LoggedTask, metric: str) -> bool | None:
    """Which way is better: as the task says, else as lm-eval knows the metric; None where neither does."""
    return task.higher_is_better.get(metric, higher_is_better_registry.get(metric, None))


def _candidates(task: LoggedTask, metric: str) -> Iterator[Aggregation]:
    """The aggregation that the task names, the one that lm-eval gives the metric, and the mean, which is its default."""
    named = task.aggregations.get(metric, metric if metric in _NOT_SMOOTH else "")
    if named in _NOT_SMOOTH:
        return
    if named in aggregation_registry:
        yield aggregation_registry.get(named)
    if metric in metric_agg_registry:
        yield metric_agg_registry.get(metric)
    yield _MEAN


def _gives(aggregate: Aggregation, values: Sequence[Any], reported: float | None) -> bool:
    """Whether the aggregation takes these values and gives what was reported; items of a mean have to be numbers."""
    if aggregate is _MEAN and not all(isinstance(value, int | float | np.number | np.bool_) for value in values):
        return False
    try:
        found = float(aggregate(values))
    except (TypeError, ValueError, ArithmeticError, IndexError):
        return False
    return math.isfinite(found) and (reported is None or math.isclose(found, reported, rel_tol=1e-6, abs_tol=1e-9))
