"""What to say of a name that nobody offers, or that several plugins do: who has it, what is installed, what to do."""

from __future__ import annotations

from collections.abc import Iterable

from latentlm.errors import did_you_mean
from latentlm.plugins.discovery import ALLOWED, SOCKETS, Plugin

KNOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "vanilla": ("latentlm", ("vanilla", "prefix")),
    "free": ("latentlm", ("free", "uniform_bits")),
    "gaussian": (
        "latentlm", ("gaussian", "gaussian_tower", "gaussian_memory", "standard_normal", "mog", "vamp", "prompt_normal"),
    ),
    "causal": ("latentlm", ("causal", "trunk_bits", "causal_bits")),
    "chunk": ("latentlm", ("chunk", "chunk_codes", "fsq", "causal_codes", "causal_levels", "uniform_levels")),
    "ltm": ("latentlm", ("ltm", "fitted_thoughts", "thoughts")),
    "della": ("latentlm", ("della",)),
    "ngram": ("latentlm", ("ngram",)),
    "granularities": ("latentlm", ("line", "sentence")),
    "schedules": (
        "latentlm",
        (
            "free_bits", "constant", "linear", "sigmoid", "cyclical", "optimus", "capacity", "minimum_desired_rate",
            "control_vae", "geco",
        ),
    ),
}
"""Plugin -> (distribution known to have it, names of its parts), for the error about a name that is not there."""


def not_installed(name: str, known: Iterable[Plugin]) -> str:
    """A plugin that a card or recipe names is not there."""
    installed = {plugin.name for plugin in known if not plugin.builtin}
    has_it = f" The distribution {KNOWN[name][0]} has it." if name in KNOWN else ""
    near, listed = did_you_mean(name, installed), ", ".join(sorted(installed)) or "none"
    return f'The plugin "{name}" is needed but not installed.{near} Installed: {listed}.{has_it}'


def clash(socket: str, name: str, claims: list[Plugin]) -> str:
    """Several plugins claim a name."""
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


def whereabouts(name: str, known: list[Plugin]) -> str:
    """Where a missing part might be: in another socket, in a plugin that failed or is left out, or in a distribution that is
    known to have it."""
    hints = [f"It is the name of a {socket}." for socket in SOCKETS if any(name in p.parts.get(socket, {}) for p in known)]
    hints += [f"The {plugin.failure}." for plugin in known if plugin.status == "failed"]
    owner = next((plugin for plugin, (_, parts) in KNOWN.items() if name in parts), None)
    disabled = {plugin.name for plugin in known if plugin.status == "disabled"}
    if owner is not None and owner not in disabled and not hints:
        hints.append(f'The plugin "{owner}" of the distribution {KNOWN[owner][0]} has it: reinstall that.')
    if disabled:
        hints.append(f"{ALLOWED} leaves out: {', '.join(sorted(disabled))}.")
    installed = ", ".join(f"{plugin.name} ({plugin.distribution})" for plugin in known if plugin.installed)
    return " ".join([*hints, f"Installed plugins: {installed or 'none'}."])
