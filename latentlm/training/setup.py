"""From a recipe to everything that a run computes with: device, data, the resolved recipe, model and stream.

Resolving a recipe fills in what it leaves open: the parts of its decoder and their settings, the vocabulary (the tokenizer's,
where the recipe does not say), the length of the sequences.
"""

from __future__ import annotations

import torch

from latentlm import plugins
from latentlm.composed import build, complete, fill_granularities
from latentlm.config import SOCKETS, ModelConfig, Recipe
from latentlm.errors import UserError
from latentlm.interface import LatentDecoder
from latentlm.tokenizer import Tokenizer, check_vocabulary
from latentlm.training.data.packing import PackedStream
from latentlm.training.data.prepared import Prepared
from latentlm.training.data.prompted import check_prompts
from latentlm.training.parallel import Ranks

_SOCKETS = {"encoder": "encoder", "prior_part": "prior", "injection": "injection"}


def pick_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """ "auto" is the first GPU, or the CPU; of several processes each has the GPU of its number. Raises UserError for a device
    that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks is not None and ranks.size > 1:
        name = f"cuda:{ranks.local}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'train.device "{name}" is none of "auto", "cpu", "cuda", "cuda:1", ...') from None
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f'train.device is "{name}", and nothing is trained there here. Use "auto", "cpu" or "cuda".')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'train.device is "{name}", but torch sees {torch.cuda.device_count()} GPUs here. Use "auto" or "cpu".')
    return device


def resolve(recipe: Recipe, *, vocabulary: int | None = None, tokenizer: Tokenizer | None = None) -> Recipe:
    """The recipe with nothing left open. `vocabulary` (or the tokenizer's) is taken where the recipe does not set one; what
    only a tokenizer can fill in, stays open without one. Raises UserError."""
    vocabulary = vocabulary if tokenizer is None else tokenizer.vocabulary
    check_prompts(recipe)
    if (profile := recipe.train.profile) is not None and profile.last >= recipe.train.steps:
        raise UserError(
            f"train.profile is to trace steps {profile.start} to {profile.last}, counted from 0, of a run of "
            f"{recipe.train.steps}: choose earlier ones."
        )
    model = _with_vocabulary(recipe.model, vocabulary)
    context = recipe.train.context or model.backbone.context
    if context > model.backbone.context:
        raise UserError(
            f"train.context is {context}, but the model's context is {model.backbone.context}. Lower the one, or raise "
            "model.backbone.context."
        )
    completed = complete(model, plugin_names=recipe.plugins or None)
    if tokenizer is not None:
        completed = fill_granularities(completed, tokenizer, plugin_names=recipe.plugins or None)
    return recipe.model_copy(
        update={
            "plugins": _plugins_of(completed, recipe.plugins),
            "model": completed,
            "train": recipe.train.model_copy(update={"context": context}),
        }
    )


def _plugins_of(model: ModelConfig, named: list[str]) -> list[str]:
    """The plugins that the recipe names, then the other installed ones that the model's parts come from. What is built in or
    registered in this process has none."""
    wanted: dict[tuple[str, str], None] = {("decoder", model.decoder_name): None}
    for latent in model.by_latent.values():
        for socket in SOCKETS:
            if (spec := getattr(latent, socket)) is not None:
                wanted[socket, spec.name] = None
        if latent.like is not None:
            wanted["decoder", latent.like] = None
        scale = latent.granularity
        wanted["granularity", scale.partition(":")[0] if isinstance(scale, str) else str(scale.name)] = None
    sources = [plugins.provider(socket, name, plugins=named or None) for socket, name in wanted]
    return [*named, *sorted({plugin.name for plugin in sources if plugin.installed and plugin.name not in named})]


def _with_vocabulary(model: ModelConfig, vocabulary: int | None) -> ModelConfig:
    if vocabulary is None or "vocabulary" in model.backbone.model_fields_set:
        return model
    return model.model_copy(update={"backbone": model.backbone.model_copy(update={"vocabulary": vocabulary})})


def make_model(recipe: Recipe, device: torch.device | str) -> LatentDecoder:
    """The resolved recipe's model, initialised from train.seed, in float32 (also for bfloat16 training)."""
    return build(recipe.model, device=device, seed=recipe.train.seed, plugin_names=recipe.plugins or None)


def parameters_by_socket(model: LatentDecoder) -> dict[str, int]:
    """Parameters of the backbone and of each part, shared ones once, and their total."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        child, _, rest = name.partition(".")
        if child == "latents":  # of several: latents.NAME.encoder. ...
            owner, part = rest.split(".")[:2]
            child, socket = part, f"{owner}.{_SOCKETS.get(part, part)}"
        else:
            socket = _SOCKETS.get(child, child)
        counts[socket] = counts.get(socket, 0) + parameter.numel()
    return {**counts, "total": sum(counts.values())}


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
