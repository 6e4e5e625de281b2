"""What the encoder and the prompt's prior are built from: a tower of blocks, pooling to one vector per document, and a head.

    tower     x -> norm(block_n(... block_1(x))), within documents
    pooling   first | last | mean of the visible positions of each document
    head      [mean, log variance] = W h,  h = tanh(W_p pooled + b) with the pooler, else pooled;  log std = log variance / 2

The pooler is BERT's (a dense layer and tanh on [CLS]), the head Optimus's: one linear map without bias (arXiv 2004.04092 and
its code); a bias is ours. The blocks are this project's (RMSNorm, SwiGLU, rotary positions), where Optimus has BERT's: our
reading.

Legend: B rows, T tokens, S sites (documents), D width, E dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlm.backbone import Block, Mask, rotation
from latentlm.config import BackboneConfig
from latentlm.interface import Gaussian

Pooling = Literal["first", "last", "mean"]


class Tower(nn.Module):
    """Blocks and a final norm over a stream."""

    def __init__(self, config: BackboneConfig, *, blocks: int, causal: bool) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.blocks = nn.ModuleList(Block(config) for _ in range(blocks))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(self, x: Tensor, *, documents: Tensor, positions: Tensor, single: bool = False) -> Tensor:
        """x (B, T, D), documents (B, T) with -1 where nothing is to be seen, positions (B, T): (B, T, D). `single`: every row
        is one document, seen whole, and attention needs no mask."""
        mask = Mask(documents, documents, causal=self.causal, plain=single)
        turn = rotation(self.config, positions)
        for block in self.blocks:
            x = block(x, mask=mask, rotation=turn)
        out: Tensor = self.norm(x)
        return out


def pooled(x: Tensor, *, visible: Tensor, site_of: Tensor, sites: int, how: Pooling) -> Tensor:
    """One vector per site, (B, S, D), from x (B, T, D) at the positions that are `visible` (B, T); any where there are none.
    A mean is taken in float32."""
    index = site_of[..., None]
    if how == "mean":
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        seen = visible.to(x.dtype)[..., None]  # (B, T, 1)
        zeros = x.new_zeros(x.shape[0], sites, x.shape[-1])
        sums = zeros.scatter_add(1, index.expand_as(x), x * seen)
        return sums / zeros[..., :1].scatter_add(1, index, seen).clamp(min=1)
    place = torch.arange(x.shape[1], device=x.device).expand_as(site_of)
    nowhere = x.shape[1] if how == "first" else -1
    place = place.masked_fill(~visible, nowhere)
    start = torch.full((x.shape[0], sites), nowhere, dtype=torch.long, device=x.device)
    chosen = start.scatter_reduce(1, site_of, place, reduce="amin" if how == "first" else "amax")
    chosen = chosen.clamp(min=0, max=x.shape[1] - 1)[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, chosen)


class GaussianHead(nn.Module):
    """From a pooled vector to a Gaussian, in float32."""

    def __init__(self, width: int, event_dims: int, *, pooler: bool, bias: bool) -> None:
        super().__init__()
        self.pooler = nn.Linear(width, width) if pooler else None
        self.readout = nn.Linear(width, 2 * event_dims, bias=bias)

    def forward(self, x: Tensor) -> Gaussian:
        """x (B, S, D) -> (B, S, E)."""
        if self.pooler is not None:
            x = torch.tanh(self.pooler(x))
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.readout.bias is None else self.readout.bias.to(wide)
            mean, log_variance = F.linear(x.to(wide), self.readout.weight.to(wide), bias).chunk(2, dim=-1)
        return Gaussian(mean, 0.5 * log_variance)
