"""A run that goes on, as a model: its recipe, with the weights of its newest checkpoint.

There is no card yet, and none is written: what a card would say stands in recipe.yaml and in the checkpoint's state.json, and
is read when it is asked for. So it is never behind.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentlm.config import Card, Recipe, WeightsSpec, parse, read_yaml
from latentlm.config.hashed import read_hashed
from latentlm.errors import CheckpointError, UserError, invalid

CHECKPOINTS, STATE, RECIPE = "checkpoints", "state.json", "recipe.yaml"
WEIGHTS_OF_MANY = "-model-00001-of-"
"""In the names of files with weights that several processes wrote."""
_TOKENIZER = "tokenizer.json"
FORMAT, SHARDED = 1, 2
"""Of checkpoints of one process, and of several."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first. Unfinished ones have hidden names and are not among them."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and re.fullmatch(r"step-[0-9]+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


class File(BaseModel):
    """What state.json says of a file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    sha256: str
    size: int


class Record(BaseModel):
    """state.json without its own hash."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: int
    step: int = Field(ge=0)
    files: dict[Annotated[str, Field(pattern=r"^[\w-]+\.safetensors$")], File]
    state: dict[str, Any]


def read_record(path: Path) -> Record:
    """What the state.json of a checkpoint says. Raises CheckpointError where it is damaged, or another checkpoint's."""
    try:
        record = read_hashed(path / STATE)
    except UserError as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from None
    if record.get("format") not in (FORMAT, SHARDED):
        raise CheckpointError(f"the checkpoint {path} has format {record.get('format')}; this version reads formats 1 and 2.")
    try:
        said = Record.model_validate(record)
    except ValidationError as error:
        raise CheckpointError(f"the checkpoint {invalid(error, Record, source=f'{path} is damaged: {STATE}')}.") from None
    if int(path.name.removeprefix("step-")) != said.step:
        raise CheckpointError(f"the checkpoint {path} is damaged: {STATE} is that of step {said.step}.")
    return said


def newest_of(run: Path) -> tuple[Card, Path] | None:
    """The card of a run's newest checkpoint, and that checkpoint; None where the folder is no run, or has saved none. Raises
    UserError where recipe or state are damaged."""
    if not (run / RECIPE).is_file() or not (saved := checkpoints(run / CHECKPOINTS)):
        return None
    recipe = parse(Recipe, read_yaml(run / RECIPE), source=f"recipe {run / RECIPE}")
    try:
        record = read_record(saved[-1])
        weights = _weights(record.files)
    except CheckpointError as error:
        if not saved[-1].exists():
            return newest_of(run)  # the run has deleted it since, and has a newer one
        raise CheckpointError(f"{error} `latentlm train ... --resume` goes on from the one before it.") from None
    tokenizer = _TOKENIZER if (run / _TOKENIZER).is_file() else "bytes"
    training = {"steps": record.step, "of_steps": recipe.train.steps}
    return card_of(recipe, weights, tokenizer=tokenizer, training=training, scores={}), saved[-1]


def _weights(files: dict[str, File]) -> WeightsSpec:
    """What a card in the checkpoint's folder would say of its weights."""
    from latentlm.config.tensor_parts import hash_of_hashes  # imports torch

    if "model.safetensors" in files:
        return _spec(uri="model.safetensors", sha256=files["model.safetensors"].sha256, size=files["model.safetensors"].size)
    names = sorted(name for name in files if WEIGHTS_OF_MANY in name)
    combined, size = hash_of_hashes([files[name].sha256 for name in names]), sum(files[name].size for name in names)
    return _spec(uri=".", sha256=combined, size=size, parts=names)


def _spec(**known: Any) -> WeightsSpec:
    try:
        return WeightsSpec(**known)
    except ValidationError:
        raise CheckpointError(f"{STATE} does not say what its weights are.") from None


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
