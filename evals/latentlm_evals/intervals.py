"""95% intervals, over texts, pairs, groups or prompts that are independent of each other.

Legend: N units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_Z = 1.959963984540054
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie; not a number without a unit."""

    value: float
    low: float
    high: float


def share(values: ArrayLike | Sequence[float]) -> Interval:
    """Of N values in [0, 1]: Wilson's interval (1927), which has a length also where all are 0 or 1. Values in between vary
    less than zeros and ones of the same mean: for them it is wider than need be."""
    found = np.asarray(values, dtype=float)
    if not len(found):
        return Interval(math.nan, math.nan, math.nan)
    mean, count = float(found.mean()), len(found)
    centre = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
    return Interval(mean, max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)))


def bootstrapped(values: ArrayLike | Sequence[float], *, seed: int = 0) -> Interval:
    """Of the mean of N values of any size: the percentile bootstrap (Efron 1979)."""
    found = np.asarray(values, dtype=float)
    if not len(found):
        return Interval(math.nan, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(len(found), size=(_RESAMPLES, len(found)))
    low, high = np.quantile(found[drawn].mean(1), (0.025, 0.975))
    return Interval(float(found.mean()), float(low), float(high))
