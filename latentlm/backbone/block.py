"""One pre-norm transformer block with condition slots: grouped-query attention and SwiGLU.

    queries            norm(x + residual)
    keys and values    norm(source + kv) + kv_normed, preceded by prefix slots; values times 1 + value_gate,
                       or mapped by a layer of the injection's
    stream             x + residual + skip + attention, then + cross-attention to memory slots,
                       then + feed(y), where y = (1 + film_scale) norm(stream) + film_shift
    feed(y)            feed_forward(y); with maps in the slot `feed_forward`: the sum of layer(y, factor), and of
                       feed_forward(y) if every map is `added` (an adapter; experts stand in its place)

`source` is the residual stream itself, or another stream (the Free Transformer's encoder block queries with a learned vector
and reads the trunk). An empty slot costs nothing.

Legend: B rows, T tokens, D width, H heads, Hkv key/value heads, M prefix slots, dh head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentlm.backbone.attention import Mask, attend
from latentlm.backbone.cache import KVCache
from latentlm.backbone.linear import Linear
from latentlm.backbone.rotary import Rotation
from latentlm.config import BackboneConfig
from latentlm.interface import BlockCondition, Prefix, ValueMap, listed

_NOTHING = BlockCondition()


class Attention(nn.Module):
    """Grouped-query attention without biases."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        assert config.kv_heads is not None
        assert config.head_dim is not None
        self.backend = config.attention
        self.head_dim = config.head_dim
        self.query = Linear(config.width, config.heads * config.head_dim, bias=False)
        self.key = Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.value = Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.output = Linear(config.heads * config.head_dim, config.width, bias=False)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        *,
        mask: Mask,
        rotation: Rotation | None,
        prefixes: tuple[Prefix, ...],
        value_gate: Tensor | ValueMap | tuple[Tensor | ValueMap, ...] | None,
        cache: KVCache | None,
        index: int,
    ) -> Tensor:
        """Queries from x (B, T, D), keys and values from source (B, T, D), both already normed; (B, T, D)."""
        query, key = self._heads(self.query(x)), self._heads(self.key(source))
        values = self.value(source)
        for gate in listed(value_gate):
            values = _mapped(values, gate) if isinstance(gate, ValueMap) else values * (1.0 + gate)
        value = self._heads(values)
        if rotation is not None:
            query, key = rotation.apply(query), rotation.apply(key)
        if cache is not None:
            key, value = cache.update(index, key, value, prefixes)
        elif prefixes:
            key = torch.cat((*(prefix.key.to(key.dtype) for prefix in prefixes), key), dim=2)
            value = torch.cat((*(prefix.value.to(value.dtype) for prefix in prefixes), value), dim=2)
        seen = mask if mask.prefix_documents is not None else mask.with_prefixes(prefixes)
        mixed = attend(query, key, value, mask=seen, backend=self.backend)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, H*dh) -> (B, H, T, dh). Not by einops: at every block and token it would take 2% of a small model's time."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def _mapped(values: Tensor, gate: ValueMap) -> Tensor:
    """Values (B, T, Hkv*dh) through a map."""
    made: Tensor = gate.layer(values, gate.factor)
    return values + made if gate.added else made


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate x) * up x)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        assert config.feed_forward is not None
        self.gate = Linear(config.width, config.feed_forward, bias=False)
        self.up = Linear(config.width, config.feed_forward, bias=False)
        self.down = Linear(config.feed_forward, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """Attention and feed-forward around a residual stream."""

    compiles = gathered_alone = True

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Mask,
        rotation: Rotation | None,
        source: Tensor | None = None,
        condition: BlockCondition | None = None,
        cache: KVCache | None = None,
        index: int = 0,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D). `source` (B, T, D) is the key/value stream where it is not x; `index` the block's place in
        the cache. `mask` may have the slots of the condition's prefixes already."""
        slots = condition or _NOTHING
        if slots.residual is not None:
            x = x + slots.residual
        normed = self.attention_norm(x)
        keyed = normed
        if source is not None or slots.kv is not None:
            stream = x if source is None else source
            keyed = self.attention_norm(stream if slots.kv is None else stream + slots.kv)
        if slots.kv_normed is not None:
            keyed = keyed + slots.kv_normed
        prefixes = listed(slots.prefix) if cache is None else cache.prefix(index, slots.prefix)
        mixed = self.attention(
            normed,
            keyed,
            mask=mask,
            rotation=rotation,
            prefixes=prefixes,
            value_gate=slots.value_gate,
            cache=cache,
            index=index,
        )
        x = (x if slots.skip is None else x + slots.skip) + mixed
        for cross in listed(slots.cross) if cache is None else cache.cross(index, slots.cross):
            x = x + cross.layer(x, cross, mask.query_documents, rotation=rotation)
        normed = self.feed_forward_norm(x)
        if slots.film_scale is not None:
            normed = normed * (1.0 + slots.film_scale)
        if slots.film_shift is not None:
            normed = normed + slots.film_shift
        if slots.feed_forward is None:
            out: Tensor = x + self.feed_forward(normed)
            return out
        return x + self._fed(normed, listed(slots.feed_forward))

    def _fed(self, x: Tensor, maps: tuple[ValueMap, ...]) -> Tensor:
        """The feed-forward of x (B, T, D), which maps may stand in for or add to: (B, T, D)."""
        replaced = not all(each.added for each in maps)
        out: Tensor | None = None if replaced else self.feed_forward(x)
        for each in maps:
            made = each.layer(x, each.factor)
            out = made if out is None else out + made
        assert out is not None
        return out
