"""Rotary positions as config.json describes them, read as transformers reads them.

`rope_scaling` goes before `rope_parameters` where a file has both; base and original context may stand inside or beside them.

    default    the plain frequencies
    dynamic    the plain frequencies too: they change beyond max_position_embeddings only, where no text of ours goes
    linear     all frequencies divided by `factor`
    llama3     the slow ones divided by `factor`, the fast ones kept
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentlm.config.checking import real
from latentlm.errors import UserError

_KINDS = ("default", "dynamic", "linear", "llama3")
_KNOWN = {
    "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    "partial_rotary_factor",
    # of kinds that are refused; transformers passes over them in the others
    "attention_factor", "beta_fast", "beta_slow", "short_factor", "long_factor", "mscale", "mscale_all_dim", "truncate",
    "mrope_section",
}  # fmt: skip
_ORIGINAL = "original_max_position_embeddings"


def rotary(settings: dict[str, Any], path: Path) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling (the backbone's `rope_base` and `rope_scaling`). Raises UserError for what the backbone has not."""
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    rope = settings.get(name) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: {name} should hold a mapping, not {rope!r}.")
    if unknown := sorted(rope.keys() - _KNOWN):
        raise UserError(f'{path}: {name} has the key "{unknown[0]}", whose meaning is not known here.')
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _KINDS:
        raise UserError(
            f'{path}: rotary positions of type "{kind}" ({name}) are not supported; these are: {", ".join(_KINDS)}.'
        )
    if (share := rope.get("partial_rotary_factor")) not in (None, 1.0):
        raise UserError(f"{path}: a share of {share} of each head is rotated (partial_rotary_factor in {name}), not all of it.")
    base = real(f"{path}: rope_theta", rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0, above=0)
    if kind in ("default", "dynamic"):
        return base, None
    wanted = ("factor", "low_freq_factor", "high_freq_factor") if kind == "llama3" else ("factor",)
    if missing := [key for key in wanted if rope.get(key) is None]:
        raise UserError(f"{path}: {kind} rotary positions ({name}) lack {', '.join(missing)}.")
    scaling = {key: rope[key] for key in wanted}
    if kind == "linear":
        # Llama 3's scaling of a model of one token of context: every wavelength, 2 pi tokens or more, is a long one.
        return base, {**scaling, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 1}
    original = settings.get(_ORIGINAL) or rope.get(_ORIGINAL) or settings.get("max_position_embeddings")
    return base, {**scaling, "original_context": original}
