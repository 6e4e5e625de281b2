"""JSON as the standard has it, of results that lm-eval and its metrics made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentlm.cli.output import as_json


def strict_json(data: Any) -> str:
    """Indented JSON in which a number that is not finite is null, and what JSON does not know is what lm-eval makes of it."""
    return as_json(plain(data))


def plain(data: Any) -> Any:
    """The same of what JSON knows, with text for keys."""
    from lm_eval.utils import handle_non_serializable

    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(item) for item in data]
    if data is None or isinstance(data, str | int | float):
        return float(data) if isinstance(data, float) else data  # numpy's are of a kind of their own
    made = handle_non_serializable(data)
    return plain(made) if type(made) is not type(data) else str(made)
