"""Errors that a user can mend: each message says what is wrong and what to do about it.

`UserError` and its children are what the command line prints without a traceback. Library code raises them (or a plain
ValueError) for bad input; `assert` is for invariants that only a bug of ours can break. `did_you_mean` and `typed_path` read
what was typed in the way it was meant.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Bad input with a remedy in its message; the command line shows it as one line and exits non-zero."""


class UnknownNameError(UserError):
    """A name that nothing answers to; the message has the nearest names and what is available."""


class PluginError(UserError):
    """A plugin that failed to load, or two plugins that claim one name."""


class CheckpointError(UserError):
    """Weights or a checkpoint that cannot be used: missing, truncated, or with another hash than promised."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the nearest of `known`, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str], *, remedy: str = "") -> UnknownNameError:
    """Build the error for an unknown `name` of some `kind` ("model", "encoder", ...)."""
    names = sorted(known)
    listed = ", ".join(names) if names else "none"
    message = f'Unknown {kind} "{name}".{did_you_mean(name, names)} Available: {listed}.'
    return UnknownNameError(f"{message} {remedy}".rstrip())


def typed_path(text: str | Path) -> Path:
    """The path that a user typed: as it stands where something lies there, whatever characters it has; else with `~` for a
    home folder, where there is such a user."""
    return Path(text) if os.path.lexists(text) else Path(os.path.expanduser(text))
