"""From what the user typed to a checked recipe: a YAML file, the recipe of a zoo model by name, or an earlier run's.

    load_recipe("free-tiny", ["train.steps=500"])

A zoo's recipes lie beside its cards, in a folder `recipes` next to them or one level up.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from latentlm.config import Recipe, apply_overrides, parse, read_yaml
from latentlm.config.checking import several, shown
from latentlm.config.reading import no_file
from latentlm.errors import UserError, did_you_mean, resolved, typed_path, unknown_name
from latentlm.zoo.shelves import is_card, is_model, zoo_recipes

RECIPE = "recipe.yaml"


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a name, a YAML file or a run folder, with `key=value` overrides applied. Raises UserError."""
    if odd := [one for one in several("overrides", overrides or [], of="texts, key=value") if not isinstance(one, str)]:
        raise UserError(f"an override is a text, key=value, not {shown(odd[0])}.")
    path = find_recipe(name)
    data = read_yaml(path)
    if is_card(data):
        raise UserError(f"{path} is a card, that of a model, not a recipe: see `latentlm zoo describe {path}`.")
    data = apply_overrides(data, [literal(override) for override in overrides or []])
    _follow_tokenizer(data, overrides or [])
    data.setdefault("name", _name_of(path))
    return parse(Recipe, data, source=f"recipe {path}")


def _name_of(path: Path) -> str:
    """A recipe's name where it says none: its file's, or for a recipe.yaml its folder's, in letters that a name may have."""
    said = resolved(path).parent.name if path.name == RECIPE else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", said)[:200].strip("._-") or "run"


def default_out(name: str, recipe: Recipe, *, resume: bool) -> Path:
    """Where a run goes without --out: runs/NAME; a run folder that is resumed, or its recipe, stands for itself."""
    path = typed_path(name)
    folder = path.parent if path.name == RECIPE else path
    return folder if resume and (folder / RECIPE).is_file() else Path("runs") / recipe.name


def literal(override: str) -> str:
    """An override of a setting that is text, such as data.path=2024, with its value in quotes, so that YAML makes no number,
    list or comment of it. What is in quotes already, stays."""
    key, equals, text = override.partition("=")
    kind = _kind_of(key)
    means_none = kind == str | None and text == "null"
    as_it_is = kind not in (str, str | None) or means_none or re.fullmatch("\".*\"|'.*'", text)
    return override if not equals or as_it_is else f"{key}={_quoted(text)}"


def _quoted(text: str) -> str:
    """Text as a YAML string on one line."""
    # Not as JSON, which spells what lies beyond the first 65,536 characters as two halves, two characters to YAML.
    return yaml.safe_dump(text, default_style='"', width=math.inf).strip()


def _kind_of(key: str) -> Any:
    """What a recipe's key holds, by its annotation."""
    schema: Any = Recipe
    for name in key.split("."):
        field = getattr(schema, "model_fields", {}).get(name)
        schema = None if field is None else field.annotation
    return schema


def _follow_tokenizer(data: dict[str, Any], overrides: list[str]) -> None:
    """Another tokenizer brings its own vocabulary, unless the user set one as well."""
    changed = {override.partition("=")[0] for override in overrides}
    if "data.tokenizer" in changed and "model.backbone.vocabulary" not in changed:
        data.get("model", {}).get("backbone", {}).pop("vocabulary", None)


def find_recipe(name: str) -> Path:
    """Where the recipe of that name, or at that path, lies. Raises UserError."""
    path = typed_path(name)
    if path.is_file():
        return path
    if (path / RECIPE).is_file():
        return path / RECIPE
    known = zoo_recipes()
    if name in known:
        return known[name]
    if is_model(name):
        remedy = f"`latentlm zoo describe {name}` says what it is; recipes by name: {', '.join(sorted(known)) or 'none'}."
        raise UserError(f'"{name}" is a model, not a recipe. {remedy}')
    if path.suffix in (".yaml", ".yml") or path.is_dir():
        near = did_you_mean(path.stem, [*known, *(other.stem for other in path.parent.glob("*.y*ml"))])
        problem = f"the folder {path} holds no {RECIPE}." if path.is_dir() else f"the recipe {no_file(path)}"
        raise UserError(f"{problem}{near} Recipes by name: {', '.join(sorted(known)) or 'none'}.")
    raise unknown_name("recipe", name, known, remedy="A recipe of your own is given by its path (my.yaml).")
