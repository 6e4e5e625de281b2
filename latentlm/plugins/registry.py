"""The plugin registry: who offers which part, found through the entry-point group `latentlm`.

    plugins.get("encoder", "free")                   the class, loading plugins as needed
    plugins.register("prior", "mine", MyPrior)       in-process, for notebooks and tests; the same checks
    plugins.listing()                                what is installed, what failed and why

Lazy: nothing is imported until a name is asked for. Where the plugins are named (a card or recipe does), only those are
imported; otherwise all are, since a second claim to the name would go unseen. Once per process.

Isolated: a plugin is merged after both its hooks have returned and been checked; one that fails costs a warning.

Environment: `LATENTLM_PLUGINS` (comma-separated allow-list of plugin names; set but empty = none), `LATENTLM_STRICT_PLUGINS=1`
(every look-up among plugins of which one has failed raises; `listing` still lists).

Two plugins with one name for a part: both stay, and the name is an error wherever it is asked for, naming both distributions,
until the request or the allow-list says which plugin it means. All their other parts work. An in-process registration is one
more claim and never shadows an installed part; registering a name again in the process replaces the earlier registration,
so that a notebook cell can be run twice. The same class under the same name, twice, is no clash.

Contract versions: a plugin module states `latentlm_contract`, the version of the contracts in `latentlm.interface` that it was
written for, and loads only where it is `CONTRACT_VERSION`. Within a version, contracts grow only by optional members with
defaults, so a plugin of that version goes on working; anything else makes a new version, and the changelog says how to move.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from latentlm.errors import PluginError, did_you_mean, unknown_name
from latentlm.plugins import discovery as _discovery
from latentlm.plugins.discovery import SOCKETS, Plugin, PluginWarning, check_socket

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
    "register",
    "register_module",
    "reset",
    "unregister",
]

IN_PROCESS = "this process"

KNOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "vanilla": ("latentlm", ("vanilla", "composed")),
    "free": ("latentlm", ("free", "uniform_bits")),
    "gaussian": (
        "latentlm", ("gaussian", "gaussian_tower", "gaussian_memory", "standard_normal", "mog", "vamp", "prompt_normal"),
    ),
    "causal": ("latentlm", ("causal", "trunk_bits", "causal_bits")),
    "chunk": ("latentlm", ("chunk", "chunk_codes", "fsq", "causal_codes", "causal_levels", "uniform_levels")),
    "ltm": ("latentlm", ("ltm", "fitted_thoughts", "thoughts")),
    "della": ("latentlm", ("della",)),
    "schedules": (
        "latentlm",
        (
            "free_bits", "constant", "linear", "sigmoid", "cyclical", "optimus", "capacity", "minimum_desired_rate",
            "control_vae", "geco",
        ),
    ),
}
"""Plugin -> (distribution known to have it, names of its parts), for the error about a name that is not there."""

_lock = threading.RLock()
_plugins: list[Plugin] | None = None


def get(socket: str, name: str, *, plugins: list[str] | None = None) -> Any:
    """The class that answers to `name` in `socket`.

    plugins: look only into these (and what was registered in-process). Raises UnknownNameError, or PluginError where two
    plugins claim the name or a named plugin is not installed.
    """
    check_socket(socket)
    usable = _usable(plugins)
    claims = [plugin for plugin in usable if name in plugin.parts.get(socket, {})]
    if len({plugin.parts[socket][name] for plugin in claims}) > 1:
        raise PluginError(_clash(socket, name, claims))
    if not claims:
        offered = {other for plugin in usable for other in plugin.parts.get(socket, {})}
        raise unknown_name(socket, name, offered, remedy=_where(name, plugins))
    return claims[0].parts[socket][name]


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
    """Load what waits (only those named, where they are) and return those that work. Raises PluginError for a named plugin
    that is not installed and, in strict mode, for one that failed."""
    with _lock:
        known = _found()
        installed = {plugin.name for plugin in known}
        if only is not None and (missing := sorted(set(only) - installed)):
            listed = ", ".join(sorted(installed)) or "none"
            has_it = f" The distribution {KNOWN[missing[0]][0]} has it." if missing[0] in KNOWN else ""
            near = did_you_mean(missing[0], installed)
            raise PluginError(f'The plugin "{missing[0]}" is needed but not installed.{near} Installed: {listed}.{has_it}')
        chosen = [plugin for plugin in known if only is None or plugin.name in only or plugin.entry is None]
        _load(chosen)
        if _discovery.strict() and (failed := [plugin for plugin in chosen if plugin.status == "failed"]):
            raise PluginError(failed[0].failure) from failed[0].cause
        return [plugin for plugin in chosen if plugin.status == "ok"]


def _clash(socket: str, name: str, claims: list[Plugin]) -> str:
    """The message about a name that several plugins claim."""
    listed = " and ".join(plugin.origin for plugin in claims)
    remedies = []
    if any(plugin.entry is None for plugin in claims):
        remedies.append(f'register yours under another name (plugins.unregister("{socket}", "{name}") takes it back)')
    if sum(plugin.entry is not None for plugin in claims) > 1:
        remedies.append(
            "say which plugin you mean: in the card or recipe (plugins: [...]), with LATENTLM_PLUGINS=name,name, or by "
            "uninstalling the other"
        )
    return f'{len(claims)} plugins offer the {socket} "{name}": {listed}. To go on, {"; ".join(remedies)}.'


def _where(name: str, only: list[str] | None) -> str:
    """Where a missing part might be: in another socket, in a plugin that failed, is left out or was not asked for, or in a
    distribution that is known to have it."""
    asked = [plugin for plugin in _found() if only is None or plugin.name in only]
    hints = [f"It is the name of a {socket}." for socket in SOCKETS if any(name in p.parts.get(socket, {}) for p in asked)]
    hints += [f"The {plugin.failure}." for plugin in asked if plugin.status == "failed"]
    owner = next((plugin for plugin, (_, parts) in KNOWN.items() if name in parts), None)
    disabled = {plugin.name for plugin in _found() if plugin.status == "disabled"}
    if owner is not None and owner not in disabled and (only is None or owner in only) and not hints:
        hints.append(f'The plugin "{owner}" of the distribution {KNOWN[owner][0]} has it: reinstall that.')
    if owner is not None and only is not None and owner not in only:
        hints.append(f'The plugin "{owner}" has it, but only {", ".join(only) or "no plugin"} was asked for: see `plugins`.')
    if disabled:
        hints.append(f"{_discovery.ALLOWED} leaves out: {', '.join(sorted(disabled))}.")
    installed = ", ".join(f"{plugin.name} ({plugin.distribution})" for plugin in _found() if plugin.entry is not None)
    return " ".join([*hints, f"Installed plugins: {installed or 'none'}."])
