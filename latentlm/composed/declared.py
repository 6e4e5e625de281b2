"""What parts declare about themselves: every field there, and of its kind; methods that can be called as the frame does; none
left of version 1. Looked at when a decoder is put together, so that what is missing, mistyped or old is found by part and name,
not by what goes wrong later.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from latentlm.errors import PluginError, UserError
from latentlm.interface import PADDING, Granularity, KLSchedule, Part

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


def _count(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


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
        **_OF_ALL,
    },
    "prior": {
        "taps": _TAPS,
        "autoregressive": ("True or False: whether a site depends on those before it", _is(bool)),
        **_OF_ALL,
    },
    "injection": {
        "blocks": ("a tuple of the blocks that it conditions, one at least", _some(int)),
        "slots": ("a tuple of the condition slots that it fills, one at least", _some(str)),
        "prefix_since": ("True or False", _is(bool)),
        **_OF_ALL,
    },
    "kl_schedule": {"steers_reconstruction": ("True or False", _is(bool))},
    "granularity": {
        "lookback": ("the number of earlier tokens that `begins` looks at, 0 or more", _count(0)),
        "length": ("the number of tokens of a site, or None", _optional(_count(1))),
    },
}
_OF_EVERY_PART = {
    "init_weights": "generator",
    "auxiliary": "latent, context, batch",
    "advance": "step",
    "bind": "parts",
    "operations": "",
}
_CALLS: dict[str, dict[str, str]] = {
    "encoder": {"forward": "context", **_OF_EVERY_PART},
    "prior": {
        "forward": "context, latent",
        "start": "context, latent",
        "step": "state, taps, previous, starts, above",
        **_OF_EVERY_PART,
    },
    "injection": {"forward": "latent, context", **_OF_EVERY_PART},
    "kl_schedule": {
        "penalty": "kl, reconstruction, site_mask, target_mask, step=step",
        "advance": "step",
        "state_dict": "",
        "load_state_dict": "state",
    },
}
"""Methods by socket, with the arguments that the frame calls them with."""
_LEFT: dict[str, tuple[str, tuple[type, ...]]] = {
    "latents": ("family", (str,)),
    "sites": ("blocks", (tuple, list)),
    "surrogate_operations": ("operations()", (object,)),
    "fitting_passes": ("operations()", (object,)),
}
"""Words of version 1: what they are now, and of which kind they were (another's word may be the same)."""
_SEE = 'See docs/plugins.md, "From version 1 to version 2".'


class Latent(Protocol):
    """What is looked at of a latent."""

    granularity: Granularity
    kl_schedule: KLSchedule | None

    def called(self, socket: str) -> str:
        """How messages call a part."""

    def named_parts(self) -> Iterator[tuple[str, Part]]:
        """(socket, part) of those that are filled."""


@contextmanager
def blamed(part: str, settings: str = "") -> Iterator[None]:
    """What a part has against its settings or its place is one message that names it and what is set: a UserError."""
    try:
        yield
    except UserError as error:
        if part in str(error):
            raise
        raise type(error)(f"{part}: {error}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{part}{settings}: {error}") from error


def check_declared(latent: Latent) -> None:
    """Raise PluginError for the first thing that a part of a latent does not declare, declares wrongly, or has left over."""
    parts: list[tuple[str, Any]] = [*latent.named_parts(), ("granularity", latent.granularity)]
    if latent.kl_schedule is not None:
        parts.append(("kl_schedule", latent.kl_schedule))
    for socket, part in parts:
        what = f"{latent.called(socket)} ({type(part).__name__})"
        _check_left(what, socket, part)
        for field, (kind, fits) in _OF[socket].items():
            if not hasattr(part, field):
                raise PluginError(f"{what} does not declare `{field}`: set it in the class or in __init__, {kind}.")
            value = getattr(part, field)
            if not fits(value):
                raise PluginError(f"{what} declares `{field}` as {value!r}, which is not {kind}.")
        for method, arguments in _CALLS.get(socket, {}).items():
            fitted = ", objective" if method == "forward" and getattr(part, "needs_objective", False) else ""
            _check_call(what, method, arguments + fitted, getattr(part, method))
    check_begins(latent.called("granularity"), latent.granularity)


def _check_left(what: str, socket: str, part: object) -> None:
    """Refuse what version 1 had under another name, and nobody reads any more."""
    for old, (new, kinds) in _LEFT.items():
        there = getattr(part, old, None)
        if there is None or not isinstance(there, kinds) or (old == "sites" and socket != "injection"):
            continue
        raise PluginError(f"{what} has `{old}`, which version 2 of the contracts calls `{new}`: rename it. {_SEE}")


def _check_call(what: str, method: str, arguments: str, function: Callable[..., Any]) -> None:
    """Refuse a method that cannot be called as the frame calls it, or that expects another thing under version 1's name."""
    named = [name for name in arguments.split(", ") if name]
    keywords = {name.partition("=")[0]: name for name in named if "=" in name}
    try:
        signature = inspect.signature(function)
    except ValueError:  # compiled code that does not say
        return
    try:
        signature.bind(*[name for name in named if "=" not in name], **keywords)
        fits = not (method == "bind" and "encoder" in signature.parameters)
    except TypeError:
        fits = False
    if not fits:
        own = ", ".join(("self", *signature.parameters))
        wanted = ", ".join(("self", *named))
        raise PluginError(f"{what} has `{method}({own})`, which is called as `{method}({wanted})`: change it. {_SEE}")


def check_begins(part: str, granularity: Granularity) -> None:
    """Ask a granularity where sites begin in a few tokens. Raises PluginError where the answer is no (B, T) bool."""
    with torch.device("cpu"):  # a decoder is put together on the meta device
        positions = torch.arange(4).expand(2, -1)
        documents = torch.zeros(2, 4, dtype=torch.long)
        documents[1, 2:] = PADDING
        with blamed(part):
            found: Any = granularity.begins(positions.clone(), positions, documents)
    if not isinstance(found, Tensor):
        said = type(found).__name__
    elif found.shape == positions.shape and found.dtype == torch.bool:
        return
    else:
        said = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
    raise PluginError(
        f"{part}: `begins` returned {said} for tokens of shape {tuple(positions.shape)}: return bool of that shape, true "
        "where a site begins."
    )
