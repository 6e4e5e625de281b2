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
from latentlm.composed import build
from latentlm.config import ModelConfig
from latentlm.interface import LatentDecoder, chunk_length


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
    encoder = getattr(model, "encoder", None)
    encoder_blocks = _blocks(encoder)
    per_block = 2.0 * backbone.context * backbone.heads * backbone.head_dim  # causal attention, a token
    encoding = 2.0 * _multiplied(encoder) + 2 * per_block * len(encoder_blocks)
    readout = parts.get("embedding", 0) if backbone.tie_embeddings else 0
    injection, prior = getattr(model, "injection", None), getattr(model, "prior_part", None)
    by_site = _multiplied(injection) - _reading(injection) + _multiplied(prior)
    rare = (1.0 - _sites_per_token(model)) * by_site
    generation = 2.0 * (_multiplied(model) - _multiplied(encoder) + readout - rare) + backbone.blocks * per_block
    surrogate = getattr(injection, "surrogate_operations", 0.0) * _sites_per_token(model)
    fitting = getattr(encoder, "fitting_passes", 0)
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


def _sites_per_token(model: LatentDecoder) -> float:
    """1 for a latent per token, 1/n for one per n tokens, 1/T for one per document of a full context."""
    length = chunk_length(model.granularity) if model.has_latents else 1
    return 1.0 / (model.config.backbone.context if length is None else length)


def _blocks(module: nn.Module | None) -> list[Block]:
    """The transformer blocks in a module."""
    return [] if module is None else [inner for inner in module.modules() if isinstance(inner, Block)]


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
        "encoder": count(getattr(model, "encoder", None)),
        "prior": count(getattr(model, "prior_part", None)),
        "injection": count(getattr(model, "injection", None)),
    }


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
