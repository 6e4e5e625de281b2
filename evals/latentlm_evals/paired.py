"""How much better one model does than another on the same items: the difference, its interval, McNemar's test.

Both models answered every item, each in R runs (seeds), so items and runs are crossed, and both were drawn from more:

    d          = sum over tasks of w * (mean over runs and items of second - the same of first)
    SE(d)^2    = items + runs of first + runs of second
    items      = sum of w^2 * variance over items of (mean over runs of second - that of first) / I
    runs       = max(0, variance over runs of (sum of w * mean over items) - sum of w^2 * s^2 / I) / R

s^2 is what is left of a model's scores after the means of its runs and of its items: `items` holds it already. With one run
of a model its own term is unknown and left out. The quantile is Student's, with Satterthwaite's degrees of freedom.

Where all scores are 0 or 1, SE counts two items more, one that each model alone gets right (as Bonett and Price 2012 do for the
difference of paired proportions): without them, two models that agree on every item would have an interval of length 0.

Legend: R runs, I items, G blocks of items; a task is a stratum with weight w.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentlm.likelihood.quantiles import t_quantile

Scores = NDArray[np.float64]
"""(R, I)"""

_BLOCKS = 256
"""At most so many, where an aggregation is computed anew without each."""


@dataclass(frozen=True)
class Stratum:
    """One task's scores: of the first model (R1, I) and the second (R2, I), on the same items in the same order."""

    first: Scores
    second: Scores
    weight: float = 1.0


@dataclass(frozen=True)
class Difference:
    """Second minus first, in the unit of the scores; the standard errors are not a number where they cannot be told."""

    value: float
    low: float
    high: float
    items_error: float
    """Standard error from the choice of items."""
    runs_error: float
    """Standard error from the runs (seeds) of both models; 0 where each has one."""


def crossed_difference(strata: Sequence[Stratum]) -> Difference:
    """Difference over one or more tasks, with its 95% interval (module docstring). Not a number where a task has one item."""
    value = sum(s.weight * (s.second.mean() - s.first.mean()) for s in strata)
    if any(s.first.shape[1] < 2 for s in strata):
        return Difference(float(value), math.nan, math.nan, math.nan, math.nan)
    items = sum(s.weight**2 * _variance(s.second.mean(0) - s.first.mean(0)) / s.first.shape[1] for s in strata)
    most = math.inf
    if all(np.isin(scores, (0.0, 1.0)).all() for s in strata for scores in (s.first, s.second)):
        most = sum(s.weight for s in strata)  # proportions differ by no more
        items += 2 * sum(s.weight**2 / s.first.shape[1] for s in strata) ** 2  # the mean weight of an item, twice
    pairs = [(items, sum(s.first.shape[1] for s in strata) - len(strata))]
    for scores in ([s.first for s in strata], [s.second for s in strata]):
        if len(scores[0]) > 1:
            pairs.append((_of_runs(scores, [s.weight for s in strata]), len(scores[0]) - 1))
    variance = sum(part for part, _ in pairs)
    spread = sum(part**2 / freedom for part, freedom in pairs)
    freedom = variance**2 / spread if spread > 0 else 1.0
    half = t_quantile(freedom) * math.sqrt(variance) if variance > 0 else 0.0
    low, high = max(-most, value - half), min(most, value + half)
    return Difference(float(value), low, high, math.sqrt(items), math.sqrt(max(0.0, variance - items)))


def _of_runs(scores: Sequence[Scores], weights: Sequence[float]) -> float:
    """Variance of one model's mean from its runs, without what chance does to each run's answers."""
    means = sum(weight * task.mean(1) for task, weight in zip(scores, weights, strict=True))  # (R,)
    chance = 0.0
    for task, weight in zip(scores, weights, strict=True):
        runs, items = task.shape
        rest = task - task.mean(1, keepdims=True) - task.mean(0, keepdims=True) + task.mean()
        chance += weight**2 * float((rest**2).sum()) / ((runs - 1) * (items - 1)) / items
    return max(0.0, _variance(means) - chance) / len(scores[0])


def _variance(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: were the items that one model alone gets right as likely to be either's?"""
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail, ways = 0, 1  # whole numbers: exact for any count
    for number in range(fewer + 1):
        tail += ways
        ways = ways * (count - number) // (number + 1)
    return min(1.0, 2 * tail / 2**count)


def pseudo_values(values: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]) -> NDArray[np.float64]:
    """(G,) numbers that stand for the items of an aggregation that is no mean (a ratio of sums, an F1): their mean is the
    aggregate, their spread the jackknife's. Where there are many items, a block of them has one number."""
    whole = aggregate(values)
    if len(values) < 2:
        return np.array([whole])
    size = -(-len(values) // _BLOCKS)
    found = []
    for start in range(0, len(values), size):
        block = slice(start, start + size)
        ratio = len(values) / len(values[block])
        found.append(ratio * whole - (ratio - 1) * aggregate([*values[:start], *values[start + size :]]))
    return np.array(found) + (whole - np.mean(found))  # the jackknife's own mean is another estimate, not what lm-eval prints
