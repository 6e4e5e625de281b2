"""What a check is, and how it says that it does not apply.

    @check("masks")
    def padding_ignored(subject: Subject) -> None:
        '''Tokens and neighbours in the padding change nothing that is real.'''

A check takes a subject, returns nothing where all is well, raises AssertionError with what went wrong and where to look, and
NotApplicable with the reason where the decoder has nothing of the kind. It never changes the subject's models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module

from latentlm.errors import UserError, unknown_name
from latentlm.testing.subject import Subject

GROUPS: dict[str, str] = {
    "structure": "configuration, building, initialisation, declarations, shapes, saving",
    "granularity": "where sites begin",
    "causality": "who may see what",
    "masks": "padding, documents, batches",
    "randomness": "where random numbers come from",
    "several": "latents beside one another: numbers, values and settings by name",
    "divergence": "densities and KL",
    "gradients": "training reaches every part",
    "advance": "what parts gather in training, and move once per step",
    "decoding": "generation with a cache",
    "likelihood": "scores are log-probabilities, by enumeration on a small model with a planted posterior",
    "engine": "compiling, stopping and resuming",
}
"""Every group of checks with one line on what it is about."""

QUICK: tuple[str, ...] = tuple(group for group in GROUPS if group not in ("likelihood", "engine"))
"""The groups that take a few seconds together at the kit's sizes."""

_FUNCTIONS: dict[str, Check] = {}


class NotApplicable(Exception):
    """The subject has nothing that the check could look at; the message says what is missing."""


@dataclass(frozen=True)
class Check:
    """A named check; call it with a subject."""

    name: str
    group: str
    line: str
    """One line on what it says."""
    function: Callable[[Subject], None]

    def __call__(self, subject: Subject) -> None:
        """Raises AssertionError with what went wrong, NotApplicable with the reason."""
        self.function(subject)


def check(group: str) -> Callable[[Callable[[Subject], None]], Check]:
    """Decorator: the function becomes a check under its own name; the first line of its docstring is the check's line."""
    assert group in GROUPS, group

    def register(function: Callable[[Subject], None]) -> Check:
        assert function.__doc__, f"{function.__name__} says nothing"
        made = Check(function.__name__, group, function.__doc__.strip().splitlines()[0], function)
        assert made.name not in _FUNCTIONS, f"two checks are called {made.name}"
        _FUNCTIONS[made.name] = made
        return made

    return register


def registered() -> dict[str, Check]:
    """Every check, by name, group by group."""
    import_module("latentlm.testing.checks")  # which registers them
    order = list(GROUPS)
    return dict(sorted(_FUNCTIONS.items(), key=lambda item: order.index(item[1].group)))


def chosen(names: Iterable[str] | None) -> dict[str, Check]:
    """The checks of these names or groups; None is all. Raises UnknownNameError with the nearest name."""
    known = registered()
    if names is None:
        return known
    if isinstance(names, str):
        raise UserError(f'Checks are given as a list of names: write ["{names}"].')
    wanted = set(names)
    if unknown := sorted(wanted - set(known) - set(GROUPS)):
        raise unknown_name("check", unknown[0], [*known, *GROUPS])
    return {name: made for name, made in known.items() if name in wanted or made.group in wanted}


def need(condition: object, reason: str) -> None:
    """Raise NotApplicable with `reason` unless `condition` holds."""
    if not condition:
        raise NotApplicable(reason)
