"""Settings that are changed on the command line: `train.steps=500`."""

from __future__ import annotations

from typing import Any

from latentlm.config.reading import yaml_data
from latentlm.errors import UserError, short, unknown_name


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply `a.b=value` to nested plain data; values are read as YAML. `model.latents.NAME=null` takes a latent out. Raises
    UserError on a malformed one."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f'"{short(override)}" is not of the form key=value (for example train.steps=500).')
        node = data
        *parents, last = key.split(".")
        for parent in parents:
            child = node.get(parent)
            if isinstance(child, str):  # `encoder: free` grows into `{name: free, ...}`
                child = {"name": child}
            if not isinstance(child, dict | None):  # what it says would be lost, and nobody told
                found = f"{parent}, which is {short(repr(child))}"
                raise UserError(f'"{short(override)}" changes a setting of {found}: it has none.')
            node[parent] = dict(child or {})
            node = node[parent]
        remedy = "Put quotes around text with special characters."
        value = yaml_data(text, source=f'the value in "{short(override)}"', remedy=remedy)
        if value is None and parents == ["model", "latents"]:  # the one mapping whose keys the recipe makes up
            if last not in node:
                raise unknown_name("latent", last, node)
            del node[last]
        else:
            node[last] = value
    return data
