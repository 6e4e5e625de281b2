"""What a model costs, from its configuration alone: parameters by part, operations, memory, overhead against its baseline.

Counts come from a build on the meta device, which allocates nothing. Operations are floating-point, two for a multiply-add:

    weights       2 for each entry of each matrix that multiplies (Linear layers, and the embedding where it is the readout);
                  look-ups (embedding, post-sampler table), norms and softmax are left out
    attention     2 T H dh a token and block where causal, the mean over a full context; 4 T H dh in an encoder that sees all
    per site      matrices of prior and injection multiply once a latent site, that is 1, 1/n or 1/T times a token; those of a
                  cross-attention layer that act on positions, every token
    training      three forward passes, encoder included (the backward pass costs two), two for each pass that fits a posterior
                  without a network (its backward pass reaches no weights), and what the injection says of its surrogate
                  gradient: the table's exact one scores every row, 2 for each entry, once a latent site
    generation    one pass without the encoder, which runs on the prompt only; the mean over a full context

Legend: D width, L blocks, T context, H heads, dh head width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from latentlm.backbone.block import Block
from latentlm.backbone.cross import CrossAttention
from latentlm.composed import ComposedDecoder, build
from latentlm.config import ModelConfig
from latentlm.interface import LatentDecoder


@dataclass(frozen=True)
class Cost:
    """Numbers of one model."""

    parameters: int
    by_part: dict[str, int]
    """embedding, blocks, norm, readout, encoder, prior, injection (the table); "model" alone where it is not composed."""
    one_block: int
    """Parameters of one block of the decoder."""
    encoder_blocks: int
    """Parameters of the transformer blocks in the encoder, which the paper counts as its overhead."""
    training_flops_per_token: float
    generation_flops_per_token: float
    weight_bytes: int
    cache_bytes_per_token: int

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def count(module: nn.Module | None) -> int:
    """Parameters of a module, each counted once."""
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def cost(config: ModelConfig, *, dtype: torch.dtype, plugin_names: list[str] | None = None) -> Cost:
    """Count a model without allocating it."""
    return cost_of(build(config, device="meta", plugin_names=plugin_names), dtype=dtype)


def cost_of(model: LatentDecoder, *, dtype: torch.dtype) -> Cost:
    """Count a model that was built, on any device."""
    backbone = model.config.backbone
    assert backbone.head_dim is not None
    assert backbone.kv_heads is not None
    total, parts = count(model), _parts(model)
    latents = model.latents.values() if isinstance(model, ComposedDecoder) else ()
    encoders = [latent.encoder for latent in latents]
    encoder_blocks = [block for encoder in encoders for block in _blocks(encoder)]
    per_block = 2.0 * backbone.context * backbone.heads * backbone.head_dim  # causal attention, a token
    encoding = 2.0 * sum(map(_multiplied, encoders)) + 2 * per_block * len(encoder_blocks)
    readout = parts.get("embedding", 0) if backbone.tie_embeddings else 0
    rare, surrogate, fitting = 0.0, 0.0, 0.0
    for latent in latents:
        often = latent.granularity.sites_per_token(backbone.context)
        by_site = _multiplied(latent.injection) - _reading(latent.injection) + _multiplied(latent.prior)
        rare += (1.0 - often) * by_site
        for _, part in latent.named_parts():
            more = part.operations()
            surrogate, fitting = surrogate + more.training_per_site * often, fitting + more.fitting_passes
    generation = 2.0 * (_multiplied(model) - sum(map(_multiplied, encoders)) + readout - rare) + backbone.blocks * per_block
    return Cost(
        parameters=total,
        by_part=parts,
        one_block=parts["blocks"] // backbone.blocks if "blocks" in parts else 0,
        encoder_blocks=sum(count(block) for block in encoder_blocks),
        training_flops_per_token=3.0 * (generation + encoding) + 2.0 * fitting * generation + surrogate,
        generation_flops_per_token=generation,
        weight_bytes=total * dtype.itemsize,
        cache_bytes_per_token=2 * backbone.blocks * backbone.kv_heads * backbone.head_dim * dtype.itemsize,
    )


def _multiplied(module: nn.Module | None) -> int:
    """Entries of the matrices that multiply an activation of every token."""
    if module is None:
        return 0
    return sum(inner.weight.numel() for inner in module.modules() if isinstance(inner, nn.Linear))


def _reading(module: nn.Module | None) -> int:
    """Entries of the matrices with which an injection's cross-attention reads its slots, position by position."""
    if module is None:
        return 0
    layers = [inner for inner in module.modules() if isinstance(inner, CrossAttention)]
    return sum(_multiplied(layer.query) + _multiplied(layer.output) for layer in layers)


def _blocks(module: nn.Module | None) -> list[Block]:
    """The transformer blocks in a module."""
    return [] if module is None else [inner for inner in module.modules() if isinstance(inner, Block)]


_COUNTED = ("backbone", "encoder", "prior_part", "injection", "latents")
"""Modules of a composed decoder that are counted by what is in them; others are a decoder's own."""


def _parts(model: LatentDecoder) -> dict[str, int]:
    """Parameters by part; everything under "model" for a decoder that is not composed."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return {"model": count(model)}
    return {
        "embedding": count(backbone.embedding),
        "blocks": count(backbone.blocks),
        "norm": count(backbone.norm),
        "readout": count(backbone.readout),
        **_by_socket(model),
        **{name: count(child) for name, child in model.named_children() if name not in _COUNTED},
    }


def _by_socket(model: LatentDecoder) -> dict[str, int]:
    """Parameters of encoder, prior and injection; "NAME.encoder", ... in a decoder of several latents."""
    latents = model.latents if isinstance(model, ComposedDecoder) else {}
    if len(latents) < 2:
        parts = dict(next(iter(latents.values())).named_parts()) if latents else {}
        return {socket: count(parts.get(socket)) for socket in ("encoder", "prior", "injection")}
    return {f"{name}.{socket}": count(part) for name, own in latents.items() for socket, part in own.named_parts()}


@dataclass(frozen=True)
class Overhead:
    """How much larger a latent model is than its baseline, counted in both ways, and what it costs. All are shares."""

    baseline: str
    encoder_block: float
    """The paper's way: the encoder's block over the baseline's blocks, 1/L. It leaves out the table and the bit readout."""
    all_parameters: float
    """Every parameter beyond the baseline's, over the baseline's."""
    training_flops: float
    """Operations of a training step beyond the baseline's, over the baseline's."""
    generation_flops: float
    """Operations of a generated token beyond the baseline's, over the baseline's."""


def overhead(model: Cost, baseline: Cost, *, name: str) -> Overhead:
    """Compare a model with its baseline, called `name`."""
    return Overhead(
        baseline=name,
        encoder_block=model.encoder_blocks / baseline.by_part.get("blocks", baseline.parameters),
        all_parameters=model.parameters / baseline.parameters - 1.0,
        training_flops=model.training_flops_per_token / baseline.training_flops_per_token - 1.0,
        generation_flops=model.generation_flops_per_token / baseline.generation_flops_per_token - 1.0,
    )
