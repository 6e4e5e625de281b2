"""What a part says of itself, as plain data: `latentlm parts` prints it.

    every("prior")                     all parts of a socket (None: of all sockets)
    named("free")                      the parts of that name, in whatever socket
    partners(part)                     parts of other sockets that it can share a decoder with

A name that two plugins claim is listed once for each: which of them a recipe gets is the registry's question, not this one's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from latentlm.errors import UserError, unknown_name
from latentlm.plugins import registry
from latentlm.plugins.discovery import SOCKETS, Plugin, check_socket
from latentlm.plugins.settings import Setting, settings

ON_VALUES = ("encoder", "prior", "injection")
"""Sockets whose parts read or write values of z, and therefore must agree on their family."""
_FLAGS = ("slots", "sees_future", "needs_objective", "autoregressive", "reads_above", "lookback")


@dataclass(frozen=True)
class Part:
    """A registered part: its class, and who offers it."""

    socket: str
    name: str
    cls: type
    plugin: Plugin

    @property
    def family(self) -> str | None:
        """What its values of z are; None: any, or none."""
        return family(self.cls) if self.socket in ON_VALUES else None

    @property
    def granularities(self) -> tuple[str, ...] | None:
        """Those that it serves; None: all."""
        return getattr(self.cls, "granularities", None) if self.socket in ON_VALUES else None

    @property
    def doc(self) -> str:
        """The docstring of the class itself, without its example."""
        own = self.cls.__dict__.get("__doc__") or ""
        return inspect.cleandoc(own).partition("Example::")[0].strip()

    @property
    def summary(self) -> str:
        """The docstring's first paragraph, on one line."""
        return " ".join(self.doc.partition("\n\n")[0].split())

    @property
    def source(self) -> str:
        """Import path, with file and line where there is a file."""
        path = f"{self.cls.__module__}.{self.cls.__qualname__}"
        try:
            file, (_, line) = inspect.getsourcefile(self.cls), inspect.getsourcelines(self.cls)
        except (OSError, TypeError):  # made in a notebook, or compiled
            return path
        return f"{path} ({file}:{line})"

    @property
    def settings(self) -> list[Setting]:
        """What can be set beside its name in a recipe; nothing for a decoder, whose settings are the recipe's `model:`."""
        config = getattr(self.cls, "Config", None)
        return settings(config) if isinstance(config, type) and issubclass(config, BaseModel) else []

    @property
    def flags(self) -> dict[str, Any]:
        """What the class declares of how it is called. One that depends on settings is no attribute of the class."""
        found = {name: getattr(self.cls, name, None) for name in _FLAGS}
        return {name: value for name, value in found.items() if isinstance(value, bool | int | str | tuple | list)}

    @property
    def defaults(self) -> dict[str, str]:
        """A decoder's default parts, and the sizes that it sets."""
        said = getattr(self.cls, "defaults", {})
        found = {socket: str(spec.name) for socket, spec in said.items()} if isinstance(said, Mapping) else {}
        for label, name in (("event_dims", "default_event_dims"), ("granularity", "default_granularity")):
            if found and getattr(self.cls, name, None):
                found[label] = str(getattr(self.cls, name))
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "socket": self.socket,
            "name": self.name,
            "plugin": self.plugin.name,
            "distribution": f"{self.plugin.distribution} {self.plugin.version}".rstrip(),
            "family": self.family,
            "granularities": None if self.granularities is None else list(self.granularities),
            "summary": self.summary,
        }


def family(cls: type) -> str | None:
    """The word on which the parts of one latent must agree; None where a part takes any."""
    return getattr(cls, "family", None)


def every(socket: str | None = None) -> list[Part]:
    """All parts, by socket and name. Raises UnknownNameError for a socket that is none."""
    if socket is not None:
        check_socket(socket)
    sockets = SOCKETS if socket is None else (socket,)
    found = [
        Part(place, name, cls, plugin)
        for plugin in registry.listing()
        for place, parts in plugin.parts.items()
        if place in sockets
        for name, cls in parts.items()
    ]
    return sorted(found, key=lambda part: (SOCKETS.index(part.socket), part.name, part.plugin.name))


def named(name: str) -> list[Part]:
    """The parts of that name. Raises UnknownNameError with the nearest, or UserError for a plugin's name."""
    parts = every()
    if found := [part for part in parts if part.name == name]:
        return found
    if offered := [part.name for part in parts if part.plugin.name == name]:
        raise UserError(f'"{name}" is a plugin, not a part. Its parts: {", ".join(sorted(set(offered)))}.')
    raise unknown_name("part", name, {part.name for part in parts}, remedy="`latentlm parts` says what each is.")


def partners(part: Part, among: Iterable[Part]) -> dict[str, list[str]]:
    """Socket -> the names of the parts that agree with it on family and on some granularity. Empty for parts that read no
    values of z (decoders, schedules, granularities): they go with all."""
    found: dict[str, list[str]] = {}
    if part.socket not in ON_VALUES:
        return found
    for other in among:
        if other.socket in ON_VALUES and other.socket != part.socket and _agree(part, other):
            names = found.setdefault(other.socket, [])
            names += [] if other.name in names else [other.name]
    return found


def _agree(part: Part, other: Part) -> bool:
    """Whether two parts can share a latent, as far as their classes say."""
    if None not in (part.family, other.family) and part.family != other.family:
        return False
    return part.granularities is None or other.granularities is None or bool({*part.granularities} & {*other.granularities})
