"""A small run folder, as `latentlm train` leaves it, for the tests of the zoo (tests/ is on the import path)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from latentlm.composed import build
from latentlm.config import Recipe
from latentlm.interface import LatentDecoder
from latentlm.training.record import write_model, write_recipe
from latentlm.zoo import weights as _weights
from samples import small_config

SHELF = Path(__file__).parents[1] / "zoo" / "latentlm_zoo" / "cards"


def small_recipe(decoder: str = "free", *, name: str = "mine", vocabulary: int = 257) -> Recipe:
    """A recipe whose model has the bytes' vocabulary."""
    plugins = ["vanilla"] if decoder == "vanilla" else ["free", "schedules"]
    return Recipe(name=name, description="A small run.", plugins=plugins, model=small_config(decoder, vocabulary=vocabulary))


def make_run(folder: Path, *, recipe: Recipe | None = None, tokenizer: str = "bytes") -> LatentDecoder:
    """Write a finished run into `folder`; returns its model."""
    recipe = recipe or small_recipe()
    model = build(recipe.model, seed=7, plugin_names=recipe.plugins).eval()
    folder.mkdir(parents=True)
    write_recipe(folder, recipe)
    weights = _weights.weights_of(model)
    said: dict[str, Any] = {"tokenizer": tokenizer, "training": {"steps": 3}, "scores": {"loss": 1.5}}
    write_model(folder, recipe=recipe, weights=weights, tensors=weights.items(), **said)
    return model


def edit_card(folder: Path, **changes: object) -> None:
    """Change top-level keys of the folder's card; None takes a key away."""
    data = yaml.safe_load((folder / "card.yaml").read_text()) | changes
    kept = {key: value for key, value in data.items() if value is not None}
    (folder / "card.yaml").write_text(yaml.safe_dump(kept))


def trust(folder: Path) -> None:
    """Write the hash and the size of the weights, whatever they are by now, into the folder's card."""
    file = folder / "model.safetensors"
    edit_card(folder, weights={"uri": file.name, "sha256": _weights.sha256(file), "size": file.stat().st_size})


def architecture(folder: Path, *, name: str) -> Path:
    """A card without weights called `name`, in `folder`; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    shutil.copyfile(SHELF / "free-1.5b.yaml", path)
    path.write_text(path.read_text().replace("name: free-1.5b", f"name: {name}"))
    return path
