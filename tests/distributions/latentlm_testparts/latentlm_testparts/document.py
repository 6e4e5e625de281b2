"""One Gaussian vector per document, injected as a key/value prefix of every block.

Every block is injected, so there is no trunk: the encoder reads the embedding (tap 0) through a block of its own.

Legend: B rows, R latent rows, T tokens, S sites (documents), E dimensions, M slots, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from latentlm.backbone import Block, Mask, rotation
from latentlm.config import Strict
from latentlm.interface import (
    BlockCondition,
    Condition,
    Context,
    Encoder,
    Gaussian,
    Injection,
    Latent,
    Objective,
    Prefix,
    Prior,
    Shape,
)


class PooledGaussian(Encoder):
    """A non-causal block over the embeddings, averaged over each document, read out as mean and log standard deviation."""

    Config = Strict
    taps = (0,)
    sees_future = True

    def __init__(self, config: Strict, shape: Shape) -> None:
        super().__init__(config, shape)
        self.block = Block(shape.backbone)
        self.norm = nn.RMSNorm(shape.width, eps=shape.backbone.norm_eps)
        self.mean = nn.Linear(shape.width, shape.latent.dims)
        self.log_std = nn.Linear(shape.width, shape.latent.dims)

    def forward(self, context: Context, objective: Objective | None = None) -> Gaussian:
        """(B, S, E)."""
        mask = Mask(context.documents, context.documents, causal=False)
        x = self.block(context.taps[0], mask=mask, rotation=rotation(self.shape.backbone, context.positions))
        pooled = context.site_means(self.norm(x))
        return Gaussian(self.mean(pooled), self.log_std(pooled))


class UnitNormal(Prior):
    """Standard normal, whatever the text."""

    Config = Strict

    def forward(self, context: Context, latent: Latent | None = None) -> Gaussian:
        """(R, S, E)."""
        return self._of(context.rows, context.sites, context.tokens.device)

    def step(
        self, state: Any, taps: Mapping[int, Tensor], previous: Tensor | None, starts: Tensor, above: Mapping[str, Tensor]
    ) -> tuple[Gaussian, Any]:
        """(B, 1, E)."""
        return self._of(len(starts), 1, starts.device), state

    def _of(self, rows: int, sites: int, device: torch.device) -> Gaussian:
        zeros = torch.zeros(rows, sites, self.shape.latent.dims, device=device)
        return Gaussian(zeros, zeros)


class PrefixConfig(Strict):
    """How much of a prefix."""

    slots: int = Field(2, ge=1, description="key/value slots per block")


class PrefixInjection(Injection):
    """One linear map from a document's vector to the M slots of every block."""

    Config = PrefixConfig
    slots = ("prefix",)

    def __init__(self, config: PrefixConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks = tuple(range(shape.blocks))
        assert shape.backbone.kv_heads is not None
        assert shape.backbone.head_dim is not None
        self.heads = shape.backbone.kv_heads
        size = 2 * config.slots * self.heads * shape.backbone.head_dim
        self.maps = nn.ModuleList(nn.Linear(shape.latent.dims, size) for _ in self.blocks)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """Slots of site s go to the document that s stands for."""
        seen_by = context.seen_by(self.config.slots)  # (R, S * M)
        blocks = {}
        for block, linear in zip(self.blocks, self.maps, strict=True):
            assert isinstance(linear, nn.Linear)
            slots = linear(latent.value.to(linear.weight))
            both = rearrange(slots, "r s (kv m h d) -> kv r h (s m) d", kv=2, m=self.config.slots, h=self.heads)
            blocks[block] = BlockCondition(prefix=Prefix(both[0], both[1], seen_by))
        return Condition(blocks)
