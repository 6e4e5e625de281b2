"""From version 1 of the contracts to version 2: where everything went, as data, and the one message that says so.

A plugin of version 1 fails in one of two ways: its import meets a module or a name that has moved, or it imports and states
`latentlm_contract = 1`. Either way its author reads what has changed, once, in the place of a bare ImportError.
"""

from __future__ import annotations

import importlib
import re

CHANGED = (
    "Version 2 changed: `latents` is `family`; `Injection.sites` is `blocks`; `shape.event_dims` and `shape.granularity` are "
    "`shape.latent.dims` and `shape.latent.granularity`; `bind(parts)` gets the latent's other parts, of every part; "
    "`advance(step)` gets the step, and every part may have it; `Prior.step` gets `above`; `surrogate_operations` and "
    "`fitting_passes` are `operations()`; a Distribution needs less. See docs/plugins.md, \"From version 1 to version 2\"."
)
"""What the author of a version-1 plugin has to know, in one breath."""

MODULES: dict[str, tuple[str, str]] = {
    "batches": ("interface", "Batch"),
    "conditions": ("interface", "Condition"),
    "distributions": ("interface", "Bits"),
    "noise": ("interface", "Noise"),
    "sites": ("interface", "assign_sites"),
    "ancestral": ("composed.ancestral", "sample_autoregressive"),
    "build": ("composed", "build"),
    "decoding": ("composed", "ComposedState"),
    "initialisation": ("composed.initialisation", "initialise"),
    "recurrence": ("composed.recurrence", "scan"),
    "_discovery": ("plugins", "PluginWarning"),
    "hookspecs": ("plugins", "hookimpl"),
    "scaffold": ("plugins.scaffold", "write_plugin"),
    "continuation": ("generation.continuation", "run"),
    "latents": ("generation", "save_latents"),
    "prompts": ("generation.prompts", "fitted"),
    "sampling": ("generation.sampling", "TokenSampling"),
    "stopping": ("generation.stopping", "StopStrings"),
    "diagnostics": ("likelihood.diagnostics", "diagnose"),
    "_weights": ("zoo.weights", "sha256"),
    "accounting": ("zoo.accounting", "cost"),
    "description": ("zoo", "Description"),
    "drawing": ("zoo.drawing", "draw"),
    "family": ("zoo.family", "tree"),
    "memory": ("config.memory", "check"),
    "shelves": ("zoo.shelves", "entries"),
    "training.artefacts": ("training.record.result", "read_result"),
    "training.checkpoint": ("training.record.checkpoint", "save_checkpoint"),
    "training.collapse": ("training.evaluation", "CollapseWatch"),
    "training.corpora": ("training.data", "load_documents"),
    "training.files": ("config.writing", "write_atomically"),
    "training.manifest": ("training.record.manifest", "make_manifest"),
    "training.metrics": ("training.record", "read_metrics"),
    "training.packing": ("training.data", "PackedStream"),
    "training.prompted": ("training.data.prompted", "with_prompts"),
    "training.reporting": ("training.record.reporting", "Reporter"),
    "training.runfolder": ("training.record.folder", "saved_recipe"),
    "training.signals": ("training.loop", "InterruptedRun"),
}
"""Module of before -> (room that has its contents, one of the names to be imported from there)."""

ROOMS = ("interface", "composed", "plugins", "generation", "likelihood", "zoo", "config", "errors")
"""Where a name that has left its module is looked for."""


def explain(error: BaseException) -> str | None:
    """The message for an import that failed because something of latentlm has moved; None for any other error."""
    if not isinstance(error, ImportError) or (said := _moved(error)) is None:
        return None
    return f"it was written for version 1 of the contracts: {said}. {CHANGED}"


def _moved(error: ImportError) -> str | None:
    """What has moved where; None where nothing has."""
    package, _, module = (error.name or "").partition(".")
    if package != "latentlm":
        return None
    if isinstance(error, ModuleNotFoundError):
        return _module(module)
    name = _imported(error)
    if name is None:
        return None
    whole = f"{module}.{name}".removeprefix(".")  # `from latentlm import noise` names the package alone
    return _module(whole) or (_name(module, name) if module else None)


def _module(old: str) -> str | None:
    """Where a module went."""
    if old not in MODULES:
        return None
    room, name = MODULES[old]
    return f"latentlm.{old} is now latentlm.{room} (from latentlm.{room} import {name})"


def _name(module: str, name: str) -> str | None:
    """Where a public name went."""
    for room in ROOMS:
        if room != module and hasattr(importlib.import_module(f"latentlm.{room}"), name):
            return f"{name} is no longer in latentlm.{module} (from latentlm.{room} import {name})"
    return None


def _imported(error: ImportError) -> str | None:
    """The name that could not be imported (Python 3.12 has it as `name_from`, 3.11 in its message only)."""
    found = re.match(r"cannot import name '(\w+)'", str(error))
    return getattr(error, "name_from", None) or (found.group(1) if found else None)
