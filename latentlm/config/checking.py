"""What callers of the Python interface give, checked as the command line checks what users type: each refused by one message.

    samples = whole("samples", samples, least=1)
    temperature = real("temperature", temperature, least=0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from latentlm.errors import UserError, short

MOST = 2**63 - 1
"""What a tensor's sizes and seeds can be."""


def whole(name: str, value: Any, *, least: int | None = 0, most: int = MOST) -> int:
    """An integer, of Python or numpy; True is none. Raises UserError."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if number > most:
            raise UserError(f"{name} must be at most {most:,}, not {shown(number)}.")
        if least is not None and number < least:
            raise UserError(f"{name} must be at least {least}, not {shown(number)}.")
        return number
    raise UserError(f"{name} must be a whole number, not {shown(value)}.")


def real(name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> float:
    """A finite number. Raises UserError."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UserError(f"{name} must be a number, not {shown(value)}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and least <= number <= most and number > above):
        said = (("at least", least), ("above", above), ("at most", most))
        bounds = [f"{word} {bound:g}" for word, bound in said if abs(bound) < math.inf]
        raise UserError(f"{name} must be a finite number{' ' * bool(bounds)}{' and '.join(bounds)}, not {shown(value)}.")
    return number


def flag(name: str, value: Any) -> bool:
    """True or False. Raises UserError."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, not {shown(value)}.")
    return value


def several(name: str, value: Any, *, of: str) -> Sequence[Any]:
    """A list, a tuple, an array; no text and no mapping, whose parts would be taken for what is wanted. Raises UserError."""
    if isinstance(value, str | bytes | dict) or not (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        raise UserError(f"{name} must be a list of {of}, not {shown(value)}.")
    return value  # type: ignore[no-any-return]


def shown(value: Any) -> str:
    """A value in a message, with its type where that is not plain."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**40 else "a number of more than forty digits"
    if isinstance(value, float | str | bytes):
        return short(repr(value), 60)
    return type(value).__name__
