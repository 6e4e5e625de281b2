"""The temperature at which a model has a given pass@1, so that its pass@k can be compared with another's at equal pass@1.

From the hottest temperature down to greedy, the first step on which pass@1 comes up to the goal is halved until it is short:
of several temperatures that would do, that is the hottest, at which the model is most diverse. Where none comes up to the goal,
or the hottest is above it already, the nearest stands, and it is said that the goal was not reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TEMPERATURES = (4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.2, 0.0)
_HALVINGS = 6
MOST_TRIES = len(TEMPERATURES) + _HALVINGS


@dataclass(frozen=True)
class Match:
    """A temperature, and the pass@1 that it gives and was to give."""

    temperature: float
    goal: float
    found: float
    reached: bool


def matched(pass_at_1: Callable[[float], float], goal: float) -> Match:
    """The temperature whose pass@1 comes nearest to the goal. `pass_at_1` is asked for one temperature after another, at most
    `MOST_TRIES` times."""
    tried: dict[float, float] = {}
    reached = False
    for number, temperature in enumerate(TEMPERATURES):
        tried[temperature] = pass_at_1(temperature)
        if tried[temperature] >= goal:
            reached = number > 0
            if reached:
                _halve(pass_at_1, goal, TEMPERATURES[number - 1], temperature, tried)
            break
    best = min(tried, key=lambda temperature: (abs(tried[temperature] - goal), -temperature))
    return Match(best, goal, tried[best], reached)


def _halve(
    pass_at_1: Callable[[float], float], goal: float, hot: float, cold: float, tried: dict[float, float]
) -> None:
    """Try temperatures between one whose pass@1 is below the goal and a colder one whose is not."""
    for _ in range(_HALVINGS):
        middle = (hot + cold) / 2
        tried[middle] = pass_at_1(middle)
        if tried[middle] >= goal:
            cold = middle
        else:
            hot = middle
