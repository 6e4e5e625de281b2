"""The models of the experiment, and what is expected of them.

The paper trains one model for each budget kappa and says neither its size nor how long. Ours have 300,000 parameters;
study.yaml has them, and they are named free-synthetic-TABLE-KAPPA. Two kinds of table:

    full       the paper's, one row for each code; its rows begin as sums of one vector per bit (`full-additive`), from
               where the encoder's gradient is not starved (docs/estimators.md)
    additive   one vector per bit, throughout

Outcomes (Fleuret 2025, section 4.1), by latents shared within a group:

    1/64 bit   nothing is shared: like a vanilla model
    1/8 bit    the place of the letters, not the noise
    1 bit      the place and the noise
    8 bits     everything: generation from the prior is broken
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentlm_evals.letter.groups import Agreement
from latentlm_evals.letter.resampling import interval

BASELINE = "vanilla-synthetic"
KINDS = ("full", "additive")
BUDGETS = {"1-64": 1 / 64, "1-8": 1 / 8, "1": 1.0, "8": 8.0}
"""Bits per token by how a name has them."""
_NAME = re.compile(rf"free-synthetic-({'|'.join(KINDS)})-({'|'.join(BUDGETS)})")


def kind_of(name: str) -> str | None:
    """Of table; None for the baseline."""
    found = _NAME.fullmatch(name)
    return found and found[1]


def budget_of(name: str) -> str | None:
    """A key of `BUDGETS`; None for the baseline."""
    found = _NAME.fullmatch(name)
    return found and found[2]


def label(name: str) -> str:
    """Short words for a table: the kind of table and kappa."""
    budget = budget_of(name)
    return "vanilla" if budget is None else f"{kind_of(name)} {budget.replace('-', '/')}"


@dataclass(frozen=True)
class Seen:
    """What generation shows of a model, latents from the prior throughout."""

    independent: Agreement
    shared: Agreement
    vanilla: Agreement
    """Of the baseline, independent."""


@dataclass(frozen=True)
class Criterion:
    """A condition of an outcome: its words, the value that decides, and whether it is met."""

    text: str
    value: Callable[[Seen], float]
    holds: Callable[[float], bool]


def _criterion(text: str, value: Callable[[Seen], float], *, least: float = -1e9, most: float = 1e9) -> Criterion:
    return Criterion(text, value, lambda found: least <= found <= most)


CRITERIA: Mapping[str, tuple[Criterion, ...]] = {
    "1-64": (
        _criterion("starts near each other within groups no more often than across, +0.05",
                   lambda seen: seen.shared.near_within - seen.shared.near_across, most=0.05),
        _criterion("masks agree as in the independent groups, +0.05",
                   lambda seen: seen.shared.masks - seen.independent.masks, most=0.05),
        _criterion("valid at least vanilla's share, -0.05",
                   lambda seen: seen.shared.valid - seen.vanilla.valid, least=-0.05),
    ),
    "1-8": (
        _criterion("starts near within groups at least 0.6", lambda seen: seen.shared.near_within, least=0.6),
        _criterion("near across groups at most 0.2", lambda seen: seen.shared.near_across, most=0.2),
        _criterion("masks agree as in the independent groups, within 0.05",
                   lambda seen: seen.shared.masks - seen.independent.masks, least=-0.05, most=0.05),
    ),
    "1": (
        _criterion("starts near within groups at least 0.6", lambda seen: seen.shared.near_within, least=0.6),
        _criterion("near across groups at most 0.2", lambda seen: seen.shared.near_across, most=0.2),
        _criterion("masks agree at least 0.5", lambda seen: seen.shared.masks, least=0.5),
    ),
    "8": (
        _criterion("valid below half of vanilla's share",
                   lambda seen: seen.independent.valid / max(seen.vanilla.valid, 1e-9), most=0.5),
    ),
}  # fmt: skip
"""Fixed before the models were trained."""


def outcomes(budget: str, seen: Seen, others: Sequence[Seen] = ()) -> list[dict[str, Any]]:
    """Each criterion of a budget with its value and whether it is met. With `others`, what would have been seen of other
    groups: the interval of 95% of the value, and whether the verdict is decided, the same in 97.5% of them."""
    found = []
    for one in CRITERIA[budget]:
        value = one.value(seen)
        said = {"criterion": one.text, "value": value, "met": one.holds(value)}
        if others:
            values = [one.value(other) for other in others]
            low, high = interval(values)
            same = sum(one.holds(other) == said["met"] for other in values)
            said |= {"low": low, "high": high, "decided": same >= 0.975 * len(values)}
        found.append(said)
    return found
