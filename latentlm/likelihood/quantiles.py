"""How many standard errors an interval of 95% takes: Student's t, whose degrees of freedom say how well an error is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4096)
def t_quantile(freedom: float) -> float:
    """Where 95% of Student's t distribution lies between minus and plus this; at least one degree of freedom."""
    if freedom > 1e9:
        return 1.959963984540054
    freedom = max(freedom, 1.0)
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)

    def within(t: float) -> float:
        """The share below t, by Simpson's rule over the angle atan(t / sqrt(freedom)), in which the density is smooth."""
        angle = math.atan(t / math.sqrt(freedom))
        y = np.cos(np.linspace(0.0, angle, 401)) ** (freedom - 1)
        return float(2 * constant * (y[0] + y[-1] + 4 * y[1::2].sum() + 2 * y[2:-1:2].sum()) * angle / 1200)

    low, high = 1.9, 13.0  # the quantiles of infinitely many and of one degree of freedom lie between
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return high


def pooled_freedom(errors: Sequence[float], freedoms: Sequence[float]) -> float:
    """Degrees of freedom of errors added in quadrature (Satterthwaite 1946); infinite where there is no error."""
    total = sum(error**2 for error in errors)
    if total == 0 or not math.isfinite(total):
        return math.inf
    shares = sum((error**2 / total) ** 2 / freedom for error, freedom in zip(errors, freedoms, strict=True))
    return 1 / shares if shares else math.inf
