"""Which code a run was made with: versions of its plugins and a fingerprint of their files, and what has changed since.

A version alone would not tell: a plugin under development changes without one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from latentlm.config.reading import read_bytes
from latentlm.errors import UserError, sentence
from latentlm.plugins.registry import listing


def provenance(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """{plugin: distribution, version, sha256 of its Python files} of those of these plugins that are installed."""
    wanted = set(names)
    return {
        plugin.name: {"distribution": plugin.distribution, "version": plugin.version, "code": _code(plugin.module)}
        for plugin in listing()
        if plugin.name in wanted and plugin.module
    }


def changes(before: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What has changed since `provenance` said `before`, a sentence for each plugin."""
    after = provenance(before)
    said = []
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            said.append(f'plugin "{name}" ({old.get("distribution")} {old.get("version")}) is no longer installed')
        elif new["version"] != old.get("version"):
            said.append(f'plugin "{name}" ({new["distribution"]}) was {old.get("version")} and is {new["version"]}')
        elif new["code"] != old.get("code"):
            said.append(f'plugin "{name}" ({new["distribution"]} {new["version"]}) has other code than then')
    return said


@contextmanager
def explained(before: Mapping[str, Mapping[str, Any]], *, what: str) -> Iterator[None]:
    """Errors within the block say which plugins have changed since `what`, where some have: that is often why."""
    try:
        yield
    except UserError as error:
        said = changes(before)
        if not said:
            raise
        raise type(error)(f"{sentence(str(error))} Since {what}, {'; '.join(said)}.") from error


def _code(module: str) -> str:
    """A fingerprint of the Python files of a module's package."""
    try:
        spec = find_spec(module.partition(".")[0])
    except Exception:  # of whatever looks for modules
        spec = None
    if spec is None or spec.origin is None:
        return ""
    origin = Path(spec.origin)
    found = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    digest = hashlib.sha256()
    for file in found:
        name = file.relative_to(origin.parent)
        if any(part.startswith(".") for part in name.parts) or not file.is_file():  # an editor's lock, a folder, a pipe
            continue
        digest.update(os.fsencode(name) + b"\0")
        with suppress(UserError):  # what cannot be read is no code that can run
            digest.update(read_bytes(file))
    return digest.hexdigest()
