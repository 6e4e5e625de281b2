"""Cross-attention from the positions of a document to its memory slots: a layer that an injection owns, one per block.

    out = W_o attention(queries = W_q norm(x), keys = W_k m, values = W_v m)

Slots have no order in time, and no rotary positions, unless the layer is `rotary`: then queries turn by their position in the
document and keys by the place that the injection gives their slot. Documents without slots read nothing: zero.

Legend: R latent rows, T tokens, D width, M slots, C width of a slot, H heads, Hkv key/value heads, dh head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from latentlm.backbone.linear import Linear
from latentlm.backbone.rotary import Rotation
from latentlm.config import BackboneConfig
from latentlm.interface import Cross


class CrossAttention(nn.Module):
    """Grouped-query cross-attention with its own pre-norm, without biases."""

    def __init__(self, config: BackboneConfig, *, memory_width: int | None = None, rotary: bool = False) -> None:
        """`memory_width` is C; default: D. `rotary`: queries and keys have positions."""
        super().__init__()
        assert config.kv_heads is not None
        assert config.head_dim is not None
        self.head_dim = config.head_dim
        self.rotary = rotary
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.query = Linear(config.width, config.heads * config.head_dim, bias=False)
        self.key = Linear(memory_width or config.width, config.kv_heads * config.head_dim, bias=False)
        self.value = Linear(memory_width or config.width, config.kv_heads * config.head_dim, bias=False)
        self.output = Linear(config.heads * config.head_dim, config.width, bias=False)

    def memory(self, slots: Tensor, documents: Tensor, *, rotation: Rotation | None = None) -> Cross:
        """The condition of a block from slots (R, M, C) and the document (R, M) that reads each (-1 = none). `rotation` holds
        the angles of the slots' places, for a rotary layer."""
        assert (rotation is not None) == self.rotary, "a rotary layer needs the places of its slots, another has none"
        key = rearrange(self.key(slots), "r m (h d) -> r h m d", d=self.head_dim)
        value = rearrange(self.value(slots), "r m (h d) -> r h m d", d=self.head_dim)
        return Cross(self, key if rotation is None else rotation.apply(key), value, documents)

    def forward(self, x: Tensor, cross: Cross, documents: Tensor, *, rotation: Rotation | None = None) -> Tensor:
        """What positions (R, T) of these documents read, (R, T, D), from the stream x (R, T, D). `rotation` holds the angles of
        the positions, which a rotary layer needs."""
        query = rearrange(self.query(self.norm(x)), "r t (h d) -> r h t d", d=self.head_dim)
        if self.rotary:
            assert rotation is not None, "a rotary layer needs the positions of its queries"
            query = rotation.apply(query)
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
