"""Cross-attention from the positions of a document to its memory slots: a layer that an injection owns, one per block.

    out = W_o attention(queries = W_q norm(x), keys = W_k m, values = W_v m)      no rotary positions: slots have no order in time

Documents without slots read nothing: zero.

Legend: R latent rows, T tokens, D width, M slots, C width of a slot, H heads, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentlm.config import BackboneConfig
from latentlm.interface import Cross


class CrossAttention(nn.Module):
    """Grouped-query cross-attention with its own pre-norm, without biases."""

    def __init__(self, config: BackboneConfig, *, memory_width: int | None = None) -> None:
        """`memory_width` is C; default: D."""
        super().__init__()
        assert config.kv_heads is not None
        assert config.head_dim is not None
        self.head_dim = config.head_dim
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.query = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.key = nn.Linear(memory_width or config.width, config.kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(memory_width or config.width, config.kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.heads * config.head_dim, config.width, bias=False)

    def memory(self, slots: Tensor, documents: Tensor) -> Cross:
        """The condition of a block from slots (R, M, C) and the document (R, M) that reads each (-1 = none)."""
        key = rearrange(self.key(slots), "r m (h d) -> r h m d", d=self.head_dim)
        value = rearrange(self.value(slots), "r m (h d) -> r h m d", d=self.head_dim)
        return Cross(self, key, value, documents)

    def forward(self, x: Tensor, cross: Cross, documents: Tensor) -> Tensor:
        """What positions (R, T) of these documents read, (R, T, D), from the stream x (R, T, D)."""
        query = rearrange(self.query(self.norm(x)), "r t (h d) -> r h t d", d=self.head_dim)
        seen = (documents[:, :, None] == cross.documents[:, None, :]) & (cross.documents >= 0)[:, None, :]  # (R, T, M)
        served = seen.any(-1)
        # A softmax over nothing is not a number, nor is its gradient: who has no slots reads them all, and then nothing.
        bias = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
        bias = bias.masked_fill(~(seen | ~served[..., None]), float("-inf"))[:, None]
        mixed = F.scaled_dot_product_attention(
            query,
            cross.key.to(query.dtype),
            cross.value.to(query.dtype),
            attn_mask=bias,
            enable_gqa=query.shape[1] != cross.key.shape[1],
        )
        mixed = mixed.masked_fill(~served[:, None, :, None], 0.0)
        out: Tensor = self.output(rearrange(mixed, "r h t d -> r t (h d)"))
        return out
