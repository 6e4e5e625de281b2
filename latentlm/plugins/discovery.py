"""Finding plugins in the metadata of installed distributions, loading them, and checking what they bring.

A plugin is checked whole before any of it is merged, so that one that fails leaves nothing behind but its record.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pluggy
from pydantic import BaseModel

from latentlm import __version__
from latentlm.errors import PluginError, did_you_mean, unknown_name
from latentlm.plugins import hookspecs, moved
from latentlm.plugins.foreign import is_users, told_error

GROUP = "latentlm"
OWN = "latentlm"
"""The distribution whose plugins are shipped."""
ALLOWED = "LATENTLM_PLUGINS"
STRICT = "LATENTLM_STRICT_PLUGINS"
SOCKETS = ("decoder", "encoder", "prior", "injection", "kl_schedule", "granularity")
BUILTIN = EntryPoint(name="latentlm", value="latentlm.composed.builtin", group=GROUP)
"""The frame's own parts, found as a plugin's are but by no metadata: always there."""
Status = Literal["waiting", "loading", "ok", "failed", "disabled"]


class PluginWarning(UserWarning):
    """A plugin failed to load; everything else works."""


@dataclass
class Plugin:
    """One plugin and what became of it."""

    name: str
    distribution: str
    version: str
    module: str
    status: Status = "waiting"
    error: str | None = None
    parts: dict[str, dict[str, type]] = field(default_factory=dict)
    cards: list[Path] = field(default_factory=list)
    entry: EntryPoint | None = field(default=None, repr=False)
    """None: registered in this process."""
    cause: BaseException | None = field(default=None, repr=False)
    builtin: bool = False
    """The frame's own parts, which no allow-list leaves out."""

    @property
    def installed(self) -> bool:
        """A distribution's plugin, neither the frame's own parts nor a registration of this process."""
        return self.entry is not None and not self.builtin

    @property
    def origin(self) -> str:
        """How messages call it."""
        if self.builtin:
            return f"{self.distribution} itself"
        return f'plugin "{self.name}" of {self.distribution} {self.version}'.rstrip()

    @property
    def failure(self) -> str:
        """The message about a plugin that failed."""
        return f"{self.origin} failed to load and is left out: {self.error}"

    @property
    def card_names(self) -> list[str]:
        """Names of the cards by their files: NAME.yaml, or NAME/card.yaml."""
        return [path.parent.name if path.name == "card.yaml" else path.stem for path in self.cards]

    def as_json(self) -> dict[str, Any]:
        """Plain data for `latentlm plugins --json`."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "module": self.module,
            "builtin": self.builtin,
            "status": self.status,
            "error": self.error,
            "parts": {socket: sorted(named) for socket, named in self.parts.items()},
            "cards": self.card_names,
        }


def find() -> list[Plugin]:
    """The frame's own parts, then the installed plugins by name, from the metadata alone: nothing is imported."""
    entries = [entry for entry in entry_points(group=GROUP) if entry.name and entry.value]
    shared = {name for name, count in Counter(entry.name for entry in entries).items() if count > 1}
    found = [_record(entry, shared=entry.name in shared) for entry in entries]
    names = {plugin.name for plugin in found}
    for name in sorted((allowed() or set()) - names):
        near = did_you_mean(name, names)
        warnings.warn(f'{ALLOWED} names "{name}", which is not installed.{near}', UserWarning, stacklevel=2)
    builtin = Plugin(BUILTIN.name, "latentlm", __version__, BUILTIN.value, entry=BUILTIN, builtin=True)
    return [builtin, *sorted(found, key=lambda plugin: (plugin.name, plugin.distribution, plugin.module))]


def allowed() -> set[str] | None:
    """Names on the allow-list; None: there is no list, and every plugin may load."""
    listed = os.environ.get(ALLOWED)
    return None if listed is None else {name.strip() for name in listed.split(",")} - {""}


def strict() -> bool:
    """Whether a failing plugin raises."""
    return os.environ.get(STRICT, "") not in ("", "0")


def _record(entry: EntryPoint, *, shared: bool) -> Plugin:
    """A plugin that waits to be loaded, or is left out by the allow-list. Where several distributions have one of its name, it
    is called NAME@DISTRIBUTION, so that each can be named; this one's own keep theirs."""
    distribution = entry.dist.name if entry.dist else "an unknown distribution"
    version = entry.dist.version if entry.dist else ""
    name = f"{entry.name}@{distribution}" if shared and distribution != OWN else entry.name
    listed = allowed()
    status: Status = "waiting" if listed is None or name in listed else "disabled"
    return Plugin(name, distribution, version, entry.value, status=status, entry=entry)


def load(plugin: Plugin) -> None:
    """Import a plugin that waits and merge its parts. A failure is recorded, and warned of unless strict mode will raise it."""
    assert plugin.entry is not None
    plugin.status = "loading"  # its own import may ask the registry for parts of others
    try:
        with warnings.catch_warnings():  # what it does to the filters is its own affair
            take(plugin, plugin.entry.load())
    except BaseException as error:  # a test framework's way to skip, and a panic of a Rust library, are no Exceptions
        if is_users(error):
            plugin.status = "waiting"
            raise
        plugin.status, plugin.cause = "failed", error
        plugin.error = _why(error)
        if not strict():
            warnings.warn(plugin.failure, PluginWarning, stacklevel=2)


def _why(error: BaseException) -> str:
    """Why a plugin failed."""
    try:
        said = moved.explain(error)
    except BaseException:  # an ImportError of the plugin's own, whose text raises
        said = None
    return said or told_error(error)


def take(plugin: Plugin, module: ModuleType) -> None:
    """Call a module's hooks, each module in a plugin manager of its own, and merge what they return. Raises PluginError."""
    _check_contract(plugin, getattr(module, "latentlm_contract", None))
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=plugin.name)
    hooks = {name: getattr(manager.hook, name) for name in ("latentlm_parts", "latentlm_cards")}
    implemented = {name: hook for name, hook in hooks.items() if hook.get_hookimpls()}
    if unmarked := [name for name in hooks if hasattr(module, name) and name not in implemented]:
        raise PluginError(f"{unmarked[0]} of {plugin.module} is no hook: decorate it with latentlm.plugins.hookspecs.hookimpl.")
    manager.check_pending()  # a function that is marked but is no hook: a misspelt name
    if not implemented:
        raise PluginError(f"{plugin.module} has neither of the hooks {' and '.join(hooks)}; a plugin needs one of them.")
    returned = {name: hook() for name, hook in implemented.items()}
    if empty := [name for name, results in returned.items() if not results]:  # pluggy drops None
        raise PluginError(f"{empty[0]} of {plugin.module} returned None; return a dict of parts, or a list of paths.")
    merge(plugin, returned.get("latentlm_parts", [{}])[0], returned.get("latentlm_cards", [[]])[0])


def _check_contract(plugin: Plugin, stated: object) -> None:
    """Raise PluginError unless the plugin states the version of the contracts that is installed."""
    from latentlm.interface import CONTRACT_VERSION  # imports torch

    if stated == CONTRACT_VERSION:
        return
    if stated is None:
        said = "does not state the version of the contracts that it was written for"
    else:
        said = f"was written for version {stated!r} of the contracts"
    changed = f" {moved.CHANGED}" if stated == 1 else ""
    remedy = f"set latentlm_contract = {CONTRACT_VERSION} in {plugin.module} once it fits, or install a matching version"
    raise PluginError(f"{plugin.origin} {said}, and this latentlm has version {CONTRACT_VERSION}: {remedy}.{changed}")


def merge(plugin: Plugin, parts: Mapping[str, Mapping[str, type]], paths: Iterable[str | Path]) -> None:
    """Check everything, then take it all. Raises PluginError and takes nothing."""
    if not isinstance(parts, Mapping) or not all(isinstance(named, Mapping) for named in parts.values()):
        raise PluginError(f"{plugin.origin}: latentlm_parts must return {{socket: {{name: class}}}}, not {parts!r}.")
    for socket, named in parts.items():
        check_socket(socket)
        for name, cls in named.items():
            check_part(plugin, socket, name, cls)
    if isinstance(paths, str | Path):
        raise PluginError(f"{plugin.origin}: latentlm_cards must return a list of paths, not the one path {paths}.")
    cards = [Path(path) for path in paths]
    if missing := [path for path in cards if not path.is_file()]:
        raise PluginError(f"{plugin.origin}: the card {missing[0]} does not exist.")
    for socket, named in parts.items():
        plugin.parts.setdefault(socket, {}).update(named)
    plugin.cards.extend(cards)
    plugin.status = "ok"


def check_socket(socket: str) -> None:
    """Raise UnknownNameError for a socket that there is not."""
    if socket not in SOCKETS:
        raise unknown_name("socket", str(socket), SOCKETS)


def check_part(plugin: Plugin, socket: str, name: object, cls: object) -> None:
    """Raise PluginError unless a part has a usable name and is a complete subclass of its socket's contract."""
    from latentlm import interface

    bases: dict[str, type | None] = {
        "decoder": interface.LatentDecoder,
        "encoder": interface.Encoder,
        "prior": interface.Prior,
        "injection": interface.Injection,
        "kl_schedule": interface.KLSchedule,
        "granularity": getattr(interface, "Granularity", None),
    }
    base = bases[socket]
    where = f"{plugin.origin}: {socket} {name!r}"
    if not isinstance(name, str) or not name or not name.isprintable():
        raise PluginError(f"{where}: a part's name is a string of printable characters that is not empty.")
    if not isinstance(cls, type) or (base is not None and not issubclass(cls, base)):
        wanted = f"latentlm.interface.{base.__name__}" if base is not None else "its socket's class"
        raise PluginError(f"{where} must be a subclass of {wanted}, not {cls!r}.")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise PluginError(f"{where}: {cls.__name__} does not implement {missing}.")
    config = getattr(cls, "Config", None)
    if not isinstance(config, type) or not issubclass(config, BaseModel) or config.model_config.get("extra") != "forbid":
        raise PluginError(f"{where} needs a class attribute Config that derives from latentlm.config.Strict.")
