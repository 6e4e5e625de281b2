"""What callers of the Python interface give, checked as the command line checks what users type: each refused by one message.

    samples = whole("samples", samples, least=1)
    temperature = real("temperature", temperature, least=0)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from latentlm.errors import UserError, short

MOST = 2**63 - 1
"""What a tensor's sizes and seeds can be."""


def whole(name: str, value: Any, *, least: int | None = 0, most: int | None = MOST) -> int:
    """An integer, of Python or numpy; True is none. Raises UserError."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if most is not None and number > most:
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
    """A list or a tuple, as it is, or an array or a tensor, as a list; no text and no mapping, whose parts would be taken for
    what is wanted. Raises UserError."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, str | bytes | Mapping) or not (hasattr(plain, "__len__") and hasattr(plain, "__getitem__")):
        raise UserError(f"{name} must be a list of {of}, not {shown(value)}.")
    return plain  # type: ignore[no-any-return]


def keys(given: Any, count: int, *, of: str) -> Sequence[Hashable]:
    """One key for each of what is asked for, `of` such ("prompt"). Raises UserError."""
    found = several("keys", given, of=f"keys, one per {of}")
    if len(found) != count:
        raise UserError(f"{len(found)} keys for {count} {of}s: give one key per {of}.")
    for key in found:
        try:
            hash(key)
        except TypeError:
            raise UserError(f"a key must be a number, a text, or a tuple of them, not {shown(key)}.") from None
    return found


def model(value: Any) -> None:
    """A decoder, whatever wraps it. Raises UserError."""
    if not hasattr(value, "has_latents"):
        raise UserError(f"a model is needed, as zoo.load gives it, not {shown(value)}.")


def function(name: str, value: Any) -> None:
    """None, or what can be called. Raises UserError."""
    if not (value is None or callable(value)):
        raise UserError(f"{name} must be a function, not {shown(value)}.")


def shown(value: Any) -> str:
    """A value in a message, with its type where that is not plain."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**40 else "a number of more than forty digits"
    if isinstance(value, float | str | bytes):
        return short(repr(value), 60)
    return type(value).__name__
