"""What parts declare about themselves: every field there, and of its kind. Looked at when a decoder is put together, so that a
field that is missing or mistyped is found by part and name, not by what goes wrong later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from latentlm.errors import PluginError
from latentlm.interface import Part

Field = tuple[str, Callable[[Any], bool]]
"""(what it has to be, whether a value is)."""


def _all(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple | list) and all(type(one) is kind for one in value)


def _some(kind: type) -> Callable[[Any], bool]:
    return lambda value: _all(kind)(value) and len(value) > 0


def _optional(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or test(value)


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


_TAPS: Field = ("a tuple of the blocks whose incoming stream it reads, () for none", _all(int))
_OF_ALL: dict[str, Field] = {
    "family": ('a word such as "bits" or "real", or None', _optional(_is(str))),
    "granularities": ("a tuple of names, or None for any", _optional(_all(str))),
    "reads_above": ("True or False", _is(bool)),
}
_OF: dict[str, dict[str, Field]] = {
    "encoder": {
        "taps": _TAPS,
        "sees_future": ("True or False: whether a site depends on tokens after its first position", _is(bool)),
        "needs_objective": ("True or False", _is(bool)),
    },
    "prior": {
        "taps": _TAPS,
        "autoregressive": ("True or False: whether a site depends on those before it", _is(bool)),
    },
    "injection": {
        "blocks": ("a tuple of the blocks that it conditions, one at least", _some(int)),
        "slots": ("a tuple of the condition slots that it fills, one at least", _some(str)),
        "prefix_since": ("True or False", _is(bool)),
    },
}


def check_declared(latent: str, parts: Iterable[tuple[str, Part]]) -> None:
    """Raise PluginError for the first field that a part of a latent, (socket, part), does not declare, or declares wrongly."""
    for socket, part in parts:
        for field, (kind, fits) in {**_OF[socket], **_OF_ALL}.items():
            what = f"{type(part).__name__}, the {socket} of {latent},"
            if not hasattr(part, field):
                raise PluginError(f"{what} does not declare `{field}`: set it in the class or in __init__, {kind}.")
            value = getattr(part, field)
            if not fits(value):
                raise PluginError(f"{what} declares `{field}` as {value!r}, which is not {kind}.")
