"""From a recipe to everything that a run computes with: device, data, the resolved recipe, model and stream.

Resolving a recipe fills in what it leaves open: the parts of its decoder and their settings, the vocabulary (the tokenizer's,
where the recipe does not say), the length of the sequences.
"""

from __future__ import annotations

from pathlib import Path

import torch

from latentlm import plugins
from latentlm.composed import build, complete
from latentlm.config import ModelConfig, Recipe
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import check_vocabulary
from latentlm.training.data import Prepared, prepare
from latentlm.training.packing import PackedStream
from latentlm.training.prompted import check_prompts


def pick_device(name: str) -> torch.device:
    """ "auto" is the first GPU, or the CPU. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'train.device "{name}" is none of "auto", "cpu", "cuda", "cuda:1", ...') from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'train.device is "{name}", but torch sees {torch.cuda.device_count()} GPUs here. Use "auto" or "cpu".')
    return device


def resolve(recipe: Recipe, *, vocabulary: int | None = None) -> Recipe:
    """The recipe with nothing left open. `vocabulary` is taken where the recipe does not set one. Raises UserError."""
    check_prompts(recipe)
    model = _with_vocabulary(recipe.model, vocabulary)
    context = recipe.train.context or model.backbone.context
    if context > model.backbone.context:
        raise UserError(
            f"train.context is {context}, but the model's context is {model.backbone.context}. Lower the one, or raise "
            "model.backbone.context."
        )
    completed = complete(model, plugin_names=recipe.plugins or None)
    return recipe.model_copy(
        update={
            "plugins": recipe.plugins or _plugins_of(completed),
            "model": completed,
            "train": recipe.train.model_copy(update={"context": context}),
        }
    )


def _plugins_of(model: ModelConfig) -> list[str]:
    """Names of the installed plugins that the model's parts come from; parts registered in this process have none."""
    parts = {socket: getattr(model, socket) for socket in ("encoder", "prior", "injection", "kl_schedule")}
    wanted = {"decoder": model.decoder, **{socket: spec.name for socket, spec in parts.items() if spec is not None}}
    return sorted(
        plugin.name
        for plugin in plugins.listing()
        if plugin.entry is not None and any(name in plugin.parts.get(socket, {}) for socket, name in wanted.items())
    )


def _with_vocabulary(model: ModelConfig, vocabulary: int | None) -> ModelConfig:
    if vocabulary is None or "vocabulary" in model.backbone.model_fields_set:
        return model
    return model.model_copy(update={"backbone": model.backbone.model_copy(update={"vocabulary": vocabulary})})


def read_data(recipe: Recipe, *, folder: Path | None) -> Prepared:
    """The recipe's data; `folder` is that of a run being resumed, whose tokenizer is used."""
    return prepare(recipe.data, folder=folder)


def make_model(recipe: Recipe, device: torch.device | str) -> LatentDecoder:
    """The resolved recipe's model, initialised from train.seed, in float32 (also for bfloat16 training)."""
    return build(recipe.model, device=device, seed=recipe.train.seed, plugin_names=recipe.plugins or None)


def make_stream(recipe: Recipe, prepared: Prepared) -> PackedStream:
    """The training batches of a resolved recipe. Raises UserError where model and tokenizer do not fit."""
    check_vocabulary(prepared.tokenizer, recipe.model.backbone.vocabulary, source=f"recipe {recipe.name}")
    assert recipe.train.context is not None, "the recipe is resolved"
    return PackedStream(
        prepared.train,
        context=recipe.train.context,
        batch=recipe.train.batch,
        seed=recipe.data.seed,
        packing=recipe.data.packing,
    )
