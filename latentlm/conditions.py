"""Where latents can enter a backbone: condition slots per block, and one at the embedding.

Legend: R latent rows, T tokens, D width, M prefix slots, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


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
class BlockCondition:
    """What a latent adds to one block. A None slot adds nothing. Tensors of shape (R, T, D) or (R, 1, D)."""

    kv: Tensor | None = None
    """Added to the key/value stream before the block's norm; queries and residual do not see it."""
    kv_normed: Tensor | None = None
    """Added to the key/value stream after the block's norm."""
    residual: Tensor | None = None
    """Added to the residual stream entering the block: queries, keys, values and skip connection see it."""
    skip: Tensor | None = None
    """Added to the skip connection around attention only."""
    prefix: Prefix | None = None


SLOTS = ("kv", "kv_normed", "residual", "skip", "prefix", "embedding")
"""Every condition slot of these contracts. A backbone says which of them it has; another is an error at build time."""


@dataclass(frozen=True)
class Condition:
    """What a latent adds to the decoder: per block, and `embedding`, added to the token embeddings."""

    blocks: Mapping[int, BlockCondition] = field(default_factory=dict)
    embedding: Tensor | None = None
    """(R, T, D) or (R, 1, D); only where the first injected block is block 0."""
