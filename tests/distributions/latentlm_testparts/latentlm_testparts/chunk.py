"""One code of bits per chunk of tokens: inferred from the chunk, added to every position of it.

Legend: B rows, R latent rows, T tokens, S sites (chunks), E bits, D width.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from latentlm.config import Strict
from latentlm.interface import Bits, BlockCondition, Condition, Context, Encoder, Injection, Latent, Objective, Shape


class ChunkBits(Encoder):
    """A small network on the mean of the trunk's stream over a chunk. The chunk's first positions predict its later tokens,
    which the mean has seen: sees_future."""

    Config = Strict
    sees_future = True

    def __init__(self, config: Strict, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2,)
        self.inner = nn.Linear(shape.width, shape.width)
        self.readout = nn.Linear(shape.width, shape.latent.dims)

    def forward(self, context: Context, objective: Objective | None = None) -> Bits:
        """(B, S, E)."""
        pooled = context.site_means(F.gelu(self.inner(context.taps[self.taps[0]])))
        return Bits(self.readout(pooled))


class ChunkInjectionConfig(Strict):
    """Where the code enters."""

    slot: Literal["residual", "kv"] = "residual"
    block: int | None = Field(None, ge=0, description="injected block; default: L//2")


class ChunkInjection(Injection):
    """A linear map of the code; gradients go straight through the bits to their probabilities (Bengio et al. 2013)."""

    Config = ChunkInjectionConfig

    def __init__(self, config: ChunkInjectionConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.blocks = (shape.blocks // 2 if config.block is None else config.block,)
        self.slots = (config.slot,)
        self.map = nn.Linear(shape.latent.dims, shape.width)

    def forward(self, latent: Latent, context: Context) -> Condition:
        """(R, T, D)."""
        code = latent.value
        if isinstance(latent.distribution, Bits):
            soft = latent.distribution.probabilities
            code = code + soft - soft.detach()
        rows = context.at_positions(self.map(code.to(self.map.weight)))
        filled = BlockCondition(residual=rows) if self.config.slot == "residual" else BlockCondition(kv=rows)
        return Condition({self.blocks[0]: filled})
