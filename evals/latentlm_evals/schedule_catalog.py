"""What a KL schedule says of itself: the facts of `latentlm schedules list`, read from the docstrings of their classes.

A schedule's docstring begins with one line for people and has, anywhere below it, lines of the form

    Formula: weight * KL
    Source: Somebody 2020

A schedule without them is listed all the same.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from latentlm import plugins
from latentlm.errors import unknown_name
from latentlm.interface import KLSchedule


@dataclass(frozen=True)
class Entry:
    """One registered schedule."""

    name: str
    summary: str
    formula: str
    """Empty where the docstring has none."""
    source: str
    """Empty where the docstring has none."""
    has_state: bool
    """It moves with what it sees, and a checkpoint keeps its state."""
    settings: dict[str, object]
    """Names and defaults."""


def entries() -> list[Entry]:
    """Every registered schedule, by name."""
    return [_entry(name, plugins.get("kl_schedule", name)) for name in sorted(plugins.names("kl_schedule"))]


def check_names(names: list[str]) -> list[str]:
    """The names, each once, in their order. Raises UnknownNameError with the nearest for one that nothing answers to."""
    known = plugins.names("kl_schedule")
    for name in names:
        if name not in known:
            raise unknown_name("KL schedule", name, known, remedy="`latentlm schedules list` says what each does.")
    return list(dict.fromkeys(names))


def _entry(name: str, cls: type[KLSchedule]) -> Entry:
    text = inspect.cleandoc(cls.__doc__ or "")
    found = dict(re.findall(r"^(Formula|Source): (.+)$", text, flags=re.MULTILINE))
    return Entry(
        name=name,
        summary=text.partition("\n")[0],
        formula=found.get("Formula", ""),
        source=found.get("Source", ""),
        has_state=cls.load_state_dict is not KLSchedule.load_state_dict,
        settings={key: field.default for key, field in cls.Config.model_fields.items()},
    )
