"""The settings of a schema as rows: name, type, default, range, description. For `latentlm parts` and docs/reference.md.

    settings(FreeEncoder.Config)                  a part's settings
    settings(TrainConfig, prefix="train.")        a recipe's keys
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticUndefined, to_jsonable_python

_TYPES = {"integer": "int", "number": "float", "boolean": "bool", "string": "str", "null": "none", "object": "mapping"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<", "multipleOf": "a multiple of"}
_LENGTHS = {"minItems": "at least {} items", "maxItems": "at most {} items", "minLength": "at least {} characters"}


@dataclass(frozen=True)
class Setting:
    """One setting, in words that a user of recipes reads."""

    name: str
    type: str
    default: str
    """As it would be written in YAML; "required" where there is none."""
    range: str
    """Empty where every value of the type will do."""
    description: str

    def as_json(self) -> dict[str, str]:
        """Plain data."""
        return asdict(self)


def settings(schema: type[BaseModel], *, prefix: str = "") -> list[Setting]:
    """Every field of a schema, in its order; names begin with `prefix`."""
    try:
        described: Mapping[str, Any] = schema.model_json_schema()
    except PydanticUserError:  # a type of the plugin's own, which has no JSON schema: its annotation says what it is
        described = {}
    properties, shared = described.get("properties", {}), described.get("$defs", {})
    found = []
    for name, field in schema.model_fields.items():
        said = properties.get(field.alias or name)
        kind = str(field.annotation) if said is None else _type(said, shared)
        bounds = "" if said is None else _range(said)
        found.append(Setting(prefix + name, kind, _default(field), bounds, " ".join((field.description or "").split())))
    return found


def _type(said: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    """The type in words: `int`, `str or none`, `"a" or "b"`, `list of int`."""
    if "anyOf" in said:
        return " or ".join(dict.fromkeys(_type(option, shared) for option in said["anyOf"]))
    if "enum" in said or "const" in said:
        return " or ".join(json.dumps(value) for value in said.get("enum", [said.get("const")]))
    if "$ref" in said:
        return _type(shared.get(said["$ref"].rpartition("/")[2], {}), shared)
    if said.get("type") == "array":
        items = said.get("items")
        return f"list of {_type(items, shared)}" if items else "list"
    return _TYPES.get(said.get("type", ""), "any")


def _range(said: Mapping[str, Any]) -> str:
    """The bounds in words, those of items or of an alternative too."""
    bounds = [f"{sign} {said[key]:g}" for key, sign in _BOUNDS.items() if key in said]
    bounds += [words.format(said[key]) for key, words in _LENGTHS.items() if key in said]
    if "pattern" in said:
        bounds.append(f"matches {said['pattern']}")
    for option in said.get("anyOf", []):
        bounds += [inner] if (inner := _range(option)) else []
    if isinstance(said.get("items"), Mapping) and (inner := _range(said["items"])):
        bounds.append(f"each {inner}")
    return ", ".join(bounds)


def _default(field: Any) -> str:
    """The default as YAML would have it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    plain = to_jsonable_python(value, fallback=str)
    return plain if isinstance(plain, str) and plain else json.dumps(plain, ensure_ascii=False)
