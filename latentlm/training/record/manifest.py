"""What a run was made with: versions, commit, machine, data, command. Written beside the run as manifest.json.

With the resolved recipe (recipe.yaml) it says all that is needed to make the run again.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import torch

import latentlm
from latentlm.config import Recipe, read_json
from latentlm.config.writing import write_text
from latentlm.errors import UserError
from latentlm.plugins.provenance import provenance
from latentlm.training.record.folder import MANIFEST

_LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "pydantic")


def make_manifest(
    recipe: Recipe,
    *,
    device: torch.device,
    data: dict[str, Any],
    parameters: dict[str, int],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Everything about a run that is not in its recipe. `command` defaults to this process's command line."""
    return {
        "name": recipe.name,
        "started": now(),
        "command": list(command if command is not None else sys.argv),
        "versions": versions(),
        "plugins": provenance(recipe.plugins),
        "git": git_state(Path(latentlm.__file__).parent),
        "seeds": {"data": recipe.data.seed, "training": recipe.train.seed},
        "device": device_card(device),
        "threads": torch.get_num_threads(),
        "data": data,
        "parameters": parameters,
        "metrics": "With latents, cross_entropy is under the posterior and no likelihood; bound = cross_entropy + kl.",
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json."""
    text = json.dumps(manifest, indent=2) + "\n"
    write_text(folder / MANIFEST, text)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote, so far as it is still there: it is a record, and nothing depends on it."""
    try:
        found = read_json(folder / MANIFEST)
    except UserError:
        return {}
    types = {"resumed": list, "device": dict, "data": dict, "plugins": dict, "init": dict}
    items = found.items() if isinstance(found, dict) else ()
    kept: dict[str, Any] = {key: value for key, value in items if isinstance(value, types.get(key, object))}
    if not all(isinstance(plugin, dict) for plugin in kept.get("plugins", {}).values()):
        del kept["plugins"]
    return kept


def versions() -> dict[str, Any]:
    """Versions of Python, latentlm, the libraries that numbers depend on, and every installed plugin."""
    return {
        "python": platform.python_version(),
        "latentlm": _version("latentlm"),
        **{library: _version(library) for library in _LIBRARIES},
        "plugins": {
            f"{entry.name} ({distribution.name})": distribution.version
            for distribution in distributions()
            for entry in distribution.entry_points
            if entry.group == "latentlm"
        },
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the package in `folder` is part of, and whether tracked files differ from it; None where it
    is part of none (an environment inside someone's project is not tracked there)."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def device_card(device: torch.device) -> dict[str, Any]:
    """Name and size of what the run computes on."""
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return {"type": "cuda", "name": card.name, "memory_bytes": card.total_memory}
    return {"type": device.type, "name": _cpu_name(), "system": platform.platform()}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    """The model name that Linux gives, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
