"""What both encoders are made of (ours): the trunk's stream through one non-causal block, pooled over each chunk.

    x_t    = norm(block(trunk)_t)            attention within the document, both ways, rotary positions
    mean     pooled_s = mean of x_t over the positions t of chunk s
    query    pooled_s = [sum_t w_t1 x_t1, .., sum_t w_tH x_tH],   w_th = softmax over t of (v_h x_t + c_{h,o}),  o = t mod n

A query for each of H slices of the width (as even as H allows), v_h, asks for content, and c_h,o (zero at the start) for a
place in the chunk of n positions, so that a slice may stand for one position: a mean forgets the order.

Legend: B rows, T tokens, S sites, D width, H heads, n positions of a chunk.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import repeat
from pydantic import Field
from torch import Tensor, nn

from latentlm.backbone import Block, Mask, rotation, wide_linear
from latentlm.config import Strict
from latentlm.interface import Context, Encoder, Shape

Pool = Literal["query", "mean"]


class ChunkEncoderConfig(Strict):
    """Settings of both encoders."""

    tap: int | None = Field(None, ge=0, description="block whose input is read; default: L//2, the injected block")
    pool: Pool = Field("query", description="how a chunk's positions become one vector")


class ChunkEncoder(Encoder):
    """Reads whole documents: a chunk's code may depend on all that follows."""

    config: ChunkEncoderConfig
    sees_future = True

    def __init__(self, config: ChunkEncoderConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.taps = (shape.blocks // 2 if config.tap is None else config.tap,)
        self.block = Block(shape.backbone)
        self.norm = nn.RMSNorm(shape.width, eps=shape.backbone.norm_eps)
        # A site of one position has nothing to pool.
        pools = config.pool == "query" and shape.latent.granularity != "token"
        self.pool = QueryPool(shape) if pools else None

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Places start alike."""
        if self.pool is not None and self.pool.places is not None:
            nn.init.zeros_(self.pool.places)

    def pooled(self, context: Context) -> Tensor:
        """(B, S, D) float32 or wider; zero at sites without a position."""
        mask = Mask(context.documents, context.documents, causal=False, plain=context.one_document_a_row())
        turn = rotation(self.shape.backbone, context.positions)
        x = self.norm(self.block(context.taps[self.taps[0]], mask=mask, rotation=turn))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.pool is not None:
            scores, slices = self.pool.scores(x, context), self.shape.backbone.heads
        else:
            scores, slices = torch.zeros_like(x[..., :1]), 1
        return pool_sites(x, scores, context, slices)


class QueryPool(nn.Module):
    """The scores w before the softmax."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        heads = shape.backbone.heads
        self.query = nn.Linear(shape.width, heads, bias=False)
        length = shape.latent.length or 1
        self.places = nn.Parameter(torch.empty(length, heads)) if length > 1 else None

    def scores(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, D) -> (B, T, H) float32 or wider."""
        out = wide_linear(x, self.query)
        if self.places is not None:
            out = out + self.places[context.positions % len(self.places)]
        return out


def pool_sites(x: Tensor, scores: Tensor, context: Context, slices: int) -> Tensor:
    """Softmax of scores (B, T, H) over the real positions of each site, and the means of the H slices of x (B, T, D) with these
    weights: (B, S, D), zero at sites without a position. Where H does not divide D, the first slices are one wider."""
    real = (context.documents >= 0)[..., None]
    index = repeat(context.site_of, "b t -> b t h", h=slices)
    shape = (x.shape[0], context.sites, slices)
    highest = scores.new_full(shape, float("-inf"))
    highest = highest.scatter_reduce(1, index, scores.detach().masked_fill(~real, float("-inf")), reduce="amax")
    weights = torch.where(real, scores - highest.gather(1, index), float("-inf")).exp()  # (B, T, H)
    totals = scores.new_zeros(shape).scatter_add(1, index, weights)  # at least 1 where there is a position
    weights = weights / totals.clamp(min=1.0).gather(1, index)
    parts = zip(x.tensor_split(slices, dim=-1), weights.split(1, dim=-1), strict=True)
    weighted = torch.cat([part * weight for part, weight in parts], dim=-1)
    index = repeat(context.site_of, "b t -> b t d", d=x.shape[-1])
    return torch.zeros_like(x[:, :1]).expand(-1, context.sites, -1).scatter_add(1, index, weighted)
