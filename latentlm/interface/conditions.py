"""Where latents can enter a backbone: condition slots per block, one at the embedding, one at the readout.

Legend: R latent rows, T tokens, D width, M prefix or memory slots, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Prefix:
    """Key/value slots that every position of its document sees, ahead of the text. No RoPE."""

    key: Tensor
    """(R, Hkv, M, dh)."""
    value: Tensor
    """(R, Hkv, M, dh)."""
    documents: Tensor
    """(R, M) long: the document that sees each slot; -1 = none."""


@dataclass(frozen=True)
class Cross:
    """Slots that every position of its document reads through a cross-attention layer of the injection's own, after the block's
    self-attention (Vaswani et al. 2017, section 3.2.3)."""

    layer: nn.Module
    """A `latentlm.backbone.CrossAttention`; it belongs to the injection."""
    key: Tensor
    """(R, Hkv, M, dh), as `CrossAttention.memory` makes it."""
    value: Tensor
    """(R, Hkv, M, dh)."""
    documents: Tensor
    """(R, M) long: the document that reads each slot; -1 = none."""


@dataclass(frozen=True)
class ValueMap:
    """A map of a block's values by a layer of the injection's own: `layer(values, factor)`, from (R, T, Hkv*dh) to the same.
    The cache holds what comes out, so the layer sees each position once."""

    layer: nn.Module
    """It belongs to the injection."""
    factor: Tensor
    """What the layer makes of the latent: (R, T, ...) or (R, 1, ...)."""


@dataclass(frozen=True)
class BlockCondition:
    """What a latent adds to one block. A None slot adds nothing. Tensors of shape (R, T, D) or (R, 1, D).

    Example::

        added = BlockCondition(kv=torch.zeros(2, 7, 32))  # keys and values of 7 positions, 2 rows
    """

    kv: Tensor | None = None
    """Added to the key/value stream before the block's norm; queries and residual do not see it."""
    kv_normed: Tensor | None = None
    """Added to the key/value stream after the block's norm."""
    residual: Tensor | None = None
    """Added to the residual stream entering the block: queries, keys, values and skip connection see it."""
    skip: Tensor | None = None
    """Added to the skip connection around attention only."""
    prefix: Prefix | None = None
    value_gate: Tensor | ValueMap | None = None
    """(R, T, Hkv*dh) or (R, 1, Hkv*dh): the values of each position are multiplied by 1 + value_gate; or a map of them."""
    film_scale: Tensor | None = None
    """The normed input of the feed-forward is multiplied by 1 + film_scale (FiLM; Perez et al. 2018)."""
    film_shift: Tensor | None = None
    """... and shifted by film_shift."""
    cross: Cross | None = None


SLOTS = (
    "kv", "kv_normed", "residual", "skip", "prefix", "value_gate", "film_scale", "film_shift", "cross",
    "embedding", "logit_bias",
)  # fmt: skip
"""Every condition slot of these contracts. A backbone says which of them it has; another is an error at build time."""


@dataclass(frozen=True)
class Condition:
    """What a latent adds to the decoder: per block, `embedding`, added to the token embeddings, and `logit_bias`.

    Example::

        condition = Condition({1: BlockCondition(residual=torch.zeros(2, 7, 32))}, logit_bias=torch.zeros(2, 1, 32))
    """

    blocks: Mapping[int, BlockCondition] = field(default_factory=dict)
    embedding: Tensor | None = None
    """(R, T, D) or (R, 1, D); only where the first injected block is block 0."""
    logit_bias: Tensor | None = None
    """(R, T, D) or (R, 1, D), added to the final normed stream: a bias of readout @ logit_bias on the logits."""
