"""How far the agreement of groups would differ with other groups: the bootstrap over groups (Efron 1979).

A pair of groups counts as often as both were drawn; a group is never a pair with itself.

Legend: R resamples, G groups.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentlm_evals.letter.groups import NEAR, Agreement, Group

RESAMPLES = 1000
Interval = tuple[float, float]
MEASURES = ("near_within", "near_across", "masks", "valid")


def resampled(groups: Sequence[Group], *, seed: int = 0) -> list[Agreement]:
    """The agreement of R draws of G groups with replacement, in near_within, near_across, masks and valid; the others are not
    numbers."""
    count = len(groups)
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=RESAMPLES)  # (R, G)
    readings = [group.readings for group in groups]
    starts = np.array([[reading.start for reading in own] for own in readings])
    near = np.array([_near(own) for own in starts])
    apart = np.abs(starts[:, None, :, None] - starts[None, :, None, :]) <= NEAR  # (G, G, M, M)
    across = apart.mean((2, 3)) * (1 - np.eye(count))
    overlaps = [_overlaps([reading.noise for reading in own]) for own in readings]
    sums, pairs = (np.array([value(own) for own in overlaps], dtype=float) for value in (sum, len))
    valid = np.array([statistics.fmean(reading.valid for reading in own) for own in readings])
    both = drawn.sum(1) ** 2 - (drawn**2).sum(1)  # pairs of different groups
    columns = (
        drawn @ near / count,
        _ratio(np.einsum("rg,gh,rh->r", drawn, across, drawn), both),
        _ratio(drawn @ sums, drawn @ pairs),
        drawn @ valid / count,
    )
    unknown = dict.fromkeys(("spread_within", "spread_across", "noise"), math.nan)
    return [Agreement(**dict(zip(MEASURES, map(float, row), strict=True)), **unknown) for row in zip(*columns, strict=True)]


def intervals(found: Sequence[Agreement]) -> dict[str, Interval]:
    """95% intervals of what is resampled."""
    return {name: interval([getattr(one, name) for one in found]) for name in MEASURES}


def interval(values: Sequence[float]) -> Interval:
    """Of 95%, by the percentiles of resampled values."""
    low, high = np.quantile(np.asarray(values, dtype=float), (0.025, 0.975))
    return float(low), float(high)


def _near(starts: NDArray[np.int64]) -> float:
    return statistics.fmean(bool(abs(one - other) <= NEAR) for one, other in itertools.combinations(starts, 2))


def _overlaps(masks: Sequence[frozenset[int] | set[int]]) -> list[float]:
    """Jaccard indices of the pairs in which either is noisy."""
    pairs = itertools.combinations(masks, 2)
    return [len(one & other) / len(one | other) for one, other in pairs if one | other]


def _ratio(value: NDArray[np.float64], of: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where there is nothing to divide by, as `agreement` has it."""
    return np.divide(value, of, out=np.zeros(len(value)), where=np.asarray(of) > 0)
