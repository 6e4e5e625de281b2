"""Plugins: who offers which part, how a plugin is found and checked, and how to begin one.

    plugins.get("encoder", "free")                   the class, loading plugins as needed
    plugins.register("prior", "mine", MyPrior)       in-process, for notebooks and tests; the same checks
    from latentlm.plugins import hookimpl            marks the two hooks of a plugin
"""

from latentlm.plugins.discovery import SOCKETS, Plugin, PluginWarning
from latentlm.plugins.hookspecs import hookimpl
from latentlm.plugins.registry import (
    KNOWN,
    cards,
    clashes,
    get,
    listing,
    names,
    provider,
    register,
    register_module,
    reset,
    unregister,
)

__all__ = [
    "KNOWN", "SOCKETS", "Plugin", "PluginWarning", "cards", "clashes", "get", "hookimpl", "listing", "names", "provider",
    "register", "register_module", "reset", "unregister",
]  # fmt: skip
