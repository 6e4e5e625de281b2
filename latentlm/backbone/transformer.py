"""The decoder stack: embedding, blocks, final norm, readout. It can be run in two halves, so that everything below the first
injected block is computed once for any number of latents.

* pre-norm RMSNorm, SwiGLU, rotary positions (plain or Llama-3 scaled), grouped-query attention, no biases
* embeddings tied to the readout, or not
* document masks, key/value cache, condition slots (see block.py)

Legend: B rows, T tokens, D width, V vocabulary, L blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from latentlm.backbone.attention import Mask
from latentlm.backbone.block import Block
from latentlm.backbone.cache import KVCache
from latentlm.backbone.linear import Linear, linear
from latentlm.backbone.rotary import Rotation
from latentlm.config import BackboneConfig
from latentlm.interface import SLOTS, BlockCondition, listed


class _Embedding(nn.Embedding):
    """Of tokens, and not the readout as well: nothing but its own calls looks at its weights."""

    gathered_alone = True


class Transformer(nn.Module):
    """Embedding, L blocks, norm and readout."""

    slots = frozenset(SLOTS)
    """Condition slots that this backbone has."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        # Given its tensor, it does not fill it: on the meta device that would import torch's compiler, which takes a second.
        embedding = nn.Embedding if config.tie_embeddings else _Embedding
        self.embedding = embedding(config.vocabulary, config.width, _weight=torch.empty(config.vocabulary, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.readout = None if config.tie_embeddings else Linear(config.width, config.vocabulary, bias=False)

    def run(
        self,
        x: Tensor,
        *,
        start: int,
        stop: int,
        mask: Mask,
        rotation: Rotation,
        conditions: Mapping[int, BlockCondition] | None = None,
        cache: KVCache | None = None,
        taps: Collection[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run blocks start .. stop-1 on x (B, T, D). Returns the stream and the taps asked for among start .. stop."""
        kept: dict[int, Tensor] = {}
        for index in range(start, stop):
            if index in taps:
                kept[index] = x
            condition = None if conditions is None else conditions.get(index)
            seen = mask  # with prefixes it is looked up outside of the block: a compiled one would be made anew for each
            if condition is not None and condition.prefix is not None and cache is None:
                seen = mask.with_prefixes(listed(condition.prefix))
            x = self.blocks[index](x, mask=seen, rotation=rotation, condition=condition, cache=cache, index=index)
        if stop in taps:
            kept[stop] = x
        return x, kept

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32 (float64 for a float64 model)."""
        out = linear(hidden, self.embedding.weight if self.readout is None else self.readout.weight)
        return out if out.dtype.itemsize == 8 else out.float()
