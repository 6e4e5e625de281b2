"""JSON as the standard has it, of results that lm-eval and its metrics made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def strict_json(data: Any) -> str:
    """Indented JSON in which a number that is not finite is null, and what JSON does not know is what lm-eval makes of it."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def _finite(data: Any) -> Any:
    """The same without NaN and infinities, with text for keys."""
    from lm_eval.utils import handle_non_serializable

    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else None
    if data is None or isinstance(data, str | int):
        return data
    made = handle_non_serializable(data)
    return _finite(made) if type(made) is not type(data) else str(made)
