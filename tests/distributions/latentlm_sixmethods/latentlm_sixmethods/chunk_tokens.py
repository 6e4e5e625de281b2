"""Latent tokens: the vector of a chunk becomes a few key/value slots in each upper block, which every position sees from the
chunk's first one on, also those of later chunks (memory tokens, Bulatov et al. 2022, with a latent behind them).

    injection   chunk_tokens   M slots per site and block, `Prefix.since` its first position

Legend: R latent rows, T tokens, S sites, E dimensions, M slots of a site, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

from einops import rearrange
from pydantic import Field
from torch import nn

from latentlm.config import Strict
from latentlm.interface import BlockCondition, Condition, Context, Injection, Latent, Prefix, Shape
from latentlm.plugins import hookimpl

latentlm_contract = 2


class ChunkTokensConfig(Strict):
    """How many."""

    slots: int = Field(1, ge=1, description="M, key/value slots of a site in each block")


class ChunkTokens(Injection):
    """A linear map to keys and values for each block from L//2 up."""

    Config = ChunkTokensConfig
    config: ChunkTokensConfig
    family = "real"
    slots = ("prefix",)
    prefix_since = True

    def __init__(self, config: ChunkTokensConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks = tuple(range(shape.blocks // 2, shape.blocks))
        assert shape.backbone.kv_heads is not None
        assert shape.backbone.head_dim is not None
        self.heads, size = shape.backbone.kv_heads, shape.backbone.kv_heads * shape.backbone.head_dim
        self.maps = nn.ModuleDict({str(k): nn.Linear(shape.latent.dims, 2 * config.slots * size) for k in self.blocks})

    def forward(self, latent: Latent, context: Context) -> Condition:
        """The slots of every site that `context` has: all of a text, or the one of the token under way."""
        documents = context.seen_by(self.config.slots)  # (R, S * M)
        since = context.first_positions().repeat_interleave(self.config.slots, dim=1)
        blocks = {}
        for block in self.blocks:
            made = self.maps[str(block)](latent.value)
            key, value = rearrange(made, "r s (kv m h d) -> kv r h (s m) d", kv=2, m=self.config.slots, h=self.heads)
            blocks[block] = BlockCondition(prefix=Prefix(key, value, documents, since=since))
        return Condition(blocks)


@hookimpl
def latentlm_parts() -> dict[str, dict[str, type]]:
    """The part of this plugin."""
    return {"injection": {"chunk_tokens": ChunkTokens}}
