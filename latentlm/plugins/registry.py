"""The plugin registry: who offers which part, found through the entry-point group `latentlm`.

    plugins.get("encoder", "free")                   the class, loading plugins as needed
    plugins.register("prior", "mine", MyPrior)       in-process, for notebooks and tests; the same checks
    plugins.listing()                                what is installed, what failed and why

Lazy: nothing is imported until a name is asked for. Where the plugins are named (a card or recipe does), those are looked into
first, and the others are imported only if none of those has the name; otherwise all are, since a second claim to the name would
go unseen. Once per process. To name plugins breaks ties and saves imports; it shuts none out.

Built in: the frame's own parts (`latentlm.composed.builtin`) are no plugin's, and there whatever is installed or allowed.

Isolated: a plugin is merged after both its hooks have returned and been checked; one that fails costs a warning.

Environment: `LATENTLM_PLUGINS` (comma-separated allow-list of plugin names; set but empty = none), `LATENTLM_STRICT_PLUGINS=1`
(every look-up among plugins of which one has failed raises; `listing` still lists).

Two plugins with one name for a part: both stay, and the name is an error wherever it is asked for, naming both distributions,
until the request or the allow-list says which plugin it means. All their other parts work. An in-process registration is one
more claim and never shadows an installed part; where a request names a plugin, that plugin's part is meant. Registering a name
again in the process replaces the earlier registration, so that a notebook cell can be run twice. The same class under the same
name, twice, is no clash.

Contract versions: a plugin module states `latentlm_contract`, the version of the contracts in `latentlm.interface` that it was
written for, and loads only where it is `CONTRACT_VERSION`. Within a version, contracts grow only by optional members with
defaults, so a plugin of that version goes on working; anything else makes a new version, and the changelog says how to move.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from latentlm.errors import PluginError, unknown_name
from latentlm.plugins import discovery as _discovery
from latentlm.plugins.discovery import SOCKETS, Plugin, PluginWarning, check_socket
from latentlm.plugins.known import KNOWN, clash, not_installed, whereabouts

__all__ = [
    "KNOWN",
    "SOCKETS",
    "Plugin",
    "PluginWarning",
    "cards",
    "clashes",
    "get",
    "listing",
    "names",
    "provider",
    "register",
    "register_module",
    "reset",
    "unregister",
]

IN_PROCESS = "this process"

_lock = threading.RLock()
_plugins: list[Plugin] | None = None


def get(socket: str, name: str, *, plugins: list[str] | None = None) -> Any:
    """The class that answers to `name` in `socket`.

    plugins: those that a card or recipe names. They are looked into first, and where one has the name it is meant, whoever
    else claims it; the others are loaded only if none has it. Raises UnknownNameError, or PluginError where two plugins claim
    the name and neither is named, or a named plugin is not installed.
    """
    return provider(socket, name, plugins=plugins).parts[socket][name]


def provider(socket: str, name: str, *, plugins: list[str] | None = None) -> Plugin:
    """The plugin whose part `get` returns, with the same errors."""
    check_socket(socket)
    if plugins is not None:
        preferred = _usable(plugins)
        for tier in ([plugin for plugin in preferred if not plugin.builtin], preferred):
            if found := _claims(socket, name, tier):
                return found[0]
        if lost := [plugin for plugin in _found() if plugin.name in plugins and plugin.status == "failed"]:
            # It may be the one that has the name; another's part of that name would not be what was asked for.
            raise PluginError(f'Looking for the {socket} "{name}": {lost[0].failure}.') from lost[0].cause
    usable = _usable(None)
    if found := _claims(socket, name, usable):
        return found[0]
    offered = {other for plugin in usable for other in plugin.parts.get(socket, {})}
    raise unknown_name(socket, name, offered, remedy=whereabouts(name, _found()))


def _claims(socket: str, name: str, among: list[Plugin]) -> list[Plugin]:
    """The plugins that offer the name. Raises PluginError where they mean different classes."""
    claims = [plugin for plugin in among if name in plugin.parts.get(socket, {})]
    if len({plugin.parts[socket][name] for plugin in claims}) > 1:
        raise PluginError(clash(socket, name, claims))
    return claims


def names(socket: str) -> list[str]:
    """Every name of a socket that some working plugin offers."""
    check_socket(socket)
    return sorted({name for plugin in _usable(None) for name in plugin.parts.get(socket, {})})


def cards() -> list[Path]:
    """Card files of every working plugin."""
    return [path for plugin in _usable(None) for path in plugin.cards]


def listing() -> list[Plugin]:
    """Every installed plugin, loaded if it can be. Never raises for a failed one, strict or not: its row says why."""
    with _lock:
        _load(_found())
        return list(_found())


def clashes() -> dict[tuple[str, str], list[str]]:
    """(socket, name) -> the plugins that claim it, where there is more than one."""
    claims: dict[tuple[str, str], dict[str, type]] = {}
    for plugin in listing():
        for socket, parts in plugin.parts.items():
            for name, cls in parts.items():
                claims.setdefault((socket, name), {})[plugin.origin] = cls
    return {key: sorted(claim) for key, claim in claims.items() if len(set(claim.values())) > 1}


def register(socket: str, name: str, cls: type) -> None:
    """Offer a class under a name in this process. Registering the name again replaces it. Raises PluginError on a bad class."""
    with _lock:
        _discovery.merge(_in_process(), {socket: {name: cls}}, [])


def register_module(module: ModuleType, *, name: str | None = None) -> None:
    """Take a module with hooks as a plugin of this process, as if an entry point had named it; a second time replaces the
    first. Raises PluginError."""
    plugin = Plugin(name or module.__name__, IN_PROCESS, "", module.__name__)
    _discovery.take(plugin, module)
    with _lock:
        found = _found()
        found[:] = [other for other in found if other.entry is not None or other.name != plugin.name]
        found.append(plugin)


def unregister(socket: str, name: str) -> None:
    """Take back an in-process registration; unknown names are ignored."""
    with _lock:
        for plugin in _found():
            if plugin.entry is None:
                plugin.parts.get(socket, {}).pop(name, None)


def reset() -> None:
    """Forget everything: metadata and environment are read anew at the next look-up, in-process registrations are gone."""
    global _plugins
    with _lock:
        _plugins = None


def _found() -> list[Plugin]:
    """Installed and in-process plugins; the metadata is read once."""
    global _plugins
    with _lock:
        if _plugins is None:
            _plugins = _discovery.find()
        return _plugins


def _in_process() -> Plugin:
    """The record of what was registered by hand."""
    for plugin in _found():
        if plugin.entry is None and not plugin.module:
            return plugin
    plugin = Plugin("in-process", IN_PROCESS, "", "", status="ok")
    _found().append(plugin)
    return plugin


def _load(chosen: list[Plugin]) -> None:
    for plugin in chosen:
        if plugin.status == "waiting":
            _discovery.load(plugin)


def _usable(only: list[str] | None) -> list[Plugin]:
    """Load what waits (only those named, and the frame's own) and return those that work. Raises PluginError for a named
    plugin that is not installed and, in strict mode, for one that failed."""
    with _lock:
        known = _found()
        if only is not None and (missing := sorted(set(only) - {plugin.name for plugin in known})):
            raise PluginError(not_installed(missing[0], known))
        chosen = [plugin for plugin in known if only is None or plugin.name in only or plugin.builtin]
        _load(chosen)
        if _discovery.strict() and (failed := [plugin for plugin in chosen if plugin.status == "failed"]):
            raise PluginError(failed[0].failure) from failed[0].cause
        return [plugin for plugin in chosen if plugin.status == "ok"]
