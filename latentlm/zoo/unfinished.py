"""A run that goes on, as a model: its recipe, with the weights of its newest checkpoint.

There is no card yet, and none is written: what a card would say stands in recipe.yaml and in the checkpoint's state.json, and
is read when it is asked for. So it is never behind.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latentlm.config import Card, Recipe, WeightsSpec, parse, read_json, read_yaml
from latentlm.errors import CheckpointError, UserError

CHECKPOINTS, STATE, RECIPE = "checkpoints", "state.json", "recipe.yaml"
WEIGHTS_OF_MANY = "-model-00001-of-"
"""In the names of files with weights that several processes wrote."""
_TOKENIZER = "tokenizer.json"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first. Unfinished ones have hidden names and are not among them."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_of(run: Path) -> tuple[Card, Path] | None:
    """The card of a run's newest checkpoint, and that checkpoint; None where the folder is no run, or has saved none. Raises
    UserError where recipe or state are damaged."""
    if not (run / RECIPE).is_file() or not (saved := checkpoints(run / CHECKPOINTS)):
        return None
    recipe = parse(Recipe, read_yaml(run / RECIPE), source=f"recipe {run / RECIPE}")
    try:
        record = read_json(saved[-1] / STATE)
    except UserError:
        if saved[-1].exists():
            raise
        return newest_of(run)  # the run has deleted it since, and has a newer one
    try:
        step, weights = int(saved[-1].name.removeprefix("step-")), _weights(record["files"])
    except (KeyError, TypeError, AttributeError, ValueError):
        said = f"the checkpoint {saved[-1]} is damaged: {STATE} does not say what its weights are"
        raise CheckpointError(f"{said}. `latentlm train ... --resume` goes on from the one before it.") from None
    tokenizer = _TOKENIZER if (run / _TOKENIZER).is_file() else "bytes"
    training = {"steps": step, "of_steps": recipe.train.steps}
    return card_of(recipe, weights, tokenizer=tokenizer, training=training, scores={}), saved[-1]


def _weights(files: dict[str, dict[str, Any]]) -> WeightsSpec:
    """What a card in the checkpoint's folder would say of its weights. Raises KeyError, TypeError, ... for odd records."""
    from latentlm.config.tensor_parts import hash_of_hashes  # imports torch

    if "model.safetensors" in files:
        return WeightsSpec(uri="model.safetensors", **files["model.safetensors"])
    parts = [WeightsSpec(uri=name, **files[name]) for name in sorted(files) if WEIGHTS_OF_MANY in name]
    combined, size = hash_of_hashes([part.sha256 for part in parts]), sum(part.size for part in parts)
    return WeightsSpec(uri=".", sha256=combined, size=size, parts=[part.uri for part in parts])


def card_of(
    recipe: Recipe, weights: WeightsSpec, *, tokenizer: str, training: dict[str, Any], scores: dict[str, Any]
) -> Card:
    """The card of what a recipe trained."""
    return Card(
        card_version=2 if recipe.model.latents else 1,
        name=recipe.name,
        description=recipe.description,
        status="trained",
        plugins=recipe.plugins,
        model=recipe.model,
        tokenizer=tokenizer,
        weights=weights,
        dtype="float32",
        training=training,
        scores=scores,
    )
